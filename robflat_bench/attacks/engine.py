r"""The one attack engine: projected sign-gradient ascent on the input, for training and evaluation alike.

    x_{t+1} = \Pi_{B_\infty(x, \epsilon) \cap [0,1]} ( x_t + \alpha sign \nabla_x \ell(f(x_t)) )

It works on frozen parameters (only input gradients are computed) and keeps, for each example, the iterate with
the highest loss among all it evaluated, start included: T steps cost T+1 forward and T backward passes.
Madry et al., ICLR 2018.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from robflat_bench.core import InnerAttack
from robflat_bench.core.randomness import normal_like, uniform_like
from robflat_bench.numerics.compilation import captured
from robflat_bench.numerics.folding import folded

Objective = Callable[[Tensor], Tensor]
"""logits [B,K] -> what the attack maximises, per example [B]."""
Moving = Callable[[Tensor], Tensor]
"""logits [B,K] of the current iterate -> which examples take another step, bool [B]."""


def cross_entropy(y: Tensor) -> Objective:
    """-log p_y."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def margin(y: Tensor) -> Objective:
    """max_{k != y} z_k - z_y: positive where misclassified (Carlini & Wagner 2017)."""

    def objective(logits: Tensor) -> Tensor:
        correct = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -torch.inf)
        return others.amax(1) - correct

    return objective


def divergence_from(clean: Tensor) -> Objective:
    """KL(p(clean) || p(logits)), the clean logits fixed."""
    log_p = clean.detach().log_softmax(1)
    return lambda logits: (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)


def project(x_adv: Tensor, x: Tensor, epsilon: float | Tensor) -> Tensor:
    """Onto the l-inf ball of radius epsilon (a tensor: per example, [B,1,1,1]) around x and the image box."""
    return torch.clamp(x_adv, x - epsilon, x + epsilon).clamp_(0, 1)


@contextmanager
def attacked(model: nn.Module, bn: Literal["eval", "train"] = "eval") -> Iterator[None]:
    """The model as an attack sees it: parameters without gradient, eval mode, everything put back afterwards.

    bn="train" lets batch normalisation use the batch's own statistics; running statistics never move.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        if bn == "eval":
            yield
        else:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
            with frozen_statistics(model):
                yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, requires in gradients:
            parameter.requires_grad_(requires)


@contextmanager
def frozen_statistics(*models: nn.Module) -> Iterator[None]:
    """Running statistics do not move: in train mode and without tracking, a norm layer normalises by the batch and
    updates nothing."""
    modules = [module for model in models for module in model.modules()]
    tracking = [(module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)]
    buffers = [(module, {**module._buffers}) for module in modules if isinstance(module, _InstanceNorm)]
    try:
        for module, _ in tracking:
            module.track_running_stats = False
        for norm, own in buffers:  # it has no such mode: it may move copies
            norm._buffers.update({name: None if value is None else value.clone() for name, value in own.items()})
        yield
    finally:
        for module, tracks in tracking:
            module.track_running_stats = tracks
        for norm, own in buffers:
            norm._buffers.update(own)


class Ascent(NamedTuple):
    """The best iterate per example: x [B,C,H,W] and its objective loss [B]."""

    x: Tensor
    loss: Tensor


def ascend(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    objective: Objective,
    *,
    epsilon: float | Tensor,
    step: float | Tensor,
    steps: int,
    moving: Moving | None = None,
) -> Ascent:
    """`steps` projected sign steps from `start` (projected first). Call within `attacked(model)`.

    epsilon and step may be per example, [B,1,1,1]. With `moving`, an example steps only where it is true, and the
    last iterate is returned instead of the best one.
    """
    current = project(start, x, epsilon)
    best_x, best_loss = current, torch.full_like(x[:, 0, 0, 0], -torch.inf)
    with captured(model):
        for number in range(steps + 1):
            last = number == steps
            with torch.set_grad_enabled(not last):
                variable = current.detach().requires_grad_(not last)
                logits = model(variable)
                loss = objective(logits)
                total = loss.sum()
            better = loss.detach() > best_loss if moving is None else torch.ones_like(best_loss, dtype=torch.bool)
            best_x = torch.where(_rows(better), current, best_x)
            best_loss = torch.where(better, loss.detach(), best_loss)
            if not last:
                (gradient,) = torch.autograd.grad(total, variable)
                stepped = project(current + step * gradient.sign(), x, epsilon)
                current = stepped if moving is None else torch.where(_rows(moving(logits.detach())), stepped, current)
    return Ascent(best_x, best_loss)


def _rows(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]


STARTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "uniform": uniform_like,
    # Of a thousandth of a pixel range, as TRADES starts, whatever epsilon is.
    "normal": normal_like,
    "zero": lambda x, _: torch.zeros_like(x),
}


class TrainingAttack(InnerAttack):
    """The recipe's inner attack, bound to the random numbers of one step."""

    def __init__(
        self,
        *,
        epsilon: float,
        step: float,
        steps: int,
        start: Literal["uniform", "normal", "zero"],
        bn: Literal["eval", "train"],
        source: torch.Generator,
    ) -> None:
        self.epsilon = epsilon
        self.step = step
        self.steps = steps
        self.bn: Literal["eval", "train"] = bn
        self.start = start
        self.source = source
        self.moving: Callable[[], Moving] | None = None

    def attacking(self, model: nn.Module) -> AbstractContextManager[None]:
        return attacked(model, self.bn)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        with self.attacking(model), torch.no_grad():
            logits: Tensor = model(x)
        return logits

    def gradient(self, model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
        with self.attacking(model):
            variable = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(model(variable)).sum(), variable)
        return gradient

    def within(self, epsilon: float) -> TrainingAttack:
        other = copy.copy(self)
        other.epsilon = epsilon
        return other

    def until(self, moving: Callable[[], Moving]) -> TrainingAttack:
        other = copy.copy(self)
        other.moving = moving
        return other

    def __call__(self, model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
        radius = 1e-3 if self.start == "normal" else self.epsilon
        start = x + radius * STARTS[self.start](x, self.source)
        with self.attacking(model), folded(model, x) if self.bn == "eval" else nullcontext():
            return ascend(
                model,
                x,
                start,
                objective,
                epsilon=self.epsilon,
                step=self.step,
                steps=self.steps,
                moving=self.moving() if self.moving else None,
            ).x
