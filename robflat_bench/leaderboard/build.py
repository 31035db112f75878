"""The leaderboard as a pure function of its entries: independent of clock, machine, order of files and random state.

`rows.py` makes the rows, `ranks.py` ranks them, `correlations.py` compares flatness with robustness, `claims.py`
decides the claims of the paper. The statistics are in `robflat_bench.analysis`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from robflat_bench.config.protocol import Protocol
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.claims import claims
from robflat_bench.leaderboard.correlations import correlations
from robflat_bench.leaderboard.entries import Submission, references
from robflat_bench.leaderboard.entry_checks import board_id, known_protocol
from robflat_bench.leaderboard.model import RANKED_AT, Board, BoardColumn, Change, Leaderboard, Withdrawn
from robflat_bench.leaderboard.ranks import ranked
from robflat_bench.leaderboard.rows import SeedGroup, board_row, group_seeds, measure_sizes
from robflat_bench.leaderboard.tree import REFERENCES
from robflat_bench.records.quantities import WORST_CASE, Name, column_id, heading, quantity_unit
from robflat_bench.registry.components import slug
from robflat_bench.registry.registry import Registry


def build_leaderboard(submissions: Sequence[Submission], root: Path, registry: Registry) -> Leaderboard:
    """Every board with an entry, superseded and retracted ones included, or with reference rows below `root`; boards
    with a ranking come first.

    Raises CheckFailed where two active entries are the same row and seed, or call different data canonical.
    """
    boards: dict[str, list[Submission]] = {path.stem: [] for path in (root / REFERENCES).glob("*.toml")}
    for submission in submissions:
        boards.setdefault(board_id(submission), []).append(submission)
    made = [_board(name, found, root, registry) for name, found in boards.items()]
    return Leaderboard(
        boards=tuple(sorted(made, key=lambda one: (not any(row.places for row in one.rows), not one.rows, one.id))),
        withdrawn=_withdrawn(submissions),
        changes=_changes(submissions),
    )


def _board(name: str, entries: Sequence[Submission], root: Path, registry: Registry) -> Board:
    submissions = [one for one in entries if one.entry.status == "active"]
    own = [one for one in entries if not one.record.dataset.canonical]  # canonical data may be an earlier version's
    datasets = [one.record.dataset for one in submissions or own]
    protocol = known_protocol(registry, entries[0].record.protocol.name if entries else name)
    if protocol is None:  # entries are checked before, so this is a file of references
        known = ", ".join(registry.protocols)
        raise CheckFailed(f"{root / REFERENCES / name}.toml is named after no known protocol. Known are: {known}")
    for submission in submissions:
        if submission.record.dataset.checksum != datasets[0].checksum:
            both = f"{submission.folder} and {submissions[0].folder}"
            raise CheckFailed(f"{both} call different data canonical: their dataset checksums differ")
    fixed = protocol.fixed
    groups = group_seeds(submissions)
    columns = _columns(groups, protocol, registry)
    rows = [board_row(id, group, columns, protocol) for id, group in zip(_ids(groups), groups, strict=True)]
    correlated = correlations(groups, rows, columns)
    rankings = (WORST_CASE, *(column_id("measure", row.measure) for row in fixed.measures))
    return Board(
        id=name,
        protocol=protocol.name,
        version=protocol.version,
        hash=protocol.hash,
        summary=protocol.summary,
        dataset=datasets[0].origin if datasets else fixed.data.dataset,
        canonical=datasets[0].canonical if datasets else True,
        epsilon=fixed.threat.epsilon,
        norm=fixed.threat.norm,
        backbone=fixed.backbone,
        checkpoint=RANKED_AT,
        quantities=columns,
        rankings=rankings,
        rows=ranked(groups, rows, rankings),
        correlations=correlated,
        claims=claims(groups, rows, columns, correlated),
        references=references(root, protocol.name),
    )


def _ids(groups: Sequence[SeedGroup]) -> list[str]:
    """A slug of each label; rows with the same slug add a hash of their content."""
    slugs = [slug(group.label) for group in groups]
    pairs = zip(slugs, groups, strict=True)
    return [name if slugs.count(name) == 1 else f"{name[:71]}-{group.content[:8]}" for name, group in pairs]


def _columns(groups: Sequence[SeedGroup], protocol: Protocol, registry: Registry) -> tuple[BoardColumn, ...]:
    """The columns of a board: those of the protocol, then measures of added evaluations by name."""
    fixed = protocol.fixed
    counts = {row.attack: row.test for row in fixed.attacks if RANKED_AT in row.checkpoints}
    reference = fixed.attacks[0]
    asked = {row.measure: row.test for row in fixed.measures}
    added = measure_sizes(run for group in groups for run in group.runs)
    measures = asked | {measure: n for measure, n in sorted(added.items()) if measure not in asked}

    def made(name: Name, n: int, of: str = "", protocol: bool = True) -> BoardColumn:
        title = heading(registry, name, of)
        return BoardColumn(id=column_id(name, of), title=title, unit=quantity_unit(name, of), n=n, protocol=protocol)

    return (
        BoardColumn(id=WORST_CASE, title="robust error", unit="fraction", n=min(counts.values())),
        made("clean_error", max(counts.values())),
        *(made("robust_error", n, attack) for attack, n in counts.items()),
        made("gap_robust_error", reference.test, reference.attack),
        made("robust_loss", reference.test, reference.attack),
        made("gap_robust_loss", reference.test, reference.attack),
        *(made("measure", n, measure, measure in asked) for measure, n in measures.items()),
    )


def _withdrawn(submissions: Sequence[Submission]) -> tuple[Withdrawn, ...]:
    return tuple(
        Withdrawn(
            board=board_id(one),
            label=one.record.spec.label,
            seed=one.record.seed,
            key=one.record.key,
            folder=one.folder,
            status=one.entry.status,
            reason=one.entry.reason,
        )
        for one in sorted(submissions, key=lambda one: one.folder)
        if one.entry.status != "active"
    )


def _changes(submissions: Sequence[Submission]) -> tuple[Change, ...]:
    """One change for each day, board and kind of event (submission or verification), newest first."""
    events: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in submissions:
        dated = [(one.entry.submitted, "submitted"), *((each.date, each.tier) for each in one.entry.verifications)]
        for date, event in dated:
            events[date, board_id(one), event].append(one.record.spec.label)
    return tuple(
        Change(
            date=date,
            title=f"{board}: {len(labels)} {'run' if len(labels) == 1 else 'runs'} {event}",
            text=", ".join(sorted({*labels})),
        )
        for (date, board, event), labels in sorted(events.items(), reverse=True)
    )
