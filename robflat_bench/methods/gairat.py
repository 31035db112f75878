r"""GAIRAT:  L(w) = mean_i w_i \ell_CE(f(x_i'), y_i),   w_i prop. (1 + tanh( \lambda + 5 (1 - 2 \kappa_i / T) )) / 2,

x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i), kappa_i: how many of the attack's iterates x_0, ..,
x_{T-1} are still classified correctly, as the attack sees the model. The mean of w_i, weighted by batch.weight, is
one: an example of weight 0 does not touch the others. Until `warmup` all w_i are one, which is AT.
Zhang et al.: ICLR 2021.

(1 + tanh a) / 2 is the sigmoid of 2a, which does not cancel: no weight is ever exactly 0. The released code trains
on the last iterate, ours on the best; for odd T it rounds T/2 down, ours does not.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import mean_one, soft_cross_entropy


class GAIRATParams(Params):
    """lam: the larger, the more even the weights. warmup: the fraction of training without weights."""

    lam: float = Field(default=-1.0, ge=-10, le=10)
    warmup: float = Field(default=0.5, ge=0, lt=1)


INFO = MethodInfo(
    name="gairat",
    summary="adversarial training that weights examples by how soon the attack fools them",
    factory=f"{__name__}:GAIRAT",
    params=GAIRATParams,
    citation="Zhang et al.: Geometry-aware instance-reweighted adversarial training. ICLR 2021",
    example={"warmup": 0},
    attack=Passes("T + 1", "T"),
    claims=("attack",),
)


class GAIRAT(Method):
    """BN statistics see the adversarial images only. `share`, float [B]: kappa_i / T of the batch attacked last,
    from the attack to the loss."""

    params: GAIRATParams
    share: Tensor

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        objective, right = cross_entropy(batch.y), []

        def counting(logits: Tensor) -> Tensor:
            right.append(logits.detach().argmax(1) == batch.y)
            return objective(logits)

        x_adv = inner(model, batch.x, counting)
        self.share = torch.stack(right[: inner.steps]).to(batch.weight.dtype).mean(0)
        return x_adv

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = soft_cross_entropy(model(x_adv), batch.target)
        if batch.moment.progress < self.params.warmup:
            return loss
        nearness = torch.sigmoid(2 * (self.params.lam + 5 * (1 - 2 * self.share)))
        return mean_one(nearness, batch.weight) * loss
