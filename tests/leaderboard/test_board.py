"""The board is a function of its records: a row's numbers depend neither on names nor on other rows."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.fake_records import DATASET, REGISTRY, fake_run, league, submitted

from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard import entries
from robflat_bench.leaderboard.build import build_leaderboard
from robflat_bench.leaderboard.entries import Submission, read_entries, store_submissions
from robflat_bench.leaderboard.submit import add_entries
from robflat_bench.records.record import MeasureResult
from robflat_bench.registry.registry import Registry

METHODS = {"at": 0.0, "trades": 0.4, "mart": 0.1, "at+awp": 0.7, "at+ema": 0.05}
GOLDEN = Path(__file__).parent / "golden_board.json"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five methods of three seeds, and one of a single seed."""
    folder = tmp_path_factory.mktemp("board")
    runs = [*league(folder / "runs", METHODS), fake_run(folder / "runs", "alp", 1)]
    submitted(folder / "leaderboard", runs)
    return folder / "leaderboard"


@pytest.fixture(scope="module")
def submissions(root):
    found, problems = read_entries(root, REGISTRY)
    assert problems == []
    return found


@pytest.fixture(scope="module")
def board(root, submissions):
    return build_leaderboard(submissions, root, REGISTRY).boards[0]


def rows(board):
    return {row.label: row for row in board.rows}


def renamed(one: Submission) -> Submission:
    """The same run under another name."""
    name = f"x-{one.record.spec.label}"
    spec = one.record.spec.model_copy(update={"label": name})
    return Submission(
        one.folder, one.entry, one.record.model_copy(update={"spec": spec}), one.outcomes, one.evaluations
    )


def nameless(board):
    """The board without names, rows in order of their content."""
    text = json.dumps([row.model_dump(mode="json", exclude={"id", "label"}) for row in board.rows], sort_keys=True)
    return sorted(json.dumps(row, sort_keys=True) for row in json.loads(text)), board.correlations


def test_six_fixture_methods_give_the_golden_board(root, submissions):
    """Any changed number must be intended: then regenerate golden_board.json."""
    made = build_leaderboard(submissions, root, REGISTRY).model_dump(
        mode="json", exclude={"boards": {"__all__": {"correlations", "claims"}}}
    )
    assert made == json.loads(GOLDEN.read_text("utf-8"))


def test_the_board_does_not_depend_on_the_order_of_entries(root, submissions):
    assert build_leaderboard(submissions[::-1], root, REGISTRY) == build_leaderboard(submissions, root, REGISTRY)


def test_renamed_methods_keep_their_values_and_ranks(root, submissions, board):
    other = build_leaderboard([renamed(one) for one in submissions], root, REGISTRY).boards[0]
    assert nameless(other) == nameless(board)
    assert [row.label for row in other.rows] == [f"x-{row.label}" for row in board.rows]


def test_adding_a_method_changes_no_other_value_interval_or_pairwise_order(tmp_path, root, submissions, board):
    submitted(tmp_path, league(tmp_path / "runs", {"gairat": 0.2}))
    more, _ = read_entries(tmp_path, REGISTRY)
    other = build_leaderboard([*submissions, *more], root, REGISTRY).boards[0]
    assert len(other.rows) == len(board.rows) + 1
    for label, row in rows(board).items():
        assert rows(other)[label].values == row.values
        assert rows(other)[label].runs == row.runs
    assert [row.label for row in other.rows if row.label in rows(board)] == [row.label for row in board.rows]


def test_removing_a_record_changes_only_its_row_and_ranks(root, submissions, board):
    left = [one for one in submissions if (one.record.spec.label, one.record.seed) != ("mart", 3)]
    other = build_leaderboard(left, root, REGISTRY).boards[0]
    for label, row in rows(board).items():
        if label != "mart":
            assert rows(other)[label].values == row.values
    assert rows(other)["mart"].unranked == "2 of 3 seeds"
    assert rows(other)["mart"].places == {}
    assert [row.label for row in other.rows][-2:] == ["alp", "mart"]


def test_fewer_than_three_seeds_are_listed_not_ranked(board):
    """'fewer than 3 seeds listed but not ranked'; one seed has no interval, and the error of its network alone."""
    alp = rows(board)["alp"]
    assert (alp.unranked, alp.places) == ("1 of 3 seeds", {})
    value = alp.values["last"]["robust_error"]
    assert (value.sd, value.low, value.high) == (None, None, None)
    assert value.standard_error is not None
    assert board.rows[-1] is alp


def test_rows_are_ranked_by_the_per_example_worst_case_on_examples_that_met_every_attack(submissions, board):
    one = next(one for one in submissions if (one.record.spec.label, one.record.seed) == ("at", 2))
    wrong = [
        any(outcome[example] for name, outcome in one.outcomes.items() if re.fullmatch(r"last/test/.*/error", name))
        for example in range(250)
    ]
    run = next(run for run in rows(board)["at"].runs if run.seed == 2)
    assert run.values["last"]["robust_error"] == pytest.approx(sum(wrong) / 250)
    means = [row.values["last"]["robust_error"].mean for row in board.rows if not row.unranked]
    assert means == sorted(means)


def test_a_checkpoint_with_fewer_attacks_has_no_worst_case_over_attacks(tmp_path):
    """Version 1.0 of cifar10-mini attacks the best checkpoint with PGD alone, the last one also with AutoAttack."""
    registry, file = Registry(REGISTRY.plugins), tmp_path / "fewer.toml"
    file.write_text(registry.protocol("cifar10-mini@1.0")[0])
    registry.admit_protocol("cifar10-mini", file)
    add_entries(
        tmp_path,
        [fake_run(tmp_path / "runs", "at", 1, protocol="cifar10-mini", registry=registry)],
        registry,
        "2026-01-02",
    )
    (row,) = build_leaderboard(read_entries(tmp_path, registry)[0], tmp_path, registry).boards[0].rows
    assert "robust_error" in row.values["last"]
    assert "robust_error" not in row.values["best"]
    assert any(name.startswith("attack:pgd") for name in row.values["best"])


def test_flatness_has_a_ranking_of_its_own(board):
    average = board.rankings[1]
    assert average.startswith("measure:average-case")
    ranked = [row for row in board.rows if row.places]
    by_flatness = sorted(ranked, key=lambda row: row.places[average].rank)
    values = [row.values["last"][average].mean for row in by_flatness]
    assert values == sorted(values)


def test_the_gap_is_test_minus_train(board, submissions):
    for one in submissions:
        run = next(run for run in rows(board)[one.record.spec.label].runs if run.seed == one.record.seed)
        gap = one.record.results["last"].gap
        assert run.values["last"]["gap_robust_error"] == pytest.approx(gap.robust_error, rel=1e-5)
        assert run.values["last"]["gap_robust_loss"] == pytest.approx(gap.robust_loss, rel=1e-5)


def test_data_that_are_not_the_canonical_copy_have_a_board_of_their_own(tmp_path, root, submissions):
    copy = DATASET.model_copy(update={"checksum": "d" * 64, "canonical": False, "origin": "a copy"})
    submitted(tmp_path, [fake_run(tmp_path / "runs", "at", 1, dataset=copy)])
    more, _ = read_entries(tmp_path, REGISTRY)
    boards = build_leaderboard([*submissions, *more], root, REGISTRY).boards
    assert [(one.id, one.canonical, len(one.rows)) for one in boards] == [
        ("digits-linf", True, 6),
        ("digits-linf-dddddddd", False, 1),
    ]


def test_two_data_sets_cannot_both_be_canonical(tmp_path, root, submissions):
    other = DATASET.model_copy(update={"checksum": "d" * 64})
    fake_run(tmp_path, "at", 4, dataset=other)
    more, _ = store_submissions(tmp_path, REGISTRY)
    with pytest.raises(CheckFailed, match="call different data canonical"):
        build_leaderboard([*submissions, *more], root, REGISTRY)


def test_withdrawn_entries_keep_their_reason_and_leave_the_ranking(root, submissions):
    gone = submissions[0]
    entry = gone.entry.model_copy(update={"status": "retracted", "reason": "trained on test images"})
    left = Submission(gone.folder, entry, gone.record, gone.outcomes, gone.evaluations)
    made = build_leaderboard([left, *submissions[1:]], root, REGISTRY)
    assert [(one.key, one.reason) for one in made.withdrawn] == [(gone.record.key, "trained on test images")]
    assert gone.record.key not in {run.key for row in made.boards[0].rows for run in row.runs}


def test_two_active_entries_of_one_row_and_seed_are_refused(root, submissions):
    with pytest.raises(CheckFailed, match="one row and seed"):
        build_leaderboard([*submissions, replace(submissions[0])], root, REGISTRY)


def test_published_numbers_are_never_ranked(tmp_path, submissions):
    (tmp_path / entries.REFERENCES).mkdir()
    (tmp_path / entries.REFERENCES / "digits-linf.toml").write_text(
        '[[rows]]\nlabel = "AT"\nrobust_error = 0.5\nattack = "PGD-20"\nsource = "a paper"\n'
    )
    made = build_leaderboard(submissions, tmp_path, REGISTRY).boards[0]
    assert [row.label for row in made.references] == ["AT"]
    assert len(made.rows) == 6


def test_correlations_name_their_models_and_have_no_interval_below_ten(board):
    """Of the six rows, five are ranked."""
    assert {one.models for one in board.correlations} == {5}
    assert {one.target for one in board.correlations} == {
        "robust_loss",
        "robust_error",
        "gap_robust_loss",
        "gap_robust_error",
    }
    assert all(statistic.low is None for one in board.correlations for statistic in one.statistics)


# ---------------------------------------------------------------------------------------------------------
# Added measures
# ---------------------------------------------------------------------------------------------------------


def with_added(one, *values):
    """The submission with added evaluations of one measure: (value, n)."""
    measured = [MeasureResult(value=value, standard_error=None, n=n, seconds=0) for value, n in values]
    added = [SimpleNamespace(results={"last": SimpleNamespace(measures={"margin": found})}) for found in measured]
    return replace(one, evaluations=tuple((evaluation, {}) for evaluation in added))


def test_an_added_measure_counts_only_on_the_number_of_examples_that_most_runs_have(root, submissions):
    """One column, one n: values on another number of examples are left out, even if they are lower."""
    found = [with_added(one, (1.0, 100)) for one in submissions if one.record.spec.label in ("at", "trades")]
    found[0] = with_added(found[0], (0.1, 20), (1.0, 100), (0.2, 300))
    found[1] = with_added(found[1], (0.1, 20))
    board = build_leaderboard(found, root, REGISTRY).boards[0]
    (quantity,) = [quantity for quantity in board.quantities if quantity.id == "measure:margin"]
    assert quantity.n == 100
    values = [run.values["last"].get("measure:margin") for row in board.rows for run in row.runs]
    assert sorted(values, key=str) == [1.0] * 5 + [None]
    assert [row.label for row in board.rows if "measure:margin" in row.values["last"]] == ["trades"]


def test_a_board_is_built_without_torch(root):
    """Building and rendering load neither torch nor a module that trains or evaluates; only verification does."""
    code = (
        "import sys; from pathlib import Path; from robflat_bench.leaderboard.publish import digests; "
        "digests(Path(sys.argv[1]), ()); "
        "heavy = {'torch', 'robflat_bench.training', 'robflat_bench.evaluation'} & {*sys.modules}; "
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
