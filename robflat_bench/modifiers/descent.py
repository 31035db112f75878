"""What the weight perturbations share: the gradient in the weights, and descent at perturbed weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from robflat_bench.core import Loss
from robflat_bench.numerics.weight_space import Direction, WeightSpace


def gradient_from(
    space: WeightSpace, nu: Direction, loss: Loss, keep: Callable[[Tensor], Tensor] | None = None
) -> Direction:
    """The gradient of the loss in the weights of `space` at w + nu; BN statistics stand still.

    Parameters
    ----------
    keep: factors of the examples' losses, as `Loss` takes them.
    """
    if not space.layers:  # all matrices are frozen
        return {}
    with space.moved(nu):
        gradient = torch.autograd.grad(loss(frozen=True, keep=keep), [*space.layers.values()], materialize_grads=True)
    return dict(zip(space.layers, gradient, strict=True))


def descend_at(space: WeightSpace, nu: Direction, loss: Loss, optimizer: Optimizer) -> Tensor:
    """One optimizer step from w along the gradient at w + nu, where BN statistics move; returns the loss there.

    The weights are restored from a copy, bit for bit, before the optimizer steps.
    """
    with space.moved(nu):
        value = loss()
        value.backward()
    optimizer.step()
    return value.detach()
