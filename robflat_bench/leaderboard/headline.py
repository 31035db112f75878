"""The headline of a board, from its claims: one sentence with numbers, and one with their limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from robflat_bench.leaderboard.model import Board, Claim, ClaimPart, Verdict

CLAUSES: dict[str, dict[Verdict | Literal["alone"], str]] = {
    "C1": {
        "alone": "the robust loss of adversarial training (AT) is {value} nats {interval} higher at the last "
        "checkpoint than at the best one",
        "supported": "adversarial training (AT) overfits: its robust loss is {value} nats {interval} higher at the "
        "last checkpoint than at the best one",
        "contradicted": "adversarial training (AT) does not overfit: its robust loss changes by {value} nats "
        "{interval} from the best checkpoint to the last",
        "undecided": "it is undecided whether adversarial training (AT) overfits: its robust loss changes by {value} "
        "nats {interval} from the best checkpoint to the last",
    },
    "C2": {
        "supported": "its minimum is {value} times {interval} sharper there",
        "contradicted": "its minimum is no sharper there ({value} times {interval})",
        "undecided": "it is undecided whether its minimum is sharper there ({value} times {interval})",
    },
    "C3": {
        "supported": "over {n}, flatter ones have a lower robust loss (Spearman {value} {interval})",
        "contradicted": "over {n}, flatness follows robust loss less than claimed (Spearman {value} {interval}, "
        "claimed above {threshold:g})",
        "undecided": "over {n}, Spearman's correlation of flatness with robust loss is {value} {interval}, {sign}not "
        "certainly above the claimed {threshold:g}",
        "not testable": "over methods it is not testable yet whether flatter ones have a lower robust loss: {reason}",
    },
}
"""Claim -> verdict on its first number -> clause. Without a clause for its verdict, a claim is left out. alone: of a
first number that is supported, in place of a clause that says more than that, where the claim as a whole is not."""


def headline(board: Board) -> str:
    """One sentence on what the board shows; "" where none of the claims can be said."""
    clauses = [_clause(claim) for claim in board.claims if claim.id in CLAUSES]
    said = [clause for clause in clauses if clause]
    return f"On {board.id}, {_joined(said)}." if said else ""


def limits(board: Board) -> str:
    """What the sentence rests on: methods, networks, test images, network."""
    ranked = [row for row in board.rows if row.places]
    networks = sum(len(row.runs) for row in ranked)
    return (
        f"{len(ranked)} methods, {networks} trained networks, {board.column(board.rankings[0]).n:,} test images, one "
        f"architecture ({board.backbone}); brackets are 95 % intervals. Other architectures and data may differ."
    )


def elsewhere(board: Board, boards: Sequence[Board]) -> str:
    """The correlation of flatness with robust loss on the other boards; "" where none has one."""
    found = {one.id: part for one in boards if one is not board for part in _correlation(one)}
    return " ".join(
        f"On {id} the correlation is {_number(part.value)} {_interval(part)}, over {part.n}."
        for id, part in found.items()
    )


def _correlation(board: Board) -> list[ClaimPart]:
    return [claim.parts[0] for claim in board.claims if claim.id == "C3" and claim.parts[0].low is not None]


def _clause(claim: Claim) -> str:
    part = claim.parts[0]
    clauses = CLAUSES[claim.id]
    alone = part.verdict == "supported" != claim.verdict and "alone" in clauses
    template = clauses.get("alone" if alone else part.verdict, "")
    return template.format(
        value=_number(part.value),
        interval=_interval(part),
        n=part.n,
        threshold=part.threshold,
        sign="above zero and " if part.low is not None and part.low > 0 else "",
        reason=part.reason,
    )


def _number(value: float | None) -> str:
    """Two decimals with a proper minus sign, and no minus before a zero."""
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212")


def _interval(part: ClaimPart) -> str:
    return f"[{_number(part.low)}, {_number(part.high)}]"


def _joined(clauses: Sequence[str]) -> str:
    """`a, and b; c`: the first two belong together."""
    first = ", and ".join(clauses[:2])
    return "; ".join([first, *clauses[2:]])
