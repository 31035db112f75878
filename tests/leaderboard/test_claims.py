"""Claims on made-up boards where each is true, false, undecided or not testable; numbers against closed forms."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.claim_boards import AVERAGE, CLEAN, MEASURES, WORST, decided, made
from helpers.fake_records import REGISTRY, league, submitted
from scipy import stats

from robflat_bench.leaderboard.build import build_leaderboard
from robflat_bench.leaderboard.claim_evidence import settings
from robflat_bench.leaderboard.claims import CLAIMS, combined
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.model import ClaimPart
from robflat_bench.leaderboard.rows import SeedGroup

T = float(stats.t.ppf(0.975, 2))
RNG = np.random.default_rng(3)
NOISE = RNG.normal(size=40)
METHODS = [f"method-{k}" for k in range(40)]


def many(count=30, *, flat=None, **others):
    """Methods whose k-th value is k, or f(k)."""
    functions = {"loss": lambda k: k / 10, "flat": flat or (lambda k: k / 10), **others}
    return [made(METHODS[k], **{name: float(f(k + 1)) for name, f in functions.items()}) for k in range(count)]


def grids(flat_of_loss):
    """Four methods with four strengths each: loss falls with the strength. flat_of_loss(loss, strength)."""
    return [
        made(f"method-{m}(beta={beta}.0)", loss=m + 1 / beta, flat=float(flat_of_loss(m + 1 / beta, beta)))
        for m, beta in product(range(1, 5), range(1, 5))
    ]


def bent(below, above, count=12):
    """Robust losses from 1.3 to 3.3, and errors on two lines that meet at 2.3 nats."""
    losses = np.linspace(1.3, 3.3, count)
    errors = [0.5 + (below if loss <= math.log(10) else above) * (loss - math.log(10)) for loss in losses]
    return [made(METHODS[k], loss=x, error=e) for k, (x, e) in enumerate(zip(losses, errors, strict=True))]


def against_at(*others):
    """AT with loss 1 and flatness 1, and others as (loss, flatness)."""
    return [made(), *(made(METHODS[k], loss=loss, flat=flat) for k, (loss, flat) in enumerate(others))]


def awp(strong_loss, strong_flat, gammas=(0.005, 0.01), noise=0.01):
    weak, strong = (f"at+awp(gamma={gamma}, steps=1)" for gamma in gammas)
    return [made(weak, noise=noise), made(strong, loss=strong_loss, flat=strong_flat, noise=noise)]


def noisy(k):
    return 1 + abs(NOISE[k])


def nearly(k):
    return noisy(k) + (k % 3) / 3


OVERFITS = {"best": {"loss": 0.5, "flat": 0.25}, "heldout": (2.0, 1.0, 0.9, 1.5)}
IMPROVES = {"best": {"loss": 1.5, "flat": 4.0}, "heldout": (2.0, 1.0, 0.9, 0.8)}
BOARDS = {
    "C1": {
        "supported": [made(**OVERFITS)],
        "contradicted": [made(**IMPROVES)],
        "undecided": [made(best={"loss": 1.0}, heldout=(2.0, 1.0, 0.9, 1.001))],
        "not testable": [made(seeds=2, **OVERFITS)],
    },
    "C2": {
        "supported": [made(**OVERFITS)],
        "contradicted": [made(**IMPROVES)],
        "undecided": [made()],
        "not testable": [made(best={"flat": -0.5})],
    },
    "C3": {
        "supported": many(gap=lambda k: k),
        "contradicted": many(flat=lambda k: 4 - k / 10, gap=lambda k: k),
        "undecided": many(flat=noisy, gap=nearly, loss=nearly),
        "not testable": many(9, gap=lambda k: k),
    },
    "C4": {
        "supported": grids(lambda loss, beta: loss),
        "contradicted": grids(lambda loss, beta: 10 - loss),
        "undecided": grids(lambda loss, beta: 2 + math.sin(40 * loss)),
        "not testable": many(),
    },
    "C5": {
        "supported": against_at((0.5, 0.5), (0.6, 0.3), (2.0, 3.0)),
        "contradicted": against_at((0.5, 0.5), (0.6, 2.0)),
        "undecided": against_at((0.5, 0.995), (0.6, 0.5)),
        "not testable": [made(METHODS[0])],
    },
    "C7": {
        "supported": bent(0.3, 0.01),
        "contradicted": bent(0.01, 0.2),
        "undecided": bent(0.1, 0.1),
        "not testable": bent(0.3, 0.01, 8),
    },
    "C8": {
        "supported": many(clean=noisy),
        "contradicted": many(flat=noisy, clean=lambda k: k),
        "undecided": many(clean=lambda k: k),
        "not testable": [made(name, lacks=[CLEAN]) for name in METHODS[:12]],
    },
    "O1": {
        "supported": [made(fooled_rise=0.5)],
        "contradicted": [made(fooled_rise=1.5)],
        "undecided": [made(fooled_rise=1.0)],
        "not testable": [made(lacks=[AVERAGE])],
    },
    "O2": {
        "supported": against_at(*((0.5, 2.0 + k) for k in range(6))),
        "contradicted": against_at(*((0.5, 0.1 + k / 10) for k in range(6))),
        "undecided": against_at((0.5, 2.0), (0.5, 3.0)),
        "not testable": against_at((2.0, 2.0)),
    },
    "O3": {
        "supported": many(flat=lambda k: 10 - k / 10, clean_loss=lambda k: k / 10),
        "contradicted": many(clean_loss=lambda k: 10 - k / 10),
        "undecided": many(clean_loss=lambda k: k / 10),
        "not testable": many(9),
    },
    "O4": {
        "supported": awp(1.5, 0.5),
        "contradicted": awp(0.5, 0.5),
        "undecided": awp(1.001, 0.5),
        "not testable": awp(1.5, 0.5, gammas=(0.01, 0.01)),
    },
}


@pytest.mark.parametrize(("claim", "verdict"), [(c, v) for c, of in BOARDS.items() for v in of])
def test_a_board_where_the_claim_is_so_gets_that_verdict(claim, verdict):
    found = decided(*BOARDS[claim][verdict])[claim]
    assert found.verdict == verdict, found.sentence
    assert found.sentence.startswith(f"{verdict.capitalize()}: ")
    for part in found.parts:
        assert (part.low is None) == (part.high is None) == bool(part.reason)
        if part.low is not None and verdict != "not testable":
            assert part.low <= part.value <= part.high
            assert f" is {part.value:.2f} [" in found.sentence or abs(part.high) < 0.1
            assert part.n in found.sentence
            assert re.search(r"\d", part.n)
        else:
            assert part.reason in found.sentence


def test_every_claim_has_boards_but_scaling_which_names_its_proof():
    assert {rule.id for rule in CLAIMS} == {*BOARDS, "C6"}
    scaling = next(rule for rule in CLAIMS if rule.id == "C6")
    proof = re.search(r"test_\w+", scaling.rule)[0]
    assert f"def {proof}(" in (Path(__file__).parents[1] / "measures" / "test_measures.py").read_text("utf-8")
    assert decided(made())["C6"].verdict == "not testable"


# --- numbers ----------------------------------------------------------------------------------------------------------


def interval(values):
    mean, reach = np.mean(values), T * np.std(values, ddof=1) / math.sqrt(3)
    return [mean, mean - reach, mean + reach]


def numbers(part):
    return [part.value, part.low, part.high]


def test_overfitting_is_the_t_interval_of_paired_differences():
    """Last and best share their seed noise: differences are exactly 0.5. The held-out rise has the noise of its end."""
    test, heldout = decided(made(**OVERFITS))["C1"].parts
    assert numbers(test) == pytest.approx([0.5, 0.5, 0.5])
    assert numbers(heldout) == pytest.approx(interval([0.49, 0.5, 0.51]), rel=1e-5)
    assert test.n == "3 seeds x 40 images"


def test_the_rise_counts_from_the_last_check_before_the_first_drop_by_half():
    rates, heldout = (0.02, 0.1, 0.08, 0.01, 0.005), (9.0, 5.0, None, 4.0, 6.0)
    part = decided(made(rates=rates, heldout=heldout, noise=0.0))["C1"].parts[1]
    assert part.value == 1.0
    part = decided(made(rates=(0.1, 0.07, 0.05, 0.03)))["C1"].parts[1]
    assert part.reason == "the learning rate has no drop by half after a check on held-out images"


def test_the_ratio_of_flatness_is_a_geometric_mean():
    part = decided(made(flat=2.0, best={"flat": 1.0}, noise=0.1))["C2"].parts[0]
    logs = interval([math.log(one / other) for one, other in ((1.9, 0.9), (2.0, 1.0), (2.1, 1.1))])
    assert numbers(part) == pytest.approx(np.exp(logs), rel=1e-5)


def test_correlations_of_a_claim_are_those_of_the_board():
    found = decided(*many(flat=noisy, gap=lambda k: k))["C3"].parts
    flat, loss = [noisy(k + 1) for k in range(30)], range(30)
    assert found[0].value == pytest.approx(stats.spearmanr(flat, loss).statistic, rel=1e-5)


def test_several_times_is_reported_and_does_not_decide():
    found = decided(made(flat=1.5, best={"flat": 1.0}))["C2"]
    assert [part.verdict for part in found.parts] == ["supported", "supported", "contradicted"]
    assert found.verdict == "supported"


def test_leads_over_at_hold_simultaneously():
    """Two methods beat AT by flatness leads .5 and .4 with seed noise .02 on each side: Welch with 4 degrees of
    freedom and half the level, because there are two."""
    rows = [made(noise=0.02), made("a", loss=0.5, flat=0.5, noise=0.02), made("b", loss=0.5, flat=0.6, noise=0.02)]
    part = decided(*rows)["C5"].parts[0]
    reach = float(stats.t.ppf(1 - 0.025 / 2, 4)) * math.sqrt(2 * 0.02**2 / 3)
    assert numbers(part) == pytest.approx([0.4, 0.4 - reach, 0.4 + reach], rel=1e-5)
    assert part.n == "2 of 2 methods beat AT in robust loss"


def test_the_best_method_is_compared_with_all_others():
    """The lowest robust loss has flatness .5; of the others one has .3 and one 2."""
    rows = [made(flat=2.0), made("a", loss=0.5, flat=0.5), made("b", loss=0.8, flat=0.3)]
    part = decided(*rows)["C5"].parts[1]
    reach = float(stats.t.ppf(1 - 0.025 / 2, 4)) * math.sqrt(2 * 0.01**2 / 3)
    assert numbers(part) == pytest.approx([0.2, 0.2 - reach, 0.2 + reach], rel=1e-5)
    assert part.n == "a against 2 methods"


def test_the_share_of_sharper_methods_has_the_exact_interval():
    part = decided(*against_at((0.5, 2.0), (0.5, 3.0), (0.5, 0.2)))["O2"].parts[0]
    exact = stats.binomtest(2, 3).proportion_ci(0.95, "exact")
    assert numbers(part) == pytest.approx([2 / 3, exact.low, exact.high], rel=1e-5)


def test_fooled_images_are_those_that_are_correct_when_clean():
    """Images 0 to 3 are wrong when clean and do not count; of the others, even ones are fooled."""
    part = decided(made(fooled_rise=0.5))["O1"].parts[0]
    assert numbers(part) == pytest.approx(interval([0.49, 0.5, 0.51]), rel=1e-5)
    assert part.n == "3 seeds, 54 fooled images"


def test_slopes_and_regrets_are_those_of_the_lines_and_picks():
    assert decided(*bent(0.3, 0.01))["C7"].parts[0].value == pytest.approx(0.29, abs=0.01)
    assert decided(*BOARDS["O3"]["supported"])["O3"].parts[0].value == 1.0


def test_a_stronger_penalty_is_compared_by_welch_over_seeds_and_images():
    """Equal example profiles leave the seeds: noise .01 on each side, 4 degrees of freedom."""
    loss, flatness = decided(*awp(1.5, 0.5))["O4"].parts
    reach = float(stats.t.ppf(0.975, 4)) * math.sqrt(2 * 0.01**2 / 3)
    assert numbers(loss) == pytest.approx([0.5, 0.5 - reach, 0.5 + reach], rel=1e-4)
    assert numbers(flatness) == pytest.approx([0.5, 0.5 - reach, 0.5 + reach], rel=1e-5)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.81, 0.9, "supported"), (0.8, 0.9, "undecided"), (0.7, 0.8, "undecided"), (0.1, 0.79, "contradicted")],
)
def test_an_interval_that_holds_the_threshold_decides_nothing(low, high, verdict):
    assert ClaimPart(measured="it", threshold=0.8, value=low, low=low, high=high).verdict == verdict
    assert ClaimPart(measured="it", threshold=0.8).verdict == "not testable"


def test_one_contradicted_number_contradicts_and_all_must_support():
    assert combined(["supported", "contradicted", "undecided"]) == "contradicted"
    assert combined(["supported", "supported"]) == "supported"
    assert combined(["not testable", "not testable"]) == "not testable"
    assert combined(["supported", "not testable"]) == "undecided"
    assert combined(["undecided", "not testable"]) == "undecided"


def test_measures_are_found_by_coupling_whatever_their_other_parameters():
    renamed = {AVERAGE: "xi=0.25", CLEAN: "xi=0.5", WORST: "xi=0.01"}
    assert all(text in name for name, text in renamed.items())
    found = decided(*many(clean=noisy), measures=(CLEAN, WORST, AVERAGE))["C8"]
    assert found.verdict == "supported", "the order of the columns does not matter"
    without = decided(*many(), measures=(AVERAGE, WORST))["C8"]
    assert without.parts[0].reason == "no run of the board measures flatness of the clean loss"


def test_a_measure_that_is_no_component_is_passed_over():
    """Added evaluations may hold any text."""
    found = decided(*many(), measures=("measure:average-case(garbage", *MEASURES))["C3"]
    assert found.parts[0].value == 1.0


def test_values_of_any_size_give_finite_numbers():
    """As a hostile record may have them: ratios of which each overflows or is 0, and exp of the interval's end, too."""
    pairs = ((1e100, 1e-250), (1e-250, 1e100), (1.0, 1.0))
    rows = [made(flat=last, best={"flat": best}, noise=0.0, seeds=1) for last, best in pairs]
    runs, networks = (tuple(getattr(group, k)[0] for group, _ in rows) for k in ("runs", "networks"))
    for part in decided((SeedGroup("x", runs, networks), rows[0][1]))["C2"].parts:
        assert all(math.isfinite(number) for number in numbers(part))


def test_rows_are_a_grid_if_they_differ_in_one_number_only():
    def axes(method, changes=None):
        return settings(made(method, changes=changes)[1])

    def differ(one, other):
        return [name for name in {*one, *other} if one.get(name) != other.get(name)]

    at = axes("at")
    assert differ(at, axes("at", {"weight_decay": 0.01})) == ["recipe.weight_decay"]
    assert differ(axes("trades(beta=1.0)"), axes("trades(beta=6.0)")) == ["trades.beta"]
    assert len(differ(at, axes("at", {"activation": "silu"}))) > 1
    assert len(differ(at, axes("at+awp(gamma=0.01)"))) > 1
    assert len(differ(at, axes("mart"))) > 1
    assert len(differ(axes("at+ema(warmup=true)"), axes("at+ema(warmup=false)"))) > 1


def test_methods_of_fewer_than_three_seeds_support_no_claim():
    """Although the board shows a correlation of single networks where no row is ranked."""
    rows = [made(METHODS[k], loss=k / 10, flat=k / 10 + 1, seeds=2) for k in range(12)]
    found = decided(made(seeds=2), *rows)
    assert {one.verdict for one in found.values()} == {"not testable"}
    few = "0 methods of 3 seeds have both values; an interval needs 10"
    assert found["C3"].sentence == f"Not testable: {few}."
    assert decided(*rows, *many())["C3"].parts[0].n == "30 methods"


def test_an_empty_board_has_no_claims():
    assert decided() == {}


def test_names_and_order_of_rows_change_no_verdict_and_no_number():
    rows = many(gap=lambda k: k, clean=noisy)
    one, other = decided(made(**OVERFITS), *rows), decided(*rows[::-1], made(**OVERFITS))
    assert one == other


# --- from records -----------------------------------------------------------------------------------------------------


def test_a_board_of_records_has_its_claims(tmp_path):
    submitted(tmp_path / "board", league(tmp_path / "runs", {"at": 0.0, "trades": 0.4, "at+awp": 0.7}))
    found, _ = read_entries(tmp_path / "board", REGISTRY)
    board = next(one for one in build_leaderboard(found, tmp_path, REGISTRY).boards if one.rows)
    by_id = {one.id: one for one in board.claims}
    assert list(by_id) == [rule.id for rule in CLAIMS]
    assert by_id["C3"].parts[0].reason == "3 methods of 3 seeds have both values; an interval needs 10"
    losses = [
        [run.record.results[name].robust_loss.test for run in found if run.record.method == "at"]
        for name in ("last", "best")
    ]
    assert by_id["C1"].parts[0].value == pytest.approx(np.subtract(*losses).mean(), rel=1e-5)
