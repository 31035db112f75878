"""Issue 4, "It must show", clauses 2 and 3: orders between couplings on a trained model, and determinism of every
measure. Clause 1, and what of 2 and 3 is proved elsewhere: `test_ground_truth`, and

| clause                                                     | test                                                   |
|------------------------------------------------------------|--------------------------------------------------------|
| memory batches, of an oracle, on a trained network         | test_measures, test_oracle: ..memory_batches..         |
| resuming after each single unit                            | test_measures*: ..resume.., test_oracle                |
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ground_truth import ALL, declared, every_ball, every_measure, measured
from helpers.measures import EPSILON, REGISTRY, THREAT, Remembering, moved_copy, small_examples, small_net
from helpers.naive import digits
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.core import Examples, Workspace
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.measures.flatness.worst_case import Climb, WorstCase, WorstCaseParams
from robflat_bench.numerics.weight_space import WeightSpace

pytestmark = pytest.mark.usefixtures("one_thread")

XI = {"l2": 0.03, "linf": 0.003}


@pytest.fixture(scope="module")
def trained(adversarially_trained) -> nn.Module:
    return adversarially_trained


def average(model: nn.Module, coupling: str, **params: Any) -> Any:
    given = {"xi": 0.3, "draws": 3, "steps": 5, **params}
    return measured("average-case", model, digits(1000, 1040), coupling=coupling, **given)


def worst(model: nn.Module, coupling: str, **params: Any) -> Any:
    given = {"xi": 0.03, "restarts": 2, "steps": 6, "strong_steps": 10, **params}
    return measured("worst-case", model, digits(1000, 1040), coupling=coupling, **given)


# ---------------------------------------------------------------------------------------------------------
# "with reattack also started from the frozen examples and its best iterate kept, frozen <= reattack per example at the
# same nu"
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["layer", "element"])
def test_reattack_from_the_frozen_images_is_nowhere_below_frozen(trained, shape):
    frozen, cold, warm = (
        average(trained, coupling, ball=shape, xi=0.1, warm=str(begun).lower()).arrays
        for coupling, begun in (("frozen", False), ("reattack", False), ("reattack", True))
    )
    for key in ("losses", "reference"):
        assert (warm[key] - frozen[key]).min() >= -1e-6, key
        assert (warm[key] - cold[key]).min() >= -1e-6, key
    assert (cold["losses"] - frozen["losses"]).min() < -1e-5, "without the warm start it may be"
    assert (warm["losses"] - frozen["losses"]).mean() > 1e-4


# ---------------------------------------------------------------------------------------------------------
# "joint warm-started from the frozen solution is not below it"
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xi", [0.003, 0.03])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_joint_from_the_frozen_solution_is_not_below_it(trained, xi, keep):
    """At equal restarts, and of the one ascent that begins where the frozen one ends."""
    frozen = worst(trained, "frozen", xi=xi, restarts=3, keep=keep).arrays["losses"].mean(1)
    joint = worst(trained, "joint", xi=xi, warm="true", keep=keep).arrays["losses"].mean(1)
    assert joint.shape == frozen.shape == (3,)
    assert joint[2] >= frozen[2] - 1e-6
    assert joint.max() >= frozen[:2].max() - 1e-6


def test_the_last_joint_ascent_begins_at_the_frozen_solution_and_never_ends_below_it(monkeypatch):
    """With steps of no length it stays there; where it only falls, the frozen end is kept."""
    model, examples = small_net(), small_examples()
    sides = (2 * torch.rand(examples.x.shape, generator=generator("images")) - 1).sign().double()
    images, begun = (examples.x + EPSILON * sides).clamp(0, 1), WeightSpace(model).in_ball(0.5, 5, "worst-case", 1)

    def ascend(**params: Any) -> Climb:
        measure = WorstCase(WorstCaseParams(xi=0.5, restarts=1, **params), THREAT)
        return measure.ascend(model, examples, Workspace(seed=5), 0.5, 1, images)

    still = ascend(steps=2, step=1e-12, weight_step=1e-12)
    with torch.no_grad():
        expected = F.cross_entropy(moved_copy(model, begun)(images), examples.y, reduction="none")
    assert still.losses.numpy() == pytest.approx(expected.numpy(), abs=1e-9)
    assert torch.allclose(still.images, images, rtol=0, atol=1e-9)
    alone, whole = ascend(coupling="frozen", steps=2), WorstCase._climb
    assert ascend(steps=2).losses.mean() > alone.losses.mean()

    def falling(self: WorstCase, *given: Any, joint: bool) -> Climb:
        found = whole(self, *given, joint=joint)
        return found._replace(losses=found.losses - 9) if joint else found

    monkeypatch.setattr(WorstCase, "_climb", falling)
    kept = ascend(steps=2)
    assert torch.equal(kept.losses, alone.losses)
    assert all(torch.equal(kept.nu[name], alone.nu[name]) for name in alone.nu)


# ---------------------------------------------------------------------------------------------------------
# The released code's worst case
# ---------------------------------------------------------------------------------------------------------


def released_ascent(model: nn.Module, examples: Examples, xi: float, seed: int, epochs: int, batch: int) -> Tensor:
    """Losses after the procedure of paper section 1.4, written out: images and weights move batch by batch."""
    key, clean, deltas = (seed, "worst-case", 0), examples.x, []
    for image, index in zip(clean, examples.index.tolist(), strict=True):
        source = generator(*key, index)
        direction = torch.randn(image.shape, generator=source, dtype=torch.float64)
        deltas.append(
            EPSILON * torch.rand((), generator=source, dtype=torch.float64) * direction / direction.abs().max()
        )
    delta, own = torch.stack(deltas), dict(model.named_parameters())
    assert not ((clean + delta >= 0) & (clean + delta <= 1)).all(), "some first images lie outside [0,1]"
    nu = {name: move.clone() for name, move in WeightSpace(model).in_ball(xi, *key).items()}
    for _ in range(epochs):
        for at in range(0, len(clean), batch):
            rows = slice(at, at + batch)
            there = moved_copy(model, nu).requires_grad_()
            variable = (clean[rows] + delta[rows]).requires_grad_()
            F.cross_entropy(there(variable), examples.y[rows]).backward()
            stepped = delta[rows] + 0.02 * variable.grad.sign()
            inside = stepped.clamp(-EPSILON, EPSILON)
            delta[rows] = (clean[rows] + inside).clamp(0, 1) - clean[rows]
            for name, parameter in there.named_parameters():
                if name in nu:
                    w = own[name].detach()
                    nu[name] += 0.01 * w.norm() * parameter.grad / parameter.grad.norm()
                    nu[name] *= min(1.0, float(xi * w.norm() / nu[name].norm()))
    with torch.no_grad():
        return F.cross_entropy(moved_copy(model, nu)(clean + delta), examples.y, reduction="none")


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_the_released_setting_equals_the_released_procedure(epochs):
    """Nine examples in batches of four; the draws are shared."""
    model, examples = small_net(), small_examples()
    released = {"start": "released", "keep": "last", "batch": 4, "weight_step": 0.01, "step": 0.02}
    measure = WorstCase(WorstCaseParams(xi=0.03, restarts=1, steps=epochs, **released), THREAT)
    found = measure.ascend(model, examples, Workspace(seed=5), 0.03, 0)
    expected = released_ascent(model, examples, 0.03, 5, epochs, 4)
    assert found.losses.numpy() == pytest.approx(expected.numpy(), rel=1e-9)
    uniform = WorstCase(measure.params.model_copy(update={"start": None}), THREAT)
    assert not torch.allclose(uniform.ascend(model, examples, Workspace(seed=5), 0.03, 0).losses, expected, rtol=1e-3)


def test_first_images_outside_the_pixel_range_cannot_be_the_best_iterate():
    with pytest.raises(ValueError, match="needs keep=last"):
        WorstCaseParams(start="released")


# ---------------------------------------------------------------------------------------------------------
# 2: "average <= worst at equal radius and coupling"
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fair", "highest"), [("clean", "clean"), ("frozen", "frozen"), ("reattack", "joint")])
def test_average_is_not_above_worst_at_equal_radius_and_coupling(trained, fair, highest):
    for xi in (0.003, 0.03):
        mean = average(trained, fair, xi=xi, draws=5)
        top = worst(trained, highest, xi=xi, steps=10, **({"warm": "true"} if highest == "joint" else {}))
        assert mean.value <= top.value
        assert mean.value + 3 * mean.details["standard_error_draws"] < top.value, "by more than chance"
        assert mean.arrays["losses"].mean() <= top.arrays["losses"].mean(1).max()


@every_ball
def test_average_is_not_above_worst_in_every_ball(trained, shape, norm):
    mean = average(trained, "clean", xi=XI[norm], ball=shape, norm=norm)
    top = worst(trained, "clean", xi=XI[norm], ball=shape, norm=norm)
    assert mean.value + 3 * mean.details["standard_error_draws"] < top.value
    assert top.value > 1e-3


# ---------------------------------------------------------------------------------------------------------
# "the worst-case nu is re-evaluated once with one strong attack"
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["frozen", "joint"])
def test_the_strong_attack_on_the_highest_nu_finds_no_less(trained, coupling):
    found = worst(trained, coupling, restarts=3)
    losses, strong = found.arrays["losses"], found.arrays["strong"]
    assert (losses.shape, strong.shape) == ((3, 40), (40,))
    highest = losses[losses.mean(1).argmax()]
    assert (strong - highest).min() >= -1e-6
    assert found.details["shortfall"] == pytest.approx(float((strong - highest).mean()))
    assert found.details["shortfall"] > 1e-3
    assert "strong" not in worst(trained, "clean").arrays, "no adversary, no attack"


def naive_highest(model: nn.Module, examples: Examples, starts: list[Tensor], steps: int) -> Tensor:
    """Of all iterates of PGD from these starts, the highest loss of each example."""
    highest = torch.full((len(examples),), -torch.inf, dtype=torch.float64)
    for x in starts:
        for _ in range(steps + 1):
            x = torch.clamp(x, examples.x - EPSILON, examples.x + EPSILON).clamp(0, 1).detach().requires_grad_()
            losses = F.cross_entropy(model(x), examples.y, reduction="none")
            (gradient,) = torch.autograd.grad(losses.sum(), x)
            highest = torch.maximum(highest, losses.detach())
            x = x + EPSILON / 4 * gradient.sign()
    return highest


def test_the_strong_attack_equals_the_naive_loop():
    """From the images beside nu, and from a random start; at w + nu."""
    model, examples = small_net(), small_examples()
    measure = WorstCase(WorstCaseParams(xi=0.1, steps=2, restarts=1, strong_steps=7), THREAT)
    climb: Climb = measure.ascend(model, examples, Workspace(seed=5), 0.1, 0)
    noise = EPSILON * per_example_uniform(examples.x, examples.index, 5, "pgd", 0)
    expected = naive_highest(moved_copy(model, climb.nu), examples, [climb.images, examples.x + noise], 7)
    assert measure.strong(model, examples, Workspace(seed=5), climb).numpy() == pytest.approx(
        expected.numpy(), abs=1e-10
    )
    found = measure.measure(model, examples, Workspace(seed=5))
    assert found.arrays["strong"] == pytest.approx(expected.numpy(), abs=1e-10)


# ---------------------------------------------------------------------------------------------------------
# "memory batches 32, 100, 250 agree to 1e-6"; "a resumed measurement equals an undisturbed one bit for bit"; peers A17:
# "the data loader is fixed" (nothing depends on its order); A16: "BN running stats updated twice" (here never)
# ---------------------------------------------------------------------------------------------------------

QUICK: dict[str, dict[str, Any]] = {
    "m-sharpness": {"m": 50},
    "local-entropy": {"gamma": 100},
    "worst-case": {"strong_steps": 3},
    "hessian-lambda-max": {"tolerance": 1e-2, "vectors": 20},
    "weighted-curvature": {"tolerance": 1e-2, "vectors": 20},
}


def quick(text: str, **changes: Any) -> dict[str, Any]:
    """The parameters of a trial, and the coupling."""
    name, coupling = ([*text.rstrip(")").split("(coupling="), ""])[:2]
    chosen = {"coupling": coupling} if coupling else {}
    return {"name": name, **declared(name).example, **chosen, **QUICK.get(name, {}), **changes}


def digits_net() -> nn.Sequential:
    """A convolution, a normalisation, a linear layer, trained for thirty steps on 250 digits; float32."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10))
    examples, optimizer = digits(0, 250), torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(examples.x), examples.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


@pytest.fixture(scope="module")
def small() -> nn.Sequential:
    return digits_net()


def initial(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}


@every_measure
def test_memory_batches_agree(small, text):
    found = [
        measured(model=small, examples=digits(0, 250), place=Workspace(batch, 5, initial=initial(small)), **quick(text))
        for batch in (32, 100, 250)
    ]
    assert abs(found[0].value) > 1e-5
    for other in found[1:]:
        assert other.value == pytest.approx(found[0].value, rel=1e-6, abs=1e-6)


@every_measure
def test_the_order_of_examples_changes_no_value(small, text):
    """Of m-sharpness it does: which examples share a perturbation is its definition."""
    model, examples = copy.deepcopy(small).double(), digits(0, 60)
    examples = Examples(examples.x.double(), examples.y, examples.index)
    shuffled = examples[torch.randperm(60, generator=generator("shuffled"))]
    place = Workspace(25, 5, initial=initial(model))
    params = quick(text, **({"m": 20} if text.startswith("m-sharpness") else {}))
    found, again = (
        measured(model=model, examples=given, place=place, **params).value for given in (examples, shuffled)
    )
    assert (again == pytest.approx(found, rel=1e-7)) == (not text.startswith("m-sharpness"))


@every_measure
def test_resuming_changes_no_bit_and_running_statistics_never_move(small, text):
    """Killed at the first unit, in the middle and at the last one; the model comes and goes in train mode."""
    model, examples = copy.deepcopy(small).train(), digits(0, 12)
    before, start = copy.deepcopy(model.state_dict()), initial(model)
    params = quick(text, **({"m": 4} if text.startswith("m-sharpness") else {}))

    def run(journal: Any = None) -> Any:
        kept = {} if journal is None else {"journal": journal}
        return measured(model=model, examples=examples, place=Workspace(5, 3, initial=start, **kept), **params)

    plain, whole = run(), Remembering()
    assert run(whole).value == plain.value
    units = len(whole.kept)
    assert (units == 0) == (text in ("path-norm", "distance-from-init"))
    for lives in sorted({0, units // 2, units - 1} if units else ()):
        dying = Remembering(lives)
        with pytest.raises(InterruptedError):
            run(dying)
        dying.lives[0] = units - lives
        found = run(dying)
        assert (found.value, found.standard_error, found.details) == (plain.value, plain.standard_error, plain.details)
        assert found.arrays.keys() == plain.arrays.keys()
        assert all(np.array_equal(found.arrays[key], array, equal_nan=True) for key, array in plain.arrays.items())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_catalogue_is_whole():
    """Every pair of measure and coupling is in the tests above."""
    assert len(ALL) == len(set(ALL)) == 59
    assert {text.partition("(")[0] for text in ALL} == set(REGISTRY.names("measure"))
