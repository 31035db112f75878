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


# ---------------------------------------------------------------------------------------------------------
# Hessian trace and adaptive sharpness, at given images
# ---------------------------------------------------------------------------------------------------------


def moving(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors that ours moves: no batch normalisation, none that is 0."""
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    named = model.named_parameters()
    return {name: p for name, p in named if name.rpartition(".")[0] not in norms and bool(p.detach().any())}


def _probe(layers: dict[str, nn.Parameter], number: int) -> list[Tensor]:
    """+1 and -1 for every weight: those that ours is keyed by."""
    signs = []
    for name, layer in layers.items():
        source = generator(0, "hessian-trace", number, name, *layer.shape)
        signs.append(torch.randint(2, layer.shape, generator=source, dtype=torch.int64).mul(2).sub(1).to(layer))
    return signs


def _differentiated(model: nn.Module, layers: list[nn.Parameter], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(model(x), y)
    return torch.autograd.grad(loss, layers, create_graph=True)


def hessian_trace(model: nn.Module, batches: list[tuple[Tensor, Tensor]], probes: int) -> list[float]:
    """v'Hv of each probe, as PyHessian does for a data loader: for each probe a new gradient with its graph, batch by
    batch, and the sums over batches as one list of tensors."""
    layers = moving(model)
    weights, total = list(layers.values()), sum(len(y) for _, y in batches)
    found = []
    for number in range(probes):
        v = _probe(layers, number)
        product = [torch.zeros_like(part) for part in v]
        for x, y in batches:
            gradient = _differentiated(model, weights, x, y)
            parts = torch.autograd.grad(gradient, weights, grad_outputs=v, retain_graph=False)
            product = [whole + part * len(y) for whole, part in zip(product, parts, strict=True)]
        found.append(float(sum((a * b).sum() for a, b in zip(v, product, strict=True))) / total)
    return found


def hessian_trace_of_one_batch(model: nn.Module, x: Tensor, y: Tensor, probes: int) -> list[float]:
    """The same as PyHessian does for a single batch: one gradient, whose graph stays for all probes."""
    layers = moving(model)
    weights = list(layers.values())
    gradient, found = _differentiated(model, weights, x, y), []
    for number in range(probes):
        v = _probe(layers, number)
        product = torch.autograd.grad(gradient, weights, grad_outputs=v, retain_graph=True)
        found.append(float(sum((a * b).sum() for a, b in zip(v, product, strict=True))))
    return found


class _AutoPGD:
    """Auto-PGD over the weights w + rho |w| z, ||z||_2 <= 1: of the mean loss of one batch, on a deep copy."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, rho: float) -> None:
        self.model, self.x, self.y = copy.deepcopy(model), x, y
        self.layers = list(moving(self.model).values())
        self.w = [layer.detach().clone() for layer in self.layers]
        self.h = [rho * layer.abs() for layer in self.w]

    def _move(self, z: list[Tensor]) -> None:
        with torch.no_grad():
            for layer, w, h, part in zip(self.layers, self.w, self.h, z, strict=True):
                layer.copy_(w + h * part)

    def loss(self, z: list[Tensor]) -> float:
        self._move(z)
        with torch.no_grad():
            return float(F.cross_entropy(self.model(self.x), self.y))

    def gradient(self, z: list[Tensor]) -> list[Tensor]:
        """d loss / d z."""
        self._move(z)
        self.model.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        return [h * layer.grad for h, layer in zip(self.h, self.layers, strict=True)]  # type: ignore[operator]


def _length(parts: list[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def _ahead(z: list[Tensor], move: list[Tensor], by: float) -> list[Tensor]:
    """The nearest point of the unit ball to z + by * move."""
    moved = [a + by * b for a, b in zip(z, move, strict=True)]
    shrink = max(_length(moved), 1.0)
    return [part / shrink for part in moved]


def adaptive_sharpness(model: nn.Module, x: Tensor, y: Tensor, *, rho: float, iterations: int) -> float:
    """The highest loss of Auto-PGD from w, minus the loss at w. A step reads the gradient with one forward and one
    backward pass, and the loss after the step with a forward pass of its own."""
    surface = _AutoPGD(model, x, y, rho)
    z = before = best_z = [torch.zeros_like(w) for w in surface.w]
    loss = best = reference = surface.loss(z)
    reviews = {-(-p * iterations // 100) for p in (22, 41, 57, 70, 80, 87, 93, 99)}
    step, improved, last = 2.0, 0, 0
    at_last = (step, best)
    for number in range(1, iterations + 1):
        gradient = surface.gradient(z)
        length = _length(gradient)
        ahead = _ahead(z, gradient, step / length if length else 0.0)
        a = 0.75 if number > 1 else 1.0
        mixed = [a * (n - c) + (1 - a) * (c - b) for n, c, b in zip(ahead, z, before, strict=True)]
        z, before = _ahead(z, mixed, 1.0), z
        previous, loss = loss, surface.loss(z)
        improved += loss > previous
        if loss > best:
            best, best_z = loss, z
        if number in reviews:
            poor = improved < 0.75 * (number - last) or (step, best) == at_last
            at_last = (step, best)
            if poor:
                step, z, before, loss = step / 2, best_z, best_z, best
            improved, last = 0, number
    return best - reference
