r"""SAM:  descend dL/dw at w + e,   e = \rho g / ||g||,   g = dL/dw at w, with one norm over all parameters

Foret et al.: Sharpness-aware minimization for efficiently improving generalization. ICLR 2021.

Biases and normalisation layers are perturbed, too; a parameter without gradient stays. The adversarial images are
found at w. The forward pass at w moves BN statistics; the one at w + e does not. The weights are restored from a copy,
bit for bit, before the optimizer steps.
"""

from __future__ import annotations

import math

from pydantic import Field

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.numerics.weight_space import norm


class SAMParams(Params):
    rho: Number = Field(
        default=0.05,
        gt=0,
        description="Radius, in the l2 norm of all parameters together. Default: the released code's.",
    )


INFO = ModifierInfo(
    name="sam",
    summary="sharpness-aware minimisation: descends the loss one gradient step uphill",
    factory=f"{__name__}:SAM",
    params=SAMParams,
    citation=cite("foret2021sharpness"),
    joints=("backward",),
    losses="2",
    sharded=True,
)


class SAM(Modifier):
    """Descends one gradient step uphill, e = rho T^2 g / ||T g||. T is `scale`: 1 here, other values in ASAM."""

    params: SAMParams

    def scale(self, parameter: Tensor) -> Tensor:
        """T of this parameter."""
        return torch.ones_like(parameter)

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        value = loss()
        value.backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moving = [parameter for parameter in trained if parameter.grad is not None]
        saved = [parameter.detach().clone() for parameter in moving]
        with torch.no_grad():
            scales = [self.scale(parameter) for parameter in moving]
            scaled = [scale * parameter.grad for scale, parameter in zip(scales, moving, strict=True)]
            length = math.hypot(*map(norm, scaled))
            if length > 0:
                for parameter, scale, ascent in zip(moving, scales, scaled, strict=True):
                    parameter.add_(scale * ascent, alpha=self.params.rho / length)
        optimizer.zero_grad(set_to_none=True)
        loss(frozen=True).backward()
        with torch.no_grad():
            for parameter, copy in zip(moving, saved, strict=True):
                parameter.copy_(copy)
        optimizer.step()
        return value.detach()
