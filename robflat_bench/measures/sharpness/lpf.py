r"""Low-pass-filtered loss, as its rise over the loss at w:

    E_u[ L(w + u) ] - L(w),   u ~ N(0, std^2 I),   or per filter f of n_f weights  u_f ~ N(0, std^2 ||w_f||^2 / n_f I)

The filtered loss itself is the detail `loss_moved`, the rise relative to L(w) the detail `relative` (where
L(w) > 0).   Bisla et al., AISTATS 2022; filters: Li et al., NeurIPS 2018.

Invariances: plain, to none; near a minimum the value is std^2 / 2 tr H, so scaling all layers by c without changing
the function divides it by c^2. With filter_normalised, to scaling filters that batch normalisation follows, and one
layer by c and the next by 1/c; not to scaling single weights. Scaling the last layer, and so the logits, changes it;
with filter_normalised, logits="normalised" and the coupling clean it does not.
Cost: draws + 1 forward passes, an attack more for each under reattack, one for all under frozen.
The peer folds batch normalisation first; here the layers are those of `WeightSpace`, normalisation stays.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import OracleParams, read

with lazy_imports():
    from torch import nn

    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import by_filter, losses_after, mean_rise, noise
    from robflat_bench.numerics.weight_space import Direction, WeightSpace


class LPFParams(OracleParams):
    """std: of the Gaussian filter. filter_normalised: std is relative to the root mean square of each filter."""

    std: Number = Field(default=0.01, ge=0)
    filter_normalised: bool = False
    draws: int = Field(default=100, ge=2)


INFO = MeasureInfo(
    name="lpf",
    summary="rise of the loss when a Gaussian low-pass filter smooths it over the weights",
    factory=f"{__name__}:LPF",
    params=LPFParams,
    citation=(
        "Bisla, Wang, Choromanska: Low-pass filtering SGD for recovering flat optima in the deep learning"
        " optimization landscape. AISTATS 2022"
    ),
    title="LPF ({coupling}), std={std:g}, filter_normalised={filter_normalised}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=read("draws + 1"),
)


class LPF(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: LPFParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        space, oracle = WeightSpace(model), Oracle(self.threat, self.params)
        moves = (self._move(space, workspace.seed, draw) for draw in range(self.params.draws))
        return mean_rise(*losses_after(oracle, space, model, examples, workspace, moves))

    def _move(self, space: WeightSpace, seed: int, draw: int) -> Direction:
        z = noise(space, seed, "lpf", draw)
        return {
            name: self.params.std * z[name] * (by_filter(layer) if self.params.filter_normalised else 1)
            for name, layer in space.layers.items()
        }
