r"""Self-adaptive training:  L(w) = mean_i [ w_i \ell_CE(f(x_i), t_i) + \beta KL( p(x_i) || p(x_i') ) ],

    t_i <- m t_i + (1 - m) p(x_i),   w_i ∝ max_j t_ij,
    x_i' = argmax_{||x' - x_i||_inf <= eps} KL( p(x_i) || p(x') )

Huang, Zhang, Zhang: Self-adaptive training: beyond empirical risk minimization. NeurIPS 2020.

t_i begins as the target. From `start` on it moves once per update, before the loss, and is a constant in the loss.
Until `start`, t_i is the target and w_i is one, which is TRADES. The mean of w_i, weighted by batch.weight, is one.
p(x_i) in the average is the prediction that the attack starts from (eval mode under the usual recipe, at w), which is
computed anyway; the released code takes the prediction of the training forward pass. An image from elsewhere (index
-1) keeps its target. Clean and adversarial images are two forward passes, and each updates BN statistics.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.running import REMEMBERS, RunningPredictions
from robflat_bench.methods.trades import TRADES, TRADESParams

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import divergence_from
    from robflat_bench.methods.losses import divergence, mean_one, soft_cross_entropy


class SelfAdaptiveParams(TRADESParams):
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Weight of the label so far in its average (m). Default: the released code's.",
    )
    start: float = Field(default=0.7, ge=0, lt=1, description="Fraction of training before labels move.")


INFO = MethodInfo(
    name="self-adaptive",
    summary="TRADES with labels that move towards the network's own predictions",
    factory=f"{__name__}:SelfAdaptive",
    params=SelfAdaptiveParams,
    citation=cite("huang2020self"),
    example={"start": 0},
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    claims=("batch", "target"),
    random_start=True,
    sharded=REMEMBERS,
)


class SelfAdaptive(RunningPredictions, TRADES):
    """TRADES with moving labels."""

    params: SelfAdaptiveParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean = inner.predict(model, batch.x)
        if self.started(batch):
            self.moved(batch, self._current(batch), clean.softmax(1))
        return inner(model, batch.x, divergence_from(clean))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        if not self.started(batch):
            return super().loss(model, batch, x_adv)
        clean, adversarial, labels = model(batch.x), model(x_adv), self._current(batch)
        weighted = mean_one(labels.amax(1), batch.weight) * soft_cross_entropy(clean, labels)
        return weighted + self.params.beta * divergence(clean, adversarial)

    def _current(self, batch: Batch) -> Tensor:
        """The labels of a batch, [B,K]."""
        labels = self.labels[batch.index]
        moved = (batch.index >= 0) & (labels.sum(1) > 0)
        return torch.where(moved[:, None], labels, batch.target)
