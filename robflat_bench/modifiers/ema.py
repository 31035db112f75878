r"""EMA:  \bar w_k = d_k \bar w_{k-1} + (1 - d_k) w_k,   k = 1, 2, ...,   \bar w_0 the initial weights,

    d_k = min(d, (1 + k) / (10 + k)) with `warmup`, else d

Rebuffi et al.: Data augmentation can improve robustness. NeurIPS 2021.

The average is evaluated; the network trains on as if there were no average. Buffers (BN statistics) are copies of the
trained network's. The update is torch's.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Moment, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMAParams(Params):
    decay: float = Field(
        default=0.995, ge=0, lt=1, description="Weight of the average so far (d). Default: Rebuffi et al.'s."
    )
    warmup: bool = Field(default=True, description="Whether the decay after k updates is at most (1 + k) / (10 + k).")


INFO = ModifierInfo(
    name="ema",
    summary="evaluates an exponential moving average of the weights",
    factory=f"{__name__}:EMA",
    params=EMAParams,
    citation=cite("rebuffi2021data"),
    joints=("after_step", "model"),
    rank=20,
    sharded=True,
)


class EMA(Modifier):
    """Averages the weights after each update."""

    params: EMAParams
    saved = ("updates", "average")

    def setup(self, training: Training) -> None:
        self.updates = torch.tensor(0)
        self.average = {name: p.detach().clone() for name, p in _named(training.model)}

    def after_step(self, model: nn.Module) -> None:
        self.updates += 1
        count, decay = int(self.updates), self.params.decay
        if self.params.warmup:
            decay = min(decay, (1 + count) / (10 + count))
        current = [parameter.detach() for _, parameter in _named(model)]
        get_ema_multi_avg_fn(decay)([*self.average.values()], current, None)

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        return weights | {name: tensor.clone() for name, tensor in self.average.items()}


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every name of every parameter: a tied one has several, and each of them is loaded."""
    return model.named_parameters(remove_duplicate=False)
