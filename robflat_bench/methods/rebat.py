r"""ReBAT:  L(w) = mean_i [ \ell_CE(f(x_i'; w), y_i) + \beta KL( p(x_i'; \bar w) || p(x_i'; w) ) ],

    \bar w <- d \bar w + (1 - d) w   after each update,   x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'; w), y_i)

Wang et al.: Balance, imbalance, and rebalance: understanding robust overfitting from a minimax game perspective.
NeurIPS 2023.

Until `start`, \bar w is w, the divergence is left out, and training is AT. The average is a constant in the loss and
predicts in eval mode; BN statistics are averaged as weights are. The average is evaluated, not w.

The paper also lets the learning rate drop less. Its schedule, drops by 1.5 instead of 10, is the recipe's:

    --set "recipe.schedule=piecewise(drops=[0.5, 0.75], factor=2/3)"

ReBAT++ attacks with radius 10/255 and 12 steps from the first drop on; it is not offered. In the released code, BN
statistics also see the clean images once after each update, and a divergence of 1e10 or more is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Moment, Number, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.methods.losses import divergence, soft_cross_entropy
    from robflat_bench.numerics.passes import counted_copy


class ReBATParams(Params):
    beta: float = Field(
        default=1.0, ge=0, description="Weight of the divergence from the average. Default: the released code's."
    )
    decay: float = Field(
        default=0.999, ge=0, lt=1, description="Weight of the average so far (d). Default: the released code's."
    )
    start: Number = Field(
        default=105 / 200,
        ge=0,
        lt=1,
        description="Fraction of training before averaging. Default: the released code's, epoch 105 of 200.",
    )


INFO = MethodInfo(
    name="rebat",
    summary="adversarial training that stays near the average of its late weights, which is evaluated",
    factory=f"{__name__}:ReBAT",
    params=ReBATParams,
    citation=cite("wang2023balance"),
    example={"start": 0},
    attack=Passes("T + 1", "T"),
    loss=Passes("2", "1", at_most=True, least=("1 + (start == 0)", "1")),
    sharded=True,
)


class ReBAT(AT):
    """AT with a weight average; `average` is the network at these weights."""

    params: ReBATParams

    def setup(self, training: Training) -> None:
        self.average = counted_copy(training.model).eval().requires_grad_(False)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        logits = model(x_adv)
        loss = soft_cross_entropy(logits, batch.target)
        if not self._averages(batch.moment):
            return loss
        with torch.no_grad():
            averaged = self.average(x_adv)
        return loss + self.params.beta * divergence(averaged, logits)

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        decay = self.params.decay if self._averages(moment) else 0.0
        with torch.no_grad():
            for kept, current in zip(_tensors(self.average), _tensors(model), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(current, 1 - decay)
                else:
                    kept.copy_(current)

    def evaluated(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.average.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.average.load_state_dict({name.removeprefix("average."): tensor for name, tensor in state.items()})

    def _averages(self, moment: Moment) -> bool:
        return moment.progress >= self.params.start


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers, each once."""
    return [*model.parameters(), *model.buffers()]
