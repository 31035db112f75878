"""The claims of the paper, C1 to C8, and objections to it, O1 to O4, decided by rules that all boards share.

`CLAIMS` is the table of rules: what is claimed, where, what is measured, above which threshold. `claim_evidence.py`
computes the numbers from committed records of methods with at least three seeds. `LEGEND` says how numbers decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from robflat_bench.leaderboard import claim_evidence as on
from robflat_bench.leaderboard.claim_facts import Evidence, Facts
from robflat_bench.leaderboard.model import BoardColumn, BoardRow, Claim, ClaimPart, Correlation, Verdict
from robflat_bench.leaderboard.rows import SeedGroup

LEGEND = (
    "C1 to C8 are claims of the paper, O1 to O4 objections to it. A number is supported or contradicted if its whole "
    "95 % interval, in brackets, is above or below the claimed threshold; undecided if the interval holds the "
    "threshold; not testable without an interval. A claim of several numbers is contradicted if one of them is, "
    "supported if all are, not testable if all are, and otherwise undecided; a number outside the verdict is only "
    "reported."
)
PAPER = "Stutz, Hein, Schiele: ICCV 2021 (arXiv 2104.04448)"


class Number(NamedTuple):
    """One number of a claim: in words, the threshold it is claimed to exceed, and its evidence. decides: whether it
    enters the verdict."""

    measured: str
    threshold: float
    evidence: Callable[[Facts], Evidence]
    decides: bool = True


class Rule(NamedTuple):
    """One claim: see `model.Claim`."""

    id: str
    claim: str
    source: str
    rule: str
    numbers: tuple[Number, ...]


def _untestable(reason: str) -> Callable[[Facts], Evidence]:
    return lambda facts: Evidence(reason=reason)


CLAIMS = (
    Rule(
        "C1",
        "Adversarial training (AT) overfits robustly: its robust test loss rises after the learning rate drops.",
        f"{PAPER}, figure on robust overfitting",
        "AT under the protocol's recipe; Student's t over seeds. The loss on held-out images is compared with the last "
        "check before the first drop by half.",
        (
            Number("AT's robust test loss at the last minus the best checkpoint (nats)", 0.0, on.overfitting),
            Number("AT's robust held-out loss at the end minus before the first drop (nats)", 0.0, on.rise_after_drop),
        ),
    ),
    Rule(
        "C2",
        "Flatness follows overfitting: AT's early-stopped checkpoint is flatter than its last one, several times.",
        f"{PAPER}, flatness throughout training",
        "Ratio of AT's flatness at the last and the best checkpoint: geometric mean, Student's t of logarithms over "
        "seeds. Several times is read as more than 2, which is reported and does not decide.",
        (
            Number("average-case flatness of AT, last over best", 1.0, on.flatter_when_best("average")),
            Number("worst-case flatness of AT, last over best", 1.0, on.flatter_when_best("worst")),
            Number("the same average-case ratio", 2.0, on.flatter_when_best("average"), False),
        ),
    ),
    Rule(
        "C3",
        "Across methods, flatter robust losses go with lower robust losses and smaller gaps.",
        f"{PAPER}, robust loss against flatness",
        "Spearman's rank correlation over methods at the last checkpoint; percentile interval from resampling methods "
        "with their seeds, for at least 10 methods.",
        (
            Number("Spearman of average-case flatness with robust test loss", 0.8, on.spearman("average", on.LOSS)),
            Number(
                "Spearman of average-case flatness with the gap in robust loss", 0.8, on.spearman("average", on.GAP)
            ),
            Number("Spearman of worst-case flatness with robust test loss", 0.0, on.spearman("worst", on.LOSS)),
        ),
    ),
    Rule(
        "C4",
        "Within the variants of one method, flatness and robust loss fall together.",
        f"{PAPER}, flatness across hyperparameters",
        "A grid: variants of one method and recipe that differ in one number. Kendall's tau of average-case flatness "
        "and robust test loss in each grid (a tie counts 0), averaged over the grids along one number, then over these "
        "numbers; percentile interval as in C3.",
        (Number("mean Kendall of average-case flatness and robust test loss within grids", 0.0, on.within_grids),),
    ),
    Rule(
        "C5",
        "Every method that beats AT is flatter than AT, but the lowest robust loss is not the flattest.",
        f"{PAPER}, robust loss against flatness",
        "Beating AT: significantly lower robust test loss (5 %, Holm). First number: the least difference of flatness "
        "to AT among the methods that beat it; second: the largest difference of flatness between the method with the "
        "lowest mean robust loss and another. Welch intervals with Bonferroni's correction for all these differences.",
        (
            Number("least lead in flatness over AT of the methods that beat AT (nats)", 0.0, on.flatter_than_at),
            Number("lead in flatness of the flattest over the lowest robust loss (nats)", 0.0, on.best_is_not_flattest),
        ),
    ),
    Rule(
        "C6",
        "Flatness is invariant under scaling of weights that leaves the function unchanged.",
        f"{PAPER}, scale invariance",
        "A property of the measure, not of networks: the test "
        "test_measures_are_invariant_bit_for_bit_to_scaling_undone_by_normalisation proves it for scaled layers.",
        (
            Number(
                "change of flatness under scaling",
                0.0,
                _untestable("records hold no scaled network; the tests of the measures prove the invariance"),
            ),
        ),
    ),
    Rule(
        "C7",
        "Robust error follows robust loss up to 2.3 nats, the loss of a uniform prediction, and hardly above.",
        f"{PAPER}, robust error against robust loss",
        "Two least-squares lines of robust error (worst case of all attacks) on robust test loss over methods, up to "
        "log(10) = 2.30 nats and above; percentile interval of the difference of slopes as in C3. At least 5 methods "
        "on each side.",
        (Number("slope of robust error on robust loss below 2.30 nats minus above (1/nat)", 0.0, on.kink),),
    ),
    Rule(
        "C8",
        "Flatness of the clean loss predicts robust loss less well than flatness of the robust loss.",
        f"{PAPER}, clean and robust flatness",
        "Spearman with robust test loss of average-case flatness minus that of average-case flatness of the clean "
        "loss, over the same methods and the same resamples.",
        (Number("Spearman of robust flatness minus Spearman of clean flatness", 0.0, on.lead_over_clean),),
    ),
    Rule(
        "O1",
        "Adversarial examples lie in flat regions.",
        "arXiv 2510.14231",
        "AT, last checkpoint: mean rise of the robust loss under moved weights, of correct test images that the "
        "protocol's first attack leaves correct minus of those that it fools; Student's t over seeds.",
        (Number("average-case flatness of unfooled minus fooled images (nats)", 0.0, on.fooled_are_flat),),
    ),
    Rule(
        "O2",
        "Networks that are more robust through regularisation are sharper.",
        "arXiv 2510.12451",
        "Of the methods that beat AT as in C5, the share whose mean average-case flatness is above AT's; exact "
        "(Clopper-Pearson) interval, which takes methods as independent.",
        (Number("share of sharper methods among those that beat AT", 0.5, on.share_of_sharper),),
    ),
    Rule(
        "O3",
        "Measures of confidence choose better models than flatness.",
        "OpenReview X4RoujAYnY",
        "Normalised regret in robust test loss of the method with the lowest average-case flatness minus that of the "
        "method with the lowest clean test loss; percentile interval as in C3.",
        (Number("regret of picking by flatness minus by clean loss", 0.0, on.regret_over_confidence),),
    ),
    Rule(
        "O4",
        "AWP over-penalises curvature: a stronger penalty is flatter and less robust.",
        "arXiv 2410.07719",
        "AT+AWP at its largest gamma against its smallest, last checkpoint: robust test loss (seeds and images) and "
        "average-case flatness (seeds, Welch).",
        (
            Number("rise of robust test loss with gamma (nats)", 0.0, on.awp_ends(lambda facts: on.LOSS, 1)),
            Number(
                "gain in average-case flatness with gamma (nats)", 0.0, on.awp_ends(lambda facts: facts.average, -1)
            ),
        ),
    ),
)


def claims(
    groups: Sequence[SeedGroup],
    rows: Sequence[BoardRow],
    columns: Sequence[BoardColumn],
    correlations: Sequence[Correlation],
) -> tuple[Claim, ...]:
    """Every claim of `CLAIMS` on one board; () for a board without rows.

    Parameters
    ----------
    groups, rows : outcomes by seed, and display, of the same rows in the same order.
    correlations : those of the board.
    """
    facts = Facts.of(groups, rows, columns, correlations)
    return tuple(_decided(rule, facts) for rule in CLAIMS) if rows else ()


def _decided(rule: Rule, facts: Facts) -> Claim:
    parts = tuple(_part(number, number.evidence(facts)) for number in rule.numbers)
    verdict = combined([part.verdict for part in parts if part.decides])
    return Claim(
        id=rule.id,
        claim=rule.claim,
        source=rule.source,
        rule=rule.rule,
        verdict=verdict,
        sentence=_sentence(verdict, parts),
        parts=parts,
    )


def _part(number: Number, found: Evidence) -> ClaimPart:
    estimates = (found.value, found.low, found.high)
    if not all(math.isfinite(each) for each in estimates if each is not None):
        found = Evidence(reason="a value of a network is too large for an interval")
    return ClaimPart(
        measured=number.measured,
        threshold=number.threshold,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        reason=found.reason,
        decides=number.decides,
    )


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a claim of several numbers."""
    if "contradicted" in verdicts:
        return "contradicted"
    return verdicts[0] if len({*verdicts}) == 1 else "undecided"


def _sentence(verdict: Verdict, parts: Sequence[ClaimPart]) -> str:
    """The verdict with every number, its interval and n, or with the reasons why there are none."""
    if verdict == "not testable":
        said = dict.fromkeys(part.reason for part in parts)
    else:
        said = dict.fromkeys(_said(part, alone=len(parts) == 1) for part in parts)
    return f"{verdict.capitalize()}: {'; '.join(said)}."


def _said(part: ClaimPart, alone: bool) -> str:
    """`Spearman of ... is 0.78 [0.52, 0.94], claimed above 0.8 (30 methods: undecided)`; alone: without the verdict."""
    if part.value is None or part.low is None or part.high is None:
        return f"{part.measured} is not testable ({part.reason})"
    decimals = 2 if max(abs(part.low), abs(part.high)) >= 0.1 else 4
    value, low, high = (f"{round(number, decimals) + 0:.{decimals}f}" for number in (part.value, part.low, part.high))
    verdict = "" if alone else f": {part.verdict}{'' if part.decides else ', outside the verdict'}"
    return f"{part.measured} is {value} [{low}, {high}], claimed above {part.threshold:g} ({part.n}{verdict})"
