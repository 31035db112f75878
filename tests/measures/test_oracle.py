"""The loss oracle: every coupling against a naive loop, normalised logits, weight gradients, journal, no trace."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import EPSILON, THREAT, Remembering, small_examples, small_net
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Workspace
from robflat_bench.core.randomness import per_example_uniform
from robflat_bench.measures.oracle import Oracle, differentiable, normalised
from robflat_bench.measures.shared import OracleParams
from robflat_bench.numerics.weight_space import WeightSpace

pytestmark = pytest.mark.usefixtures("one_thread")

COUPLINGS = ("clean", "frozen", "reattack")
STEPS, SEED = 3, 5
HERE = Workspace(batch=4, seed=SEED)


def oracle(**params: Any) -> Oracle:
    return Oracle(THREAT, OracleParams(**{"steps": STEPS, "restarts": 2, **params}))


def elsewhere(model: nn.Module) -> dict[str, Tensor]:
    return WeightSpace(model).on_sphere(0.5, "elsewhere")


# ---------------------------------------------------------------------------------------------------------
# Naive loops: one example at a time
# ---------------------------------------------------------------------------------------------------------


def naive_cross_entropy(logits: Tensor, label: int) -> float:
    return float(-(logits[label].exp() / logits.exp().sum()).log())


def naive_images(model: nn.Module, examples: Examples, steps: int = STEPS, begun: Tensor | None = None) -> Tensor:
    """The image with the highest cross-entropy over restarts and PGD iterates; `begun`: images of one more start."""
    found = []
    for row, (x, y, index) in enumerate(zip(examples.x, examples.y, examples.index, strict=True)):
        best, highest = x, -float("inf")
        noise = [per_example_uniform(x[None], index[None], SEED, "pgd", restart)[0] for restart in range(2)]
        for start in [*(x + EPSILON * each for each in noise), *([] if begun is None else [begun[row]])]:
            z = start
            for _ in range(steps + 1):
                z = torch.minimum(torch.maximum(z, x - EPSILON), x + EPSILON).clamp(0, 1).detach().requires_grad_()
                loss = -model(z[None])[0].log_softmax(0)[y]
                if loss.item() > highest:
                    best, highest = z.detach(), loss.item()
                z = z + EPSILON / 4 * torch.autograd.grad(loss, z)[0].sign()
        found.append(best)
    return torch.stack(found)


def naive_losses(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    with torch.no_grad():
        return [naive_cross_entropy(model(image[None])[0], int(label)) for image, label in zip(x, y, strict=True)]


def naive_points(coupling: str, at: nn.Module, now: nn.Module, examples: Examples) -> Tensor:
    if coupling == "clean":
        return examples.x
    return naive_images(at if coupling == "frozen" else now, examples)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_losses_and_errors_at_moved_weights_follow_the_coupling(coupling):
    model, examples, one = small_net(), small_examples(15), oracle(coupling=coupling)
    original, space = copy.deepcopy(model), WeightSpace(model)
    with space.moved(elsewhere(model)), torch.no_grad():
        examples.y[:10] = model(examples.x[:10]).argmax(1)
    one.freeze(model, examples, HERE)
    wanted = naive_losses(model, naive_points(coupling, original, model, examples), examples.y)
    assert one.losses(model, examples, HERE).tolist() == pytest.approx(wanted, abs=1e-10)
    with space.moved(elsewhere(model)):
        x = naive_points(coupling, original, model, examples)
        losses, errors = one.losses(model, examples, HERE), one.errors(model, examples, HERE)
        assert losses.dtype == errors.dtype == torch.float64
        assert losses.tolist() == pytest.approx(naive_losses(model, x, examples.y), abs=1e-10)
        predicted = [int(model(image[None]).argmax()) for image in x]
        assert errors.tolist() == [float(a != b) for a, b in zip(predicted, examples.y.tolist(), strict=True)]
        assert 0 < errors.mean() < 1
    assert max(abs(losses.numpy() - wanted)) > 0.01


def test_frozen_images_are_kept_and_the_couplings_differ():
    model, examples = small_net(), small_examples(11)
    losses = {}
    for coupling in COUPLINGS:
        one = oracle(coupling=coupling)
        one.freeze(model, examples, HERE)
        with WeightSpace(model).moved(elsewhere(model)):
            losses[coupling] = one.losses(model, examples, HERE)
    assert losses["clean"].mean() + 0.01 < losses["frozen"].mean() < losses["reattack"].mean() - 1e-3


def test_reattack_is_the_robust_loss():
    model, examples = small_net(), small_examples(11)
    pgd = PGD(PGDParams(steps=STEPS, restarts=2), THREAT)
    with WeightSpace(model).moved(elsewhere(model)):
        expected = pgd.maximise(model, examples, HERE.seed).loss
        found = oracle(coupling="reattack").losses(model, examples, HERE)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-12)


@pytest.mark.parametrize(
    "params", [{"coupling": name} for name in COUPLINGS] + [{"coupling": "reattack", "warm": True}]
)
def test_some_of_the_examples_meet_their_own_images(params):
    model, examples, one = small_net(), small_examples(15), oracle(**params)
    one.freeze(model, examples, HERE)
    rows = torch.tensor([11, 2, 7])
    with WeightSpace(model).moved(elsewhere(model)):
        for read in (Oracle.losses, Oracle.errors):
            whole, some = read(one, model, examples, HERE), read(one.part(rows), model, examples[rows], HERE)
            assert some.tolist() == pytest.approx(whole[rows].tolist(), abs=1e-12)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_what_measures_share_is_named_by_weights_and_examples(coupling):
    """Oracles at other weights, of other examples, with one journal: each reads its own images, losses and errors."""
    model, examples, journal = small_net(), small_examples(15), Remembering()
    other = replace(examples, x=1 - examples.x)

    def read(examples: Examples, place: Workspace) -> list[Tensor]:
        one = oracle(coupling=coupling)
        one.freeze(model, examples, place)
        return [one.reference(model, examples, place), one.reference_errors(model, examples, place)]

    for move in (elsewhere(model), WeightSpace(model).zero()):
        with WeightSpace(model).moved(move):
            for some in (examples, examples[3:9], examples[9:], other):
                found = read(some, Workspace(batch=4, seed=SEED, journal=journal))
                assert all(torch.equal(*pair) for pair in zip(found, read(some, HERE), strict=True))
    kept = len(journal.kept)
    read(examples, Workspace(batch=4, seed=SEED, journal=journal))
    assert len(journal.kept) == kept, "all is there"


@pytest.mark.parametrize("steps", [1, STEPS + 2, None])
def test_warm_attacks_also_start_from_the_images_found_at_w_and_take_their_own_steps(steps):
    model, examples = small_net(), small_examples(9)
    one, kept = oracle(coupling="reattack", warm=True, warm_steps=steps), naive_images(model, examples)
    one.freeze(model, examples, HERE)
    nowhere = {name: torch.zeros_like(layer) for name, layer in WeightSpace(model).layers.items()}
    for move in (nowhere, elsewhere(model)):
        with WeightSpace(model).moved(move):
            wanted = naive_losses(model, naive_images(model, examples, steps or STEPS, kept), examples.y)
            fresh = naive_losses(model, naive_images(model, examples, steps or STEPS), examples.y)
            assert one.losses(model, examples, HERE).tolist() == pytest.approx(wanted, abs=1e-10)
            assert max(np.subtract(wanted, fresh)) > 1e-4, "the warm start counts"


def test_steps_of_warm_attacks_change_nothing_without_a_warm_start():
    model, examples = small_net(), small_examples(9)
    for coupling in ("frozen", "reattack"):
        found = []
        for more in ({}, {"warm_steps": 1}):
            one = oracle(coupling=coupling, **more)
            one.freeze(model, examples, HERE)
            found.append(one.losses(model, examples, HERE))
        assert torch.equal(*found)


class Table(nn.Module):
    """Logits are the rows of a table; the image says which row."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0, 0, 0].long()]


def test_ties_and_logits_that_are_not_finite_are_errors():
    nan, inf = float("nan"), float("inf")
    model = Table([[1, 0, 0], [1, 1, 0], [0, 1, 0], [nan, 0, 0], [nan, nan, nan], [inf, inf, 0], [inf, 0, 0]])
    examples = Examples(torch.arange(7.0).reshape(7, 1, 1, 1), torch.zeros(7, dtype=torch.int64), torch.arange(7))
    assert oracle(coupling="clean").errors(model, examples, HERE).tolist() == [0, 1, 1, 1, 1, 1, 0]


# ---------------------------------------------------------------------------------------------------------
# Normalised logits
# ---------------------------------------------------------------------------------------------------------


def test_normalised_logits_are_the_formula():
    z = torch.tensor([[3.0, -1.0, 4.0], [0.1, 0.0, 0.2]], dtype=torch.float64)
    for found, row in zip(normalised(z), z, strict=True):
        centred = [float(value) - float(row.sum()) / 3 for value in row]
        length = sum(value**2 for value in centred) ** 0.5
        assert found.tolist() == pytest.approx([value / length for value in centred], abs=1e-14)


def test_equal_logits_normalise_to_zero_with_finite_gradients():
    z = torch.full((1, 3), 2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalised(z).sum(), z)
    assert normalised(z).tolist() == [[0, 0, 0]]
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (0.1, 3.0)])
def test_normalised_losses_ignore_scale_and_shift_of_logits_and_plain_ones_do_not(scale, shift):
    model, examples = small_net(), small_examples(11)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[4].weight *= scale
        other[4].bias.mul_(scale).add_(shift)
    for logits, same in (("normalised", True), ("plain", False)):
        one = oracle(coupling="clean", logits=logits)
        losses = one.losses(model, examples, HERE), one.losses(other, examples, HERE)
        assert torch.allclose(*losses, rtol=0, atol=1e-12) == same
    images = []
    for logits in ("plain", "normalised"):
        one = oracle(coupling="frozen", logits=logits)
        one.freeze(model, examples, HERE)
        images.append(one.points(examples).x)
    assert torch.equal(*images), "images maximise the plain loss"


# ---------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [11, 128, 150])
@pytest.mark.parametrize("coupling", ["clean", "frozen"])
@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_gradient_is_that_of_the_mean_loss(count, coupling, logits):
    model, examples = small_net(), small_examples(count)
    one, layers = oracle(coupling=coupling, logits=logits, steps=1), WeightSpace(model).layers
    one.freeze(model, examples, HERE)
    losses, gradients = one.gradient(model, examples, layers)
    z = model(one.points(examples).x)
    if logits == "normalised":
        z = (z - z.mean(1, keepdim=True)) / (z - z.mean(1, keepdim=True)).square().sum(1, keepdim=True).sqrt()
    expected = z.logsumexp(1) - z[torch.arange(count), examples.y]
    assert torch.allclose(losses, expected, rtol=0, atol=1e-12)
    for name, gradient in zip(layers, torch.autograd.grad(expected.mean(), list(layers.values())), strict=True):
        assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-12)
        assert gradients[name].dtype == torch.float64


def test_a_layer_without_influence_has_gradient_zero():
    model, examples = small_net(), small_examples(3)
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    _, gradients = oracle(coupling="clean").gradient(model, examples, WeightSpace(model).layers)
    assert not gradients["unused.weight"].any()
    assert gradients["4.weight"].any()


@pytest.mark.parametrize(("coupling", "reason"), [("frozen", "freeze"), ("reattack", "no fixed images")])
def test_points_without_fixed_images_are_refused(coupling, reason):
    model, examples, one = small_net(), small_examples(), oracle(coupling=coupling)
    if coupling == "reattack":
        one.freeze(model, examples, HERE)
    with pytest.raises(ValueError, match=reason):
        one.points(examples)
    with pytest.raises(ValueError, match=reason):
        one.gradient(model, examples, WeightSpace(model).layers)


# ---------------------------------------------------------------------------------------------------------
# As a good guest
# ---------------------------------------------------------------------------------------------------------


def read(one: Oracle, model: nn.Module, examples: Examples, place: Workspace) -> list[Tensor]:
    """Everything an oracle tells, here and at moved weights."""
    one.freeze(model, examples, place)
    found = [one.losses(model, examples, place), one.errors(model, examples, place)]
    if one.coupling != "reattack":
        found += one.gradient(model, examples, WeightSpace(model).layers)[1].values()
    return found


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_nothing_is_left_behind(coupling):
    model, examples = small_net(), small_examples()
    model.train()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    before, state, random_state = copy.deepcopy(model), copy.deepcopy(examples), torch.get_rng_state()
    read(oracle(coupling=coupling), model, examples, HERE)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)
        assert now.requires_grad == then.requires_grad
        assert now.grad is None
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), before.buffers(), strict=True))
    assert torch.equal(examples.x, state.x)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_layers_are_differentiable_only_inside():
    model = small_net()
    with attacked(model):
        with differentiable([model[0].weight]):
            assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight"]
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_memory_batches_change_nothing(coupling):
    model, examples = small_net(torch.float32), small_examples(130, torch.float32)
    found = [read(oracle(coupling=coupling), model, examples, Workspace(batch, SEED)) for batch in (32, 100)]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_an_interrupted_oracle_resumes_bit_for_bit(coupling):
    model, examples = small_net(torch.float32), small_examples(9, torch.float32)
    plain, journal = read(oracle(coupling=coupling), model, examples, HERE), Remembering()
    read(oracle(coupling=coupling), model, examples, Workspace(4, SEED, journal))
    assert len(journal.kept) == (6 if coupling == "clean" else 9), "three batches each of images, losses, errors"
    for lives in range(len(journal.kept)):
        dying = Remembering(lives)
        with pytest.raises(InterruptedError):
            read(oracle(coupling=coupling), model, examples, Workspace(4, SEED, dying))
        dying.lives[0] = len(journal.kept) - lives
        again = read(oracle(coupling=coupling), model, examples, Workspace(4, SEED, dying))
        assert all(np.array_equal(a, b) for a, b in zip(again, plain, strict=True))
