r"""Self-adaptive training:  L(w) = mean_i [ w_i \ell_CE(f(x_i), t_i) + \beta KL( p(x_i) || p(x_i') ) ],

t_i <- m t_i + (1 - m) p(x_i),   w_i prop. max_j t_ij,   x_i' = argmax_{||x' - x_i||_inf <= eps} KL( p(x_i) || p(x') ).
t_i begins as the target, moves once per update from `start` on, before the loss, and is a constant in it. Until
`start` t_i is the target and w_i is one, which is TRADES. The mean of w_i, weighted by batch.weight, is one.
Huang, Zhang, Zhang: NeurIPS 2020.

p(x_i) in the average is the prediction that the attack starts from (eval mode under the usual recipe, at w), made
anyway; the released code takes that of the training forward. An image from elsewhere keeps its target.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import divergence_from
    from robflat_bench.methods.losses import divergence, mean_one, soft_cross_entropy


class SelfAdaptiveParams(Params):
    """beta: weight of the divergence term. momentum: weight of the label so far in its running average. start: the
    fraction of training before labels move."""

    beta: float = Field(default=6.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    start: float = Field(default=0.7, ge=0, lt=1)


INFO = MethodInfo(
    name="self-adaptive",
    summary="TRADES with labels that move towards the network's own predictions",
    factory=f"{__name__}:SelfAdaptive",
    params=SelfAdaptiveParams,
    citation="Huang, Zhang, Zhang: Self-adaptive training: beyond empirical risk minimization. NeurIPS 2020",
    example={"start": 0},
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    claims=("batch", "target"),
)


class SelfAdaptive(Method):
    """Clean and adversarial images are two forwards, so BN statistics are updated by each. `labels` [N,K]: t_i, or
    zeros for an example not averaged yet."""

    params: SelfAdaptiveParams

    def setup(self, training: Training) -> None:
        like = next(training.model.parameters())
        self.labels = like.new_zeros((training.count, training.shape.classes), requires_grad=False)

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean = inner.predict(model, batch.x)
        if self._started(batch):
            momentum, known = self.params.momentum, batch.index >= 0
            moved = momentum * self._current(batch) + (1 - momentum) * clean.softmax(1)
            self.labels[batch.index[known]] = moved[known]
        return inner(model, batch.x, divergence_from(clean))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        drift = self.params.beta * divergence(clean, adversarial)
        if not self._started(batch):
            return soft_cross_entropy(clean, batch.target) + drift
        labels = self._current(batch)
        return mean_one(labels.amax(1), batch.weight) * soft_cross_entropy(clean, labels) + drift

    def _started(self, batch: Batch) -> bool:
        return batch.moment.progress >= self.params.start

    def _current(self, batch: Batch) -> Tensor:
        held = self.labels[batch.index]
        seen = (batch.index >= 0) & (held.sum(1) > 0)
        return torch.where(seen[:, None], held, batch.target)

    def state_dict(self) -> dict[str, Tensor]:
        return {"labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.labels.copy_(state["labels"])
