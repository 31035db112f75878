r"""The distance of the weights from those that training began with:

    || w - w_0 ||_2   over the layers of `WeightSpace`, w_0: the initial weights

Details: `relative`, the ratio to || w_0 ||_2; `distance/NAME` of each layer.
Dziugaite & Roy, UAI 2017; Jiang et al., ICLR 2020.

A run keeps w_0 beside its checkpoints. For weights from elsewhere w_0 is not known, and the measure has no value.
Invariances: none, because w_0 does not follow a rescaling of w. Standard error: None, because no example is read.
Cost: no pass.
"""

from __future__ import annotations

import math

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Passes, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import WeightSpaceParams

with lazy_imports():
    from torch import nn

    from robflat_bench.numerics.weight_space import WeightSpace, norm


INFO = MeasureInfo(
    name="distance-from-init",
    summary="distance of the weights from those that training began with",
    factory=f"{__name__}:DistanceFromInit",
    params=WeightSpaceParams,
    citation=cite("dziugaite2017computing", "jiang2020fantastic"),
    title="distance from initialisation",
    passes={"": Passes()},
)


class DistanceFromInit(Measure):
    """No arrays. Details: `relative`, `distance/NAME`."""

    params: WeightSpaceParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        initial = workspace.initial
        if initial is None:
            raise NoValue("the initial weights are not known; measure a run, which keeps them in checkpoints/initial")
        layers = WeightSpace(model, exclude=self.params.exclude).layers
        begun = {name: initial[name].to(layer) for name, layer in layers.items()}
        moved = {f"distance/{name}": norm(layer - begun[name]) for name, layer in layers.items()}
        value, before = math.hypot(*moved.values()), math.hypot(*map(norm, begun.values()))
        relative = {"relative": value / before} if before > 0 else {}
        return Measurement(value, None, 0, {**relative, **moved})
