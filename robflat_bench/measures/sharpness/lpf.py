r"""The low-pass-filtered loss, as its rise over the loss at w:

    E_u[ L(w + u) ] - L(w),   u ~ N(0, std^2 I),   or per filter f of n_f weights  u_f ~ N(0, std^2 ||w_f||^2 / n_f I)

Lower is flatter. Details: `loss_moved`, the filtered loss; `relative`, the rise relative to L(w), where L(w) > 0.
Bisla et al., AISTATS 2022, whose code folds batch normalisation first; here normalisation stays. Filters: Li et al.,
NeurIPS 2018.

Invariances: none by default; near a minimum the value is std^2 / 2 tr H, so scaling all layers by c, at the same
function, divides it by c^2. With `filter_normalised`, to scaling filters before batch normalisation, and to scaling one
layer by c and the next by 1/c; not to scaling single weights. Scaling the last layer, and so the logits, changes it;
with `filter_normalised`, logits="normalised" and the coupling clean it does not.
Cost: draws + 1 forward passes, and `frozen` one attack in all. `reattack`: an attack at w, `full_draws` full attacks
and `draws` short ones (`random_moves`).
"""

from __future__ import annotations

from functools import partial

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import Draws, DrawsParams, FullDraws, passes_of_draws

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.measures.random_moves import by_filter, losses_after, mean_rise, random_move
    from robflat_bench.numerics.weight_space import WeightSpace


class LPFParams(DrawsParams):
    std: Number = Field(
        default=0.01, ge=0, description="Standard deviation of the Gaussian filter. Default: the released code's."
    )
    filter_normalised: bool = Field(default=False, description="`std` is relative to the rms of each filter's weights.")
    draws: Draws = 100
    full_draws: FullDraws = 20


INFO = MeasureInfo(
    name="lpf",
    summary="rise of the loss when a Gaussian low-pass filter smooths it over the weights",
    factory=f"{__name__}:LPF",
    params=LPFParams,
    citation=cite("bisla2022low"),
    title="LPF ({coupling}), std={std:g}, filter_normalised={filter_normalised}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=passes_of_draws(),
    estimate="draws and examples",
)


class LPF(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference); `shortfall`
    [full_draws, N], if short attacks are corrected (`random_moves`)."""

    params: LPFParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        space = WeightSpace(model, exclude=self.params.exclude)
        move = partial(random_move, space, self._scaled, workspace.seed, INFO.name)
        return mean_rise(losses_after(self, space, examples, workspace, move))

    def _scaled(self, z: Tensor, w: Tensor) -> Tensor:
        return self.params.std * z * (by_filter(w) if self.params.filter_normalised else 1)
