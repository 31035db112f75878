"""References for numerics tests: a tiny float64 network, a batch, and formulas written out one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.backbones.parts import initialize
from robflat_bench.backbones.resnet import ResNet8Params, resnet8
from robflat_bench.core import Batch, Examples, ImageShape, Moment, Params, Training
from robflat_bench.core.randomness import generator
from robflat_bench.data.digits import load_digits
from robflat_bench.methods.at import AT

COUNT, CLASSES = 6, 10
EPSILON = 0.1
STEP = 0.2  # from one side of the ball to the other, so that the last iterate is often not the best
SHAPE = ImageShape(1, 8, CLASSES, (0.3,), (0.4,))


def network(seed: int = 1) -> nn.Module:
    """A float64 network in train mode whose running statistics have seen images."""
    net = resnet8(ResNet8Params(width=4), SHAPE, "relu").double()
    initialize(net, generator(seed, "init"))
    net.train()
    with torch.no_grad():
        for step in range(3):
            net(images(step + 10))
    return net


def images(seed: int, count: int = COUNT) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=generator("images", seed), dtype=torch.float64)


def batch(soft: bool = False, weighted: bool = False, progress: float = 0.0) -> Batch:
    """Six images with labels; targets are the labels, or smoothed if `soft`, and weights are one unless `weighted`."""
    y = torch.tensor([3, 1, 4, 1, 5, 9])
    target = nn.functional.one_hot(y, CLASSES).double()
    if soft:
        target = 0.8 * target + 0.2 / CLASSES
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.0]) if weighted else torch.ones(COUNT)
    return Batch(torch.arange(COUNT), images(0), y, target, weight.double(), Moment(7, 2, 3, progress))


def digits(start: int, stop: int) -> Examples:
    """Digits `start` to `stop` of the training pool, float32."""
    pool = load_digits().pools["train"]
    x = torch.from_numpy(np.ascontiguousarray(pool.x[start:stop].transpose(0, 3, 1, 2))).float() / 255
    return Examples(x, torch.from_numpy(pool.y[start:stop].astype(np.int64)), torch.arange(start, stop))


def adversarially_trained() -> nn.Module:
    """resnet8(width=8), float32, adversarially trained for a few epochs on 300 digits."""
    model = resnet8(ResNet8Params(width=8), ImageShape(1, 8, 10, (0.3,), (0.37,)), "relu")
    initialize(model, generator(1, "init"))
    examples, method = digits(0, 300), AT(Params())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model.train()
    for epoch in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 4 else 0.01
        for step, rows in enumerate(torch.randperm(300, generator=generator("order", epoch)).split(50)):
            part = examples[rows]
            batch = Batch(part.index, part.x, part.y, nn.functional.one_hot(part.y, 10).float(), torch.ones(len(rows)))
            source = generator("attack", epoch, step)
            inner = TrainingAttack(epsilon=EPSILON, step=0.1, steps=1, start="uniform", bn="eval", source=source)
            optimizer.zero_grad()
            method.loss(model, batch, method.attack(model, batch, inner)).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def at(given: Batch, **moment: float) -> Batch:
    """The same batch at another moment."""
    return replace(given, moment=replace(given.moment, **moment))


def inner(steps: int = 3, start: str = "uniform", bn: str = "eval") -> TrainingAttack:
    return TrainingAttack(epsilon=EPSILON, step=STEP, steps=steps, start=start, bn=bn, source=generator("attack"))


def training(model: nn.Module, **changes: object) -> Training:
    """The argument of `setup`: as many examples as `batch()` has, no helpers, no spare images."""
    given = Training(
        model=model,
        shape=SHAPE,
        count=COUNT,
        epsilon=EPSILON,
        helpers={},
        images=lambda: iter([images(0), images(1)]),
        spare=lambda: torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
        seed=0,
    )
    return replace(given, **changes)


# ---------------------------------------------------------------------------------------------------------
# One example, one class at a time
# ---------------------------------------------------------------------------------------------------------


def probabilities(logits: Tensor) -> list[Tensor]:
    """p_1 .. p_K of one example."""
    total = sum(torch.exp(z) for z in logits)
    return [torch.exp(z) / total for z in logits]


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))


def cross_entropy(p: list[Tensor], target: Tensor) -> Tensor:
    return -sum(t * torch.log(a) for a, t in zip(p, target, strict=True))


def mean(values: list[Tensor], given: Batch) -> Tensor:
    """sum_i weight_i v_i / sum_i weight_i."""
    return sum(w * v for w, v in zip(given.weight, values, strict=True)) / sum(given.weight)


def pgd(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    objective: Callable[[int, Tensor], Tensor],
    steps: int,
    epsilon: float = EPSILON,
    step: float = STEP,
) -> tuple[list[Tensor], Tensor]:
    """All iterates of PGD in eval mode, and for each example the iterate with the highest objective(i, logits_i)."""
    model = copy.deepcopy(model).eval()
    lower, upper = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
    current = torch.minimum(torch.maximum(start, lower), upper)
    iterates, best, highest = [], current.clone(), [float("-inf")] * len(x)
    for _ in range(steps + 1):
        variable = current.clone().requires_grad_()
        logits = model(variable)
        losses = [objective(i, logits[i]) for i in range(len(x))]
        for i, loss in enumerate(losses):
            if loss.item() > highest[i]:
                highest[i] = loss.item()
                best[i] = current[i]
        sum(losses).backward()
        iterates.append(current)
        current = torch.minimum(torch.maximum(current + step * torch.sign(variable.grad), lower), upper)
    return iterates, best


def uniform_start(x: Tensor) -> Tensor:
    """The start of `inner()`."""
    return x + EPSILON * (2 * torch.rand(x.shape, generator=generator("attack"), dtype=torch.float64) - 1)


def assert_same_update(ours: Tensor, model: nn.Module, theirs: Tensor, twin: nn.Module) -> None:
    """Loss, gradients of all parameters (to 1e-8) and running statistics are equal, and some gradient is large."""
    assert abs(ours.item() - theirs.item()) <= 1e-10 * max(1.0, abs(theirs.item()))
    ours.backward()
    theirs.backward()
    largest = 0.0
    for (key, mine), naive in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, naive.grad, rtol=0, atol=1e-8), key
        largest = max(largest, float(naive.grad.abs().max()))
    assert largest > 0.05
    for (key, mine), naive in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.allclose(mine, naive[1], rtol=0, atol=1e-12), key
