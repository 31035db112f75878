"""Images that repeat themselves rest: fewer passes, the same result."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robflat_bench.attacks.climbers import EARLIEST, SHARES, Ascent, project
from robflat_bench.attacks.engine import ascend, attacked, cross_entropy
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Threat
from robflat_bench.numerics.passes import PassCounter

EPSILON, STEP, STEPS = 0.2, 0.05, 40


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    return net.to(dtype).eval()


def images(count: int = 64, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, starts in the ball, labels."""
    source = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, 2, 2, generator=source, dtype=torch.float64).to(dtype)
    start = x + EPSILON * (2 * torch.rand(x.shape, generator=source, dtype=torch.float64) - 1).to(dtype)
    return x, start, torch.arange(count) % 4


def naive(net: nn.Module, x: Tensor, start: Tensor, y: Tensor, epsilon: Tensor | float, steps: int) -> Ascent:
    """Every image takes every step, one image after another."""
    best = []
    for number in range(len(x)):
        radius = epsilon[number] if isinstance(epsilon, Tensor) else epsilon
        clean = x[number : number + 1]
        here, kept = project(start[number : number + 1], clean, radius), (clean, -torch.inf)
        for _ in range(steps + 1):
            variable = here.clone().requires_grad_()
            loss = nn.functional.cross_entropy(net(variable), y[number : number + 1])
            (gradient,) = torch.autograd.grad(loss, variable)
            if loss.item() > kept[1]:
                kept = here, loss.item()
            here = project(here + STEP * gradient.sign(), clean, radius)
        best.append(kept)
    return Ascent(torch.cat([image for image, _ in best]), torch.tensor([loss for _, loss in best], dtype=x.dtype))


def climb(
    net: nn.Module, rest: bool, epsilon: Tensor | float = EPSILON, steps: int = STEPS
) -> tuple[Ascent, int, list]:
    """The ascent, its passes, and the sizes of the batches that the network met."""
    x, start, y = images()
    sizes: list[int] = []
    handle, counter = net.register_forward_hook(lambda _, given, out: sizes.append(len(out))), PassCounter(net)
    with attacked(net):
        found = ascend(net, x, start, cross_entropy(y), epsilon=epsilon, step=STEP, steps=steps, rest=rest)
    handle.remove()
    counter.remove()
    return found, counter.forward + counter.backward, sizes


@pytest.mark.parametrize("epsilon", [EPSILON, torch.linspace(0.05, 0.3, 64, dtype=torch.float64).view(-1, 1, 1, 1)])
def test_resting_images_change_no_result(epsilon):
    net, (x, start, y) = network(), images()
    (plain, all_passes, _), (resting, fewer, _) = (climb(net, rest, epsilon) for rest in (False, True))
    expected = naive(net, x, start, y, epsilon, STEPS)
    for found in (plain, resting):
        assert torch.allclose(found.loss, expected.loss, rtol=1e-12)
        assert torch.allclose(found.x, expected.x, atol=1e-12)
    assert fewer < 0.7 * all_passes


def test_images_that_move_are_never_dropped():
    """A step that is no fraction of the radius repeats no image before the last."""
    net, (x, start, y) = network(), images()
    tiny = {"epsilon": 0.2, "step": 1e-4, "steps": 20}
    with attacked(net):
        plain, resting = (ascend(net, x, start, cross_entropy(y), **tiny, rest=rest) for rest in (False, True))
    assert torch.equal(plain.x, resting.x)


def test_batches_shrink_to_few_sizes_and_not_before_the_eighth_step():
    _, _, sizes = climb(network(), rest=True)
    assert set(sizes) <= {64, *(int(share * 64) for share in SHARES)}
    assert sizes[:EARLIEST] == [64] * EARLIEST
    assert all(before >= after for before, after in pairwise(sizes))
    assert len(sizes) < STEPS + 1, "it ends once every image rests"


def test_images_without_any_gradient_rest():
    net = network()
    with torch.no_grad():
        net[-1].weight.zero_()
    x, start, _ = images()
    found, passes, _ = climb(net, rest=True)
    assert passes == 2 * EARLIEST * 64
    assert torch.equal(found.x, project(start, x, EPSILON))


def test_pgd_rests_and_equals_the_naive_loop():
    net, (x, _, y) = network(), images()
    counter = PassCounter(net)
    found = PGD(PGDParams(steps=STEPS, step=STEP, init="zero"), Threat(EPSILON)).maximise(
        net, Examples(x, y, torch.arange(len(x))), 0
    )
    assert counter.forward < 0.7 * len(x) * (STEPS + 1)
    assert torch.allclose(found.loss, naive(net, x, x, y, EPSILON, STEPS).loss, rtol=1e-12)


def test_nothing_rests_where_the_last_iterate_counts():
    """An image that alternates ends at one of two images, and the number of steps says at which."""
    net, (x, start, y) = network(), images()
    settings = {"epsilon": EPSILON, "step": STEP, "steps": 20, "moving": lambda: lambda logits: logits.argmax(1) == y}
    with attacked(net):
        plain, resting = (ascend(net, x, start, cross_entropy(y), **settings, rest=rest) for rest in (False, True))
    assert torch.equal(plain.x, resting.x)
