r"""Label noise:  with probability \tau, t_i <- e_c for each example,   c uniform over all K classes

Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

c may be the label itself, so (1 - 1/K) \tau of the labels change. Labels are drawn anew in each update. The attack
keeps the true label. A soft target is replaced as a whole.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor
    from torch.nn import functional as F


class LabelNoiseParams(Params):
    tau: Number = Field(
        default=0.1, ge=0, le=1, description="Probability that a label is drawn anew. Stutz et al. try 0.05 to 0.5."
    )


INFO = ModifierInfo(
    name="label-noise",
    summary="labels drawn anew at random, in the loss only",
    factory=f"{__name__}:LabelNoise",
    params=LabelNoiseParams,
    citation=cite("stutz2021relating"),
    joints=("target",),
    rank=10,
    sharded=True,
)


class LabelNoise(Modifier):
    """Replaces targets at random."""

    params: LabelNoiseParams

    def target(self, batch: Batch) -> Tensor:
        count, classes = batch.target.shape
        source = batch.moment.random("label noise")
        noisy = torch.rand(count, generator=source, dtype=torch.float64) < self.params.tau
        drawn = F.one_hot(torch.randint(classes, (count,), generator=source), classes)
        return torch.where(noisy[:, None].to(batch.target.device), drawn.to(batch.target), batch.target)
