"""Evaluation against results by hand: robust error as a union, gaps, flags, memory batches, keyed random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robflat_bench.attacks.fgsm import FGSM
from robflat_bench.config.protocol import Attacked, Fixed, Measured, ThreatModel, load
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import (
    Attack,
    AttackInfo,
    Examples,
    ImageShape,
    Journal,
    Measure,
    MeasureInfo,
    Measurement,
    NoValue,
    Params,
    Pool,
    RunFailed,
    Threat,
    Workspace,
)
from robflat_bench.core.batching import MEMORY_BATCH, in_batches, padded_batches
from robflat_bench.core.randomness import generator, normal_like, per_example_uniform, uniform_like
from robflat_bench.data.splits import Splits
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.quantities import autoattack_missed, total
from robflat_bench.records.record import Result, check, totals
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.training.loop import heldout_check

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------------------
# Robust error is a union
# ---------------------------------------------------------------------------------------------------------


class Wave(nn.Module):
    """Two classes from one pixel u: logits (cos(6 u), 0). A step of 0.5 uphill in loss may land beyond the hill."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        first = self.gain * torch.cos(6 * x.flatten(1)[:, 0])
        return torch.stack([first, torch.zeros_like(first)], 1)


# Pixel (of 255), label, wrong when clean, wrong under FGSM with epsilon 0.5.
CASES = [
    (102, 0, True, False),  # cos(2.4) < 0; uphill is towards cos(3.14), but the step ends at cos(5.4) > 0
    (26, 0, False, True),  # cos(0.6) > 0, cos(3.6) < 0
    (0, 0, False, False),  # no gradient at the top of the wave: the step has length 0
    (0, 1, True, True),
    (5, 0, False, True),
]


def splits(test: list[int], train: list[int]) -> Splits:
    def pool(rows: list[int]) -> Pool:
        x = np.array([CASES[row][0] for row in rows], dtype=np.uint8).reshape(-1, 1, 1, 1)
        return Pool(x, np.array([CASES[row][1] for row in rows], dtype=np.uint8), np.array(rows, dtype=np.int64))

    return Splits(
        {"test": pool(test), "train": pool(train), "heldout": pool(test)},
        DatasetRef(name="wave", checksum="0" * 64, canonical=False, origin="by hand"),
        ImageShape(1, 1, 2, (0.5,), (0.5,)),
        spare=pool([]),
    )


@pytest.fixture(scope="module")
def fixed(registry) -> Fixed:
    """The laptop protocol with a radius of 0.5."""
    return load(registry).fixed.model_copy(update={"threat": ThreatModel(epsilon=0.5)})


def evaluated(
    registry, fixed: Fixed, model: nn.Module, data: Splits, plan: Plan, folder
) -> tuple[Result, dict[str, np.ndarray]]:
    session = Session(registry, replace(load(registry), fixed=fixed), data, Store(folder), "cpu")
    return evaluate(session, plan, EvaluatedModel(model, "last", 3), StoredJournal(folder))


def test_an_image_misclassified_clean_counts_although_its_attack_is_classified_right(registry, fixed, tmp_path):
    plan = Plan((Attacked(attack="fgsm", test=5, train=2),), ())
    result, outcomes = evaluated(registry, fixed, Wave(), splits([0, 1, 2, 3, 4], [1, 2]), plan, tmp_path)
    assert outcomes["last/test/clean/error"].tolist() == [case[2] for case in CASES]
    assert outcomes["last/test/fgsm/error"].tolist() == [case[3] for case in CASES]
    assert result.clean_error == 2 / 5
    assert result.robust_error["fgsm"].test == 4 / 5, "one more than the attack alone, two more than clean"
    assert result.robust_error["fgsm"].train == 1 / 2
    assert result.clean_error_train == 0
    assert result.gap.robust_error == pytest.approx(4 / 5 - 1 / 2)
    assert result.flags.zero_gradients == 2 / 5
    assert not result.flags.random_forward
    pixels = torch.tensor([0.9, 26 / 255 + 0.5, 0, 0, 5 / 255 + 0.5], dtype=torch.float64)
    logits = torch.cos(6 * pixels)
    expected = torch.log(1 + torch.exp(-logits * torch.tensor([1, 1, 1, -1, 1])))
    assert outcomes["last/test/fgsm/loss"] == pytest.approx(expected.numpy(), abs=1e-5)
    assert result.robust_loss.test == pytest.approx(float(expected.mean()), abs=1e-5)
    assert result.gap.robust_loss == pytest.approx(float(expected.mean() - expected[1:3].mean()), abs=1e-5)
    assert check({"last": result}, outcomes) == []


def test_held_out_error_is_a_union_too():
    job = SimpleNamespace(
        model=Wave(),
        splits=splits([0, 1, 2, 3, 4], [0]),
        device="cpu",
        dtype=torch.float32,
        selection=FGSM(Params(), Threat(0.5)),
        evaluation_seed=0,
    )
    clean, robust, _ = heldout_check(job)
    assert (clean, robust) == (2 / 5, 4 / 5)


def test_robust_error_is_over_the_attacked_examples_if_more_are_evaluated_clean():
    outcomes = {
        "best/test/clean/error": np.array([True, False, False, True, True]),
        "best/test/pgd/error": np.array([False, False, True]),
        "best/test/pgd/loss": np.array([1.0, 2.0, 6.0]),
    }
    assert total(outcomes, "best", "robust_error", "pgd", "test") == pytest.approx(2 / 3)
    assert total(outcomes, "best", "robust_loss", "pgd", "test") == 3.0
    assert total(outcomes, "best", "robust_error", "pgd", "train") is None
    found = totals(outcomes, "best", ["pgd"])
    assert found["clean_error"] == 3 / 5
    assert found["robust_error"]["pgd"].test == pytest.approx(2 / 3)
    assert found["gap"].robust_error is None


def test_measures_and_attacks_get_the_protocols_seed_and_all_their_examples(registry, fixed, tmp_path):
    """What `evaluate` reports is what the measure says on those examples under the evaluation seed."""
    seeded = fixed.model_copy(update={"seed": 4})
    text = resolve(registry, "measure", "average-case(draws=3, steps=2, xi=0.3)").canonical
    plan = Plan((Attacked(attack="fgsm", test=2),), (Measured(measure=text, test=4),))
    data, model = splits([0, 1, 2, 3, 4], [0]), Wave()
    result, outcomes = evaluated(registry, seeded, model, data, plan, tmp_path)
    measure = AverageCase(AverageCaseParams(draws=3, steps=2, xi=0.3), Threat(0.5))
    examples = data.examples("test", "cpu", torch.float32, 4)
    direct, other = (measure.measure(model, examples, Workspace(MEMORY_BATCH, seed)) for seed in (4, 5))
    assert result.measures[text].value == direct.value != other.value
    assert result.measures[text].n == 4
    assert np.array_equal(outcomes[f"last/measure/{text}/losses"], direct.arrays["losses"])
    assert len(outcomes["last/test/fgsm/error"]) == 2
    assert len(outcomes["last/test/clean/error"]) == 4


def test_a_finished_evaluation_is_read_back_bit_for_bit(registry, fixed, tmp_path):
    text = resolve(registry, "measure", "worst-case(restarts=2, steps=2, strong_steps=3, xi=0.3)").canonical
    pgd = resolve(registry, "attack", "pgd(steps=3)").canonical
    plan = Plan((Attacked(attack=pgd, test=5),), (Measured(measure=text, test=5),))
    data, model = splits([0, 1, 2, 3, 4], [0]), Wave()
    counter = PassCounter(model)
    first, outcomes = evaluated(registry, fixed, model, data, plan, tmp_path)
    spent, counter.forward = counter.forward, 0
    second, again = evaluated(registry, fixed, model, data, plan, tmp_path)
    assert second.model_dump(exclude={"seconds"}) == first.model_dump(exclude={"seconds"})
    assert outcomes.keys() == again.keys()
    assert all(np.array_equal(again[name], array) for name, array in outcomes.items())
    assert counter.forward == spent - 5 * (4 + 12 + 8), (
        "the attack's passes, those of two restarts, moved and not, and the higher end's"
    )
    measured = first.measures[text]
    assert (measured.forward, measured.backward) == (5 * (12 + 8), 5 * (8 + 6)), "of five images"
    with torch.no_grad():
        model.gain.fill_(2.0)
    other, _ = evaluated(registry, fixed, model, data, plan, tmp_path)
    assert other.measures[text].value != first.measures[text].value, "other weights, other units"


SHARING = (
    "margin(coupling=frozen, steps=3)",
    "average-case(coupling=frozen, draws=2, steps=3, xi=0.3)",
    "average-case(coupling=reattack, draws=2, steps=3, xi=0.3)",
    "lpf(coupling=reattack, draws=2, steps=3, warm=false)",
    "margin(coupling=frozen, steps=4)",
)
"""Measures of one attack at w, the last one of another; each but the third reads it first in some order."""


def test_one_attack_at_w_serves_every_measure_and_changes_none(registry, fixed, tmp_path):
    """Bit for bit the measure alone, in both orders; the attack is made once, and counted in each measure's passes."""
    texts = [resolve(registry, "measure", text).canonical for text in SHARING]
    data = splits([0, 1, 2, 3, 4], [0])

    def under(folder: str, *chosen: str) -> tuple[Result, dict[str, np.ndarray], int]:
        model = Wave()
        counter = PassCounter(model)
        plan = Plan((Attacked(attack="fgsm", test=5),), tuple(Measured(measure=text, test=5) for text in chosen))
        return *evaluated(registry, fixed, model, data, plan, tmp_path / folder), counter.forward

    *_, rest = under("none")
    alone = {text: under(f"alone-{number}", text) for number, text in enumerate(texts)}
    apart = sum(forward - rest for *_, forward in alone.values())
    for folder, chosen in (("all", texts), ("backwards", texts[::-1])):
        result, outcomes, forward = under(folder, *chosen)
        assert forward - rest == apart - 5 * 3 * 4, "four measures share one attack of three steps"
        for text, (own, arrays, _) in alone.items():
            one, other = (found.measures[text].model_dump(exclude={"seconds"}) for found in (own, result))
            assert one == other
            assert all(np.array_equal(outcomes[name], array) for name, array in arrays.items() if text in name)


def test_equal_weights_on_other_numbers_of_examples_share_no_units(registry, fixed, tmp_path):
    """Best and last may be the same weights, and a protocol may ask each for its own number of examples."""
    data, alone = splits([1, 3, 4, 2, 0], [1, 3, 4, 2, 0]), {}
    text = resolve(registry, "measure", "hessian-trace(probes=2)").canonical
    for folder in ("shared", "alone"):
        for count in (4, 2):
            plan = Plan(
                (Attacked(attack="fgsm", test=count, train=count),), (Measured(measure=text, test=count, train=count),)
            )
            where = tmp_path / folder / str(count if folder == "alone" else "")
            result, outcomes = evaluated(registry, fixed, Wave(), data, plan, where)
            lengths = [len(outcomes[f"last/{split}/fgsm/error"]) for split in ("test", "train")]
            assert lengths == [count, count]
            values = [found[text].value for found in (result.measures, result.measures_train)]
            assert alone.setdefault(count, values) == values


# ---------------------------------------------------------------------------------------------------------
# What components hand back
# ---------------------------------------------------------------------------------------------------------


class Handing(Attack):
    """Hands back what `made` makes of (attack, model, images)."""

    made: Callable[[Attack, nn.Module, Tensor], Tensor]

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        return type(self).made(self, model, examples.x)

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        raise NotImplementedError


class Spoiling(Measure):
    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        halved(self, model, examples.x)
        raise NoValue("there is none")


def halved(_: object, model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        model.gain.mul_(0.5)
    return x


@pytest.fixture
def strangers(registry) -> Registry:
    """The built-in components and two that misbehave: the attack `handing` as a test says, the measure `spoiling`."""
    extended, provider = Registry(registry.plugins), registry.get("attack", "fgsm").provider
    extended.add(AttackInfo("handing", "-", f"{__name__}:Handing"), provider)
    extended.add(MeasureInfo("spoiling", "-", f"{__name__}:Spoiling"), provider)
    return extended


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda attack, model, x: (x + 0.6).clamp(0, 1), "left the threat model: 0.6 from the images where 0.5 is"),
        (lambda attack, model, x: x - 0.1, "pixels from -0.1 to"),
        (lambda attack, model, x: torch.full_like(x, torch.nan), "nan from the images"),
        (lambda attack, model, x: x.double(), r"made torch.float64\[5, 1, 1, 1\] of torch.float32"),
        (lambda attack, model, x: x[:2], r"made torch.float32\[2, 1, 1, 1\]"),
        (halved, "left the network changed"),
        (lambda attack, model, x: x * model.train().gain, "left the network changed"),
    ],
)
def test_an_attack_that_breaks_a_rule_fails_the_run(strangers, fixed, tmp_path, monkeypatch, made, says):
    monkeypatch.setattr(Handing, "made", made, raising=False)
    plan = Plan((Attacked(attack="handing", test=5),), ())
    with pytest.raises(RunFailed, match=f"the attack handing .*{says}"):
        evaluated(strangers, fixed, Wave(), splits([0, 1, 2, 3, 4], [0]), plan, tmp_path)


def test_an_attack_may_go_to_the_edge_of_ball_and_box(strangers, fixed, tmp_path, monkeypatch):
    monkeypatch.setattr(Handing, "made", lambda attack, model, x: (x + 0.5 + 5e-7).clamp(0, 1), raising=False)
    plan = Plan((Attacked(attack="handing", test=5),), ())
    evaluated(strangers, fixed, Wave(), splits([0, 1, 2, 3, 4], [0]), plan, tmp_path)


def test_a_measure_that_changes_the_weights_fails_the_run(strangers, fixed, tmp_path):
    plan = Plan((Attacked(attack="fgsm", test=5),), (Measured(measure="spoiling", test=5),))
    with pytest.raises(RunFailed, match="the measure spoiling left the network changed"):
        evaluated(strangers, fixed, Wave(), splits([0, 1, 2, 3, 4], [0]), plan, tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------


class Noisy(Wave):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * torch.randn(2)


def test_a_forward_that_differs_is_flagged(registry, fixed, tmp_path):
    plan = Plan((Attacked(attack="fgsm", test=5),), ())
    with torch.random.fork_rng():
        result, _ = evaluated(registry, fixed, Noisy(), splits([0, 1, 2, 3, 4], [0]), plan, tmp_path)
    assert result.flags.random_forward


def test_examples_only_the_weaker_attack_broke_are_counted(registry):
    strong, weak, weaker = (
        resolve(registry, "attack", text) for text in ("autoattack(version=apgd)", "pgd(steps=20)", "fgsm")
    )
    outcomes = {
        "last/test/clean/error": np.array([False, False, False, True, False, False]),
        f"last/test/{strong.canonical}/error": np.array([True, False, False, False, False]),
        f"last/test/{weak.canonical}/error": np.array([True, True, False, True, False, True]),
        f"last/test/{weaker.canonical}/error": np.array([False, True, True, True, False, True]),
    }
    assert autoattack_missed(outcomes, "last", [strong.canonical, weak.canonical, weaker.canonical]) == 2
    assert autoattack_missed(outcomes, "last", [strong.canonical, weak.canonical]) == 1
    assert autoattack_missed(outcomes, "last", [weak.canonical, weaker.canonical]) is None
    assert autoattack_missed(outcomes, "last", [strong.canonical]) is None


# ---------------------------------------------------------------------------------------------------------
# Memory batches
# ---------------------------------------------------------------------------------------------------------


def numbered(count: int) -> Examples:
    """Example i has one pixel i, label i mod 7 and index 100 + i."""
    rows = torch.arange(count)
    return Examples(rows.double().reshape(-1, 1, 1, 1), rows % 7, rows + 100)


@pytest.mark.parametrize(
    ("count", "batch", "size"), [(10, 4, 4), (9, 5, 5), (8, 4, 4), (6, 5, 3), (3, 4, 3), (1, 5, 1), (4, 1, 1)]
)
def test_batches_have_one_size_and_cover_every_example_once(count, batch, size):
    covered, sizes = [], set()
    for part, counting in padded_batches(numbered(count), batch):
        sizes.add(len(part))
        assert torch.equal(part.index - 100, part.x.flatten().long())
        assert torch.equal(part.y, part.x.flatten().long() % 7)
        covered += part.index[:counting].tolist()
        assert set(part.index[counting:].tolist()) <= set(part.index[:counting].tolist()), "padding repeats its rows"
    assert covered == list(range(100, 100 + count))
    assert sizes == {size}


class Naming(Journal):
    def __init__(self) -> None:
        self.names: list[str] = []

    def unit(self, name, compute):
        self.names.append(name)
        return compute()


def test_results_come_in_order_from_units_that_no_other_batch_size_shares():
    names = []
    for batch in (3, 4, 10, 64):
        journal = Naming()
        found = in_batches(numbered(10), Workspace(batch, 0, journal), lambda part: 2 * part.x[:, 0, 0, 0], "twice")
        assert found.tolist() == [2.0 * i for i in range(10)]
        names += journal.names
    assert len(set(names)) == len(names) == 4 + 3 + 1 + 1


# ---------------------------------------------------------------------------------------------------------
# Random numbers keyed by content
# ---------------------------------------------------------------------------------------------------------


def test_a_generator_depends_on_its_key_alone():
    def first(*key: int | str) -> float:
        return float(torch.rand((), generator=generator(*key), dtype=torch.float64))

    assert first(1, "attack", 2) == first(1, "attack", 2)
    assert len({first(1, "attack", 2), first(2, "attack", 2), first(1, "order", 2), first(1, "attack", 3)}) == 4
    assert first(1, 23) != first(12, 3), "parts of a key do not run together"
    assert first("init") == pytest.approx(0.45321588913988675, abs=1e-15), "the same on every machine, for ever"


def test_draws_are_uniform_and_normal_and_the_same_in_every_precision():
    x = torch.zeros(20, 3, 16, 16, dtype=torch.float64)
    uniform, normal = uniform_like(x, generator(1)), normal_like(x, generator(1))
    assert stats.kstest(uniform.flatten(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert stats.kstest(normal.flatten(), "norm").pvalue > 0.01
    assert torch.equal(uniform_like(x.float(), generator(1)), uniform.float())
    assert torch.equal(normal_like(x.float(), generator(1)), normal.float())


def test_example_draws_depend_on_key_and_index_alone():
    x = torch.zeros(50, 3, 8, 8, dtype=torch.float64)
    index = torch.arange(1000, 1050)
    found = per_example_uniform(x, index, 7, "pgd", 0)
    assert stats.kstest(found.flatten(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert torch.equal(per_example_uniform(x[10:12], index[10:12], 7, "pgd", 0), found[10:12])
    assert torch.equal(per_example_uniform(x, index.flip(0), 7, "pgd", 0), found.flip(0))
    assert torch.equal(per_example_uniform(x.float(), index, 7, "pgd", 0), found.float())
    for other in (
        per_example_uniform(x, index, 8, "pgd", 0),
        per_example_uniform(x, index, 7, "pgd", 1),
        per_example_uniform(x, index + 50, 7, "pgd", 0),
    ):
        assert abs(np.corrcoef(other.flatten(), found.flatten())[0, 1]) < 0.05
    assert abs(np.corrcoef(found[0].flatten(), found[1].flatten())[0, 1]) < 0.3
