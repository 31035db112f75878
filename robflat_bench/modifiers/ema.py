r"""EMA:  \bar w_k = d_k \bar w_{k-1} + (1 - d_k) w_k,  d_k = min(d, (1 + k) / (10 + k)) with warm-up, k = 1, 2, ...

starting at the initial weights. Buffers (BN statistics) are those of the trained network, copied.
Rebuffi et al.: NeurIPS 2021; the update is torch's.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Moment, Params, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMAParams(Params):
    """decay: weight of the average so far. warmup: decay is at most (1 + k) / (10 + k) after k updates."""

    decay: float = Field(default=0.995, ge=0, lt=1)
    warmup: bool = True


INFO = ModifierInfo(
    name="ema",
    summary="evaluates an exponential moving average of the weights",
    factory=f"{__name__}:EMA",
    params=EMAParams,
    citation="Rebuffi et al.: Data augmentation can improve robustness. NeurIPS 2021",
    joints=("after_step", "model"),
    rank=20,
)


class EMA(Modifier):
    """The average is evaluated, the network trains on as if there were none."""

    params: EMAParams

    def setup(self, training: Training) -> None:
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    def after_step(self, model: nn.Module) -> None:
        self.updates += 1
        decay = self.params.decay
        if self.params.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        current = [parameter.detach() for parameter in model.parameters()]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), current, None)

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        return weights | {name: tensor.clone() for name, tensor in self.average.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates)} | {f"average.{name}": t for name, t in self.average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for name, tensor in self.average.items():
            tensor.copy_(state[f"average.{name}"])
