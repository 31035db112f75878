r"""Weight clipping:  w <- \Pi_{[-c, c]}(w) for every parameter that is not frozen, after each update

Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021,
after Stutz, Chandramoorthy, Hein, Schiele: Bit error robustness for energy-efficient DNN accelerators. MLSys 2021.

Scales of normalisation layers are projected to [1 - c, 1 + c], because the paper's layers store the scale minus 1.
Only training is constrained: the flatness measures move the trained weights out of the box. The released code clips
them there, too, which makes clipped networks look flatter. Extra heads are not clipped, because they are not evaluated.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import nn

    from robflat_bench.numerics.gains import NORMALISATION


class WeightClippingParams(Params):
    limit: Number = Field(
        default=0.005,
        gt=0,
        description="Largest size of a weight; for scales, of scale - 1 (c). Stutz et al. try 0.005 to 0.02.",
    )


INFO = ModifierInfo(
    name="weight-clipping",
    summary="keeps all parameters within a small box",
    factory=f"{__name__}:WeightClipping",
    params=WeightClippingParams,
    citation=cite("stutz2021relating"),
    joints=("after_step",),
    rank=10,
    sharded=True,
)


class WeightClipping(Modifier):
    """Projects the weights onto a box."""

    params: WeightClippingParams

    def after_step(self, model: nn.Module) -> None:
        limit = self.params.limit
        norms = [module for module in model.modules() if isinstance(module, NORMALISATION)]
        scales = {id(getattr(module, "weight", None)) for module in norms}
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    continue
                center = 1.0 if id(parameter) in scales else 0.0
                parameter.clamp_(center - limit, center + limit)
