r"""ASAM:  descend dL/dw at w + e,   e = \rho T^2 g / ||T g||,   g = dL/dw at w, with one norm over all parameters

Kwon et al.: ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep neural networks.
ICML 2021.

T = |w| + \eta on convolution and linear weights, and 1 on biases and normalisation layers; the released code scales
normalisation weights, too. So scaling a layer's weights scales its share of the ball. The rest is SAM.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import ModifierInfo, Number, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.modifiers.sam import SAM, SAMParams

with lazy_imports():
    from torch import Tensor


class ASAMParams(SAMParams):
    rho: Number = Field(default=0.5, gt=0, description="Radius, relative to the size of each weight.")
    eta: float = Field(
        default=0.01,
        ge=0,
        description="Added to the size of each weight, so that small ones move. Default: the released code's.",
    )


INFO = ModifierInfo(
    name="asam",
    summary="adaptive sharpness-aware minimisation: SAM in units of each weight's size",
    factory=f"{__name__}:ASAM",
    params=ASAMParams,
    citation=cite("kwon2021asam"),
    joints=("backward",),
    losses="2",
    sharded=True,
)


class ASAM(SAM):
    """SAM in units of each weight's size."""

    params: ASAMParams

    def scale(self, parameter: Tensor) -> Tensor:
        return parameter.abs() + self.params.eta if parameter.ndim > 1 else super().scale(parameter)
