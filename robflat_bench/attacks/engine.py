r"""The one attack engine, for training and evaluation alike: projected steepest ascent of the loss over the images.

    x_{t+1} = \Pi_{B(x, \epsilon) \cap [0,1]} ( x_t + \alpha s(\nabla_x \ell(f(x_t))) )

with s(g) = sign g under linf and g / ||g||_2 under l2 (`norms`). Parameters are frozen, so only input gradients are
computed. Each example keeps its iterate with the highest loss, the start included: T steps cost T+1 forward and T
backward passes. Madry et al., ICLR 2018, arXiv 1706.06083.

Where an operation of the network has no finite derivative, it counts as constant (`numerics.gradients`): an ascent
that met NaN or infinity in a gradient is repeated under that rule. A loss of NaN counts as the highest of all: that
image is returned, and the evaluation or the training step fails on it with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from robflat_bench.attacks.climbers import Ascent, Climbers, Objective
from robflat_bench.attacks.norms import climbed
from robflat_bench.core import InnerAttack, ThreatNorm
from robflat_bench.core.randomness import normal_like
from robflat_bench.numerics.compilation import captured
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.gradients import gradients_of, guarded
from robflat_bench.numerics.kernels import frozen

Moving = Callable[[Tensor], Tensor]
"""logits [B,K] of the current iterate -> bool [B]: the examples that take another step."""
NormMode = Literal["eval", "train"]
"""Statistics that batch normalisation uses during an attack: the running ones, or those of the batch."""


# ---------------------------------------------------------------------------------------------------------
# Objectives
# ---------------------------------------------------------------------------------------------------------


def cross_entropy(y: Tensor) -> Objective:
    """-log p_y, for labels y int64 [B]."""
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


def margin(y: Tensor) -> Objective:
    """max_{k != y} z_k - z_y for labels y int64 [B]; positive where misclassified. Carlini & Wagner, S&P 2017."""
    label = y[:, None]
    return lambda logits: logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label)[:, 0]


def probability_margin(y: Tensor) -> Objective:
    """`margin` of the probabilities, max_{k != y} p_k - p_y in [-1, 1]: its gradient vanishes where all is decided."""
    of = margin(y)
    return lambda logits: of(logits.softmax(1))


def divergence_from(clean: Tensor) -> Objective:
    """KL(p(clean) || p(logits)) for clean logits [B,K], which receive no gradient."""
    log_p = clean.detach().log_softmax(1)
    return lambda logits: (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)


# ---------------------------------------------------------------------------------------------------------
# The model under attack
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def attacked(model: nn.Module, bn: NormMode = "eval") -> Iterator[None]:
    """Put the model in eval mode and its parameters without gradient; restore both afterwards.

    Parameters
    ----------
    model
        The network under attack.
    bn
        "train" lets batch normalisation use the statistics of the batch. Running statistics never move.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        for module, _ in modes:
            if bn == "train" and isinstance(module, _BatchNorm):
                module.train()
        with frozen_statistics(model) if bn == "train" else nullcontext(), frozen(model):
            yield
    finally:
        model.train(modes[0][1])  # a network may act when it changes its mode, and does not see an assignment
        for module, mode in modes:
            module.training = mode
        for parameter, requires in gradients:
            parameter.requires_grad_(requires)


@contextmanager
def frozen_statistics(*models: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are, while norm layers in train mode normalise by their batch."""
    modules = [module for model in models for module in model.modules()]
    tracking = [(module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)]
    buffers = [(module, {**module._buffers}) for module in modules if isinstance(module, _InstanceNorm)]
    try:
        for module, _ in tracking:
            module.track_running_stats = False
        for norm, own in buffers:  # instance normalisation has no such switch: copies move in place of its statistics
            norm._buffers.update({name: None if value is None else value.clone() for name, value in own.items()})
        yield
    finally:
        for module, tracks in tracking:
            module.track_running_stats = tracks
        for norm, own in buffers:
            norm._buffers.update(own)


# ---------------------------------------------------------------------------------------------------------
# The ascent
# ---------------------------------------------------------------------------------------------------------


def gradient_at(x: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of each image's loss in that image, [B,C,H,W], where `losses` maps images to [B]."""
    variable = x.detach().requires_grad_()
    _, (gradient,) = gradients_of(lambda: losses(variable), [variable])
    return gradient


def ascend(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    objective: Objective,
    *,
    epsilon: float | Tensor,
    step: float | Tensor,
    steps: int,
    moving: Callable[[], Moving] | None = None,
    rest: bool = False,
    norm: str = "linf",
) -> Ascent:
    """Take projected steps of steepest ascent from `start`. Call it within `attacked(model)`.

    Parameters
    ----------
    x, start
        Clean images and first iterates, float [B,C,H,W] in [0,1]. The start is projected first.
    objective
        The quantity to maximise.
    epsilon, step
        Radius of the ball and size of a step, in pixels of [0,1]; each may be per example, [B,1,1,1].
    steps
        Number of steps, at least 0.
    moving
        Called at the start of the ascent; returns the rule that says which examples take another step. With it, the
        last iterate is returned instead of the best.
    rest
        Whether images that repeat themselves are left out (`climbers`); on a CPU, without `moving`.
    norm
        "linf" or "l2": the norm of the ball and of a step.

    Returns
    -------
    Ascent
        The best iterate of each example and its loss.
    """

    rest = rest and moving is None and x.device.type == "cpu"  # elsewhere no step waits for the device

    def climb() -> tuple[Ascent, Tensor]:
        climbers = Climbers(x, start, epsilon, step, rest, climbed(norm))
        return _climb(model, climbers, objective, steps, moving() if moving else None)

    with captured(model):
        best, finite = climb()
    if not finite:
        with guarded(model):
            best, _ = climb()
    return best


def _climb(
    model: nn.Module, climbers: Climbers, objective: Objective, steps: int, moves: Moving | None
) -> tuple[Ascent, Tensor]:
    """The ascent, and whether all its gradients were finite: a tensor, so that no step waits for the device."""
    finite = torch.ones((), dtype=torch.bool, device=climbers.current.device)
    for number in range(steps + 1):
        last = number == steps
        with torch.set_grad_enabled(not last):
            variable = climbers.current.detach().requires_grad_(not last)
            logits = model(variable)
            loss = climbers.losses(objective, logits)
            total = loss.sum()
        climbers.note(loss.detach(), keep="best" if moves is None else "last")
        if not last:
            (gradient,) = torch.autograd.grad(total, variable)
            finite &= gradient.sum().isfinite()  # a sum is finite only if all its numbers are
            climbers.advance(gradient, moves(logits.detach()) if moves else None)
            if not len(climbers.current):
                break
    return climbers.highest(), finite


# ---------------------------------------------------------------------------------------------------------
# The attack of a training step
# ---------------------------------------------------------------------------------------------------------


def _start(kind: str, x: Tensor, epsilon: float, source: torch.Generator, norm: str) -> Tensor:
    if kind == "zero":
        return x
    if kind == "normal":  # a thousandth of the pixel range, as TRADES starts, for every epsilon
        return x + 1e-3 * normal_like(x, source)
    return x + epsilon * climbed(norm).noise_like(x, source)


@dataclass(kw_only=True, eq=False)
class TrainingAttack(InnerAttack):
    """The recipe's inner attack, bound to the random numbers of one training step.

    Parameters
    ----------
    epsilon, step
        Radius of the ball and size of a step, in pixels of [0,1].
    steps
        Number of steps.
    start
        First iterate: "uniform" in the ball, "normal" with standard deviation 0.001, or "zero" (the image).
    bn
        Statistics that batch normalisation uses.
    source
        Generator of the start.
    moving
        The `moving` argument of `ascend`.
    norm
        "linf" or "l2": the norm of the ball and of a step.
    """

    epsilon: float
    step: float
    steps: int
    start: Literal["uniform", "normal", "zero"]
    bn: NormMode
    source: torch.Generator
    moving: Callable[[], Moving] | None = None
    norm: ThreatNorm = "linf"

    def attacking(self, model: nn.Module) -> AbstractContextManager[None]:
        return attacked(model, self.bn)

    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        with self.attacking(model), torch.no_grad():
            logits: Tensor = model(x)
        return logits

    def gradient(self, model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
        with self.attacking(model):
            return gradient_at(x, lambda images: objective(model(images)))

    def within(self, epsilon: float) -> TrainingAttack:
        return replace(self, epsilon=epsilon)

    def until(self, moving: Callable[[], Moving]) -> TrainingAttack:
        return replace(self, moving=moving)

    def __call__(self, model: nn.Module, x: Tensor, objective: Objective) -> Tensor:
        start = _start(self.start, x, self.epsilon, self.source, self.norm)
        with self.attacking(model), folded(model, x) if self.bn == "eval" else nullcontext():
            return ascend(
                model,
                x,
                start,
                objective,
                epsilon=self.epsilon,
                step=self.step,
                steps=self.steps,
                moving=self.moving,
                norm=self.norm,
            ).x
