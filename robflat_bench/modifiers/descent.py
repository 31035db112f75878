"""What the weight perturbations share: descending the loss of perturbed weights."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from robflat_bench.core import Loss
from robflat_bench.numerics.weight_space import Direction, WeightSpace


def descend_at(space: WeightSpace, nu: Direction, loss: Loss, optimizer: Optimizer) -> Tensor:
    """One step from w along the gradient at w + nu, where BN statistics move, too; the loss at w + nu.

    The weights are restored from a copy, bit for bit, before the optimizer steps."""
    with space.moved(nu):
        value = loss()
        value.backward()
    optimizer.step()
    return value.detach()
