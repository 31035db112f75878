"""What others do, written as public code writes it: `loss.backward()` in the attack (so weight gradients are computed
and thrown away), a model in PyTorch's own layout, a deep copy for each draw of the weights.

torchattacks and foolbox are called as their documentation says, without a random start: then all find the same images.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.core.randomness import generator, per_example_uniform

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x, y) -> x_adv."""


# ---------------------------------------------------------------------------------------------------------
# Libraries
# ---------------------------------------------------------------------------------------------------------


def torchattacks_pgd(epsilon: float, step: float, steps: int) -> Attack:
    torchattacks = _library("torchattacks")

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torchattacks.PGD(model, eps=epsilon, alpha=step, steps=steps, random_start=False)(x, y)

    return attack


def foolbox_pgd(epsilon: float, step: float, steps: int) -> Attack:
    foolbox = _library("foolbox")

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        pgd = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=False)
        _, found, _ = pgd(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=epsilon)
        return found

    return attack


def _library(name: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, not ours
        return pytest.importorskip(name, reason=f"{name} is not installed: uv run --group bench pytest benchmarks")


# ---------------------------------------------------------------------------------------------------------
# Textbook attack
# ---------------------------------------------------------------------------------------------------------


def _step(x_adv: Tensor, gradient: Tensor, x: Tensor, epsilon: float, step: float) -> Tensor:
    moved = x_adv.detach() + step * gradient.sign()
    return torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)


def textbook_pgd(epsilon: float, step: float, steps: int) -> Attack:
    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = x.clone()
        for _ in range(steps):
            x_adv.requires_grad_()
            model.zero_grad()
            F.cross_entropy(model(x_adv), y).backward()
            assert x_adv.grad is not None
            x_adv = _step(x_adv, x_adv.grad, x, epsilon, step)
        return x_adv

    return attack


# ---------------------------------------------------------------------------------------------------------
# Textbook training: start is the noise that the attack begins with; best keeps each example's best iterate, as we do
# ---------------------------------------------------------------------------------------------------------

Objective = Callable[[nn.Module, Tensor], Tensor]
"""(model, x_adv) -> the loss of each example that the attack maximises."""


def inner(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    objective: Objective,
    *,
    epsilon: float,
    step: float,
    steps: int,
    best: bool = False,
    backward: bool = True,
) -> Tensor:
    """PGD in eval mode; backward=False takes autograd.grad of the images alone, as TRADES' released code does."""
    model.eval()
    x_adv = (x + start).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    kept, highest = x_adv, torch.full_like(x[:, 0, 0, 0], -torch.inf)

    def keep(loss: Tensor) -> None:
        nonlocal kept, highest
        better = loss.detach() > highest
        kept = torch.where(better[:, None, None, None], x_adv.detach(), kept)
        highest = torch.where(better, loss.detach(), highest)

    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = objective(model, x_adv)
        if best:
            keep(loss)
        if backward:
            loss.sum().backward()
            gradient = x_adv.grad
        else:
            (gradient,) = torch.autograd.grad(loss.sum(), [x_adv])
        assert gradient is not None
        x_adv = _step(x_adv, gradient, x, epsilon, step)
    if best:
        with torch.no_grad():
            keep(objective(model, x_adv))
        return kept
    return x_adv


def at_attack(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, **how: object) -> Tensor:
    def objective(model: nn.Module, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(model(x_adv), y, reduction="none")

    return inner(model, x, start, objective, **how)  # type: ignore[arg-type]


def trades_attack(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, **how: object) -> Tensor:
    """The clean prediction computed anew in each step."""
    with_graph = not how.get("backward", True)  # backward() would run through it

    def objective(model: nn.Module, x_adv: Tensor) -> Tensor:
        with torch.set_grad_enabled(with_graph):
            clean = F.softmax(model(x), dim=1)
        return F.kl_div(F.log_softmax(model(x_adv), dim=1), clean, reduction="none").sum(1)

    return inner(model, x, start, objective, **how)  # type: ignore[arg-type]


def at_loss(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    return F.cross_entropy(model(x_adv), y)


def trades_loss(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, beta: float = 6.0) -> Tensor:
    logits = model(x)
    robust = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(logits, dim=1), reduction="batchmean")
    return F.cross_entropy(logits, y) + beta * robust


def descend(
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    x_adv: Tensor,
) -> None:
    """One update at given adversarial images."""
    model.train()
    optimizer.zero_grad()
    loss(model, x, y, x_adv).backward()
    optimizer.step()


# ---------------------------------------------------------------------------------------------------------
# Textbook flatness
# ---------------------------------------------------------------------------------------------------------


def flatness(
    model: nn.Module, x: Tensor, y: Tensor, *, xi: float, draws: int, epsilon: float, step: float, steps: int
) -> float:
    """Mean robust loss at randomly moved weights over the robust loss: a deep copy and an attack for each draw.

    Its random numbers, of weights and of starts, are those that ours are keyed by."""
    start = epsilon * per_example_uniform(x, torch.arange(len(x)), 0, "pgd", 0)

    def robust_loss(network: nn.Module) -> float:
        x_adv = at_attack(network, x, y, start, epsilon=epsilon, step=step, steps=steps, best=True)
        with torch.no_grad():
            return float(F.cross_entropy(network(x_adv), y))

    reference = robust_loss(copy.deepcopy(model))
    losses = []
    for draw in range(draws):
        moved = copy.deepcopy(model)
        norms = {name for name, module in moved.named_modules() if isinstance(module, nn.BatchNorm2d)}
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                length = parameter.double().norm()
                if name.rpartition(".")[0] in norms or length == 0:
                    continue
                source = generator(0, "average-case", draw, name, *parameter.shape)
                noise = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
                parameter.add_((noise * (xi * length / noise.norm())).to(parameter))
        losses.append(robust_loss(moved))
    return sum(losses) / draws - reference
