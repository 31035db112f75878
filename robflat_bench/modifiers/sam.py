r"""SAM and ASAM:  descend  dL/dw  at  w + e,  e = \rho T^2 g / ||T g||,  g = dL/dw at w,  one norm over all parameters.

SAM: T = 1 (Foret et al.: ICLR 2021). ASAM: T = |w| + \eta on convolution and linear weights, 1 on biases and
normalisation (Kwon et al.: ICML 2021; the released code scales normalisation weights, too). Biases and normalisation
move; a parameter without gradient stays. The adversarial images are those found at w. The forward at w moves BN
statistics, the one at w + e does not.
"""

from __future__ import annotations

import math

from pydantic import Field

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.numerics.weight_space import norm


class SAMParams(Params):
    """rho: radius in the norm of all parameters."""

    rho: Number = Field(default=0.05, gt=0)


class ASAMParams(Params):
    """rho: radius in units of the weights. eta: added to their size, so that small ones move, too."""

    rho: Number = Field(default=0.5, gt=0)
    eta: float = Field(default=0.01, ge=0)


INFO = (
    ModifierInfo(
        name="sam",
        summary="sharpness-aware minimisation: descends the loss one gradient step uphill",
        factory=f"{__name__}:SAM",
        params=SAMParams,
        citation="Foret et al.: Sharpness-aware minimization for efficiently improving generalization. ICLR 2021",
        joints=("backward",),
        losses="2",
    ),
    ModifierInfo(
        name="asam",
        summary="adaptive sharpness-aware minimisation: SAM in units of each weight's size",
        factory=f"{__name__}:ASAM",
        params=ASAMParams,
        citation=(
            "Kwon et al.: ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep "
            "neural networks. ICML 2021"
        ),
        joints=("backward",),
        losses="2",
    ),
)


class SAM(Modifier):
    """The weights are restored from a copy, bit for bit, before the optimizer steps."""

    params: SAMParams | ASAMParams

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


class ASAM(SAM):
    """Scaling a layer's weights scales its share of the ball."""

    params: ASAMParams

    def scale(self, parameter: Tensor) -> Tensor:
        return parameter.abs() + self.params.eta if parameter.ndim > 1 else torch.ones_like(parameter)
