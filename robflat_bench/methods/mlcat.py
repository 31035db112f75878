r"""MLCAT (loss scaling):  L(w) = mean_i c_i \ell_i,   \ell_i = \ell_CE(f(x_i'), y_i),   c_i = max(1, \tau / \ell_i)

Yu et al.: Understanding robust overfitting of adversarial training and beyond. ICML 2022.

Both forms have the value max(\ell_i, \tau). They differ in the gradient of an example below the threshold \tau:

    scaled        c_i is a constant:       (\tau / \ell_i) \nabla \ell_i, the example counts more
    as-released   c_i is differentiated:   0, the example is left out of the update

The second form is what the released code computes. BN statistics see only x'.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn


class MLCATParams(Params):
    threshold: float = Field(
        default=1.5, gt=0, description="Loss below which an example is changed (tau). Default: the released code's."
    )
    form: Literal["scaled", "as-released"] = Field(
        default="scaled", description="scaled: such examples count more, as intended. as-released: they are left out."
    )


INFO = MethodInfo(
    name="mlcat",
    summary="adversarial training that raises small losses to a threshold",
    factory=f"{__name__}:MLCAT",
    params=MLCATParams,
    citation=cite("yu2022understanding"),
    attack=Passes("T + 1", "T"),
    sharded=True,
)


class MLCAT(AT):
    """AT that gives well-learned examples more weight, or none."""

    params: MLCATParams

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = super().loss(model, batch, x_adv)
        if self.params.form == "as-released":
            return loss.clamp_min(self.params.threshold)
        smallest = torch.finfo(loss.dtype).eps  # a loss that is 0 in machine precision has no gradient to scale
        scale = self.params.threshold / loss.detach().clamp_min(smallest)
        return loss * scale.clamp_min(1)
