r"""GAIRAT:  L(w) = mean_i w_i \ell_CE(f(x_i'), y_i),   w_i ∝ (1 + tanh( \lambda + 5 (1 - 2 \kappa_i / T) )) / 2,

    x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i)

where \kappa_i counts the iterates x_0, ..., x_{T-1} of the attack that are still classified correctly.

Zhang et al.: Geometry-aware instance-reweighted adversarial training. ICLR 2021.

The mean of w_i, weighted by batch.weight, is one, so an example of weight 0 has no effect on the others. Until `warmup`
all w_i are one, which is AT. \kappa_i is counted in the recipe's BN mode for attacks; BN statistics see only the
adversarial images. (1 + tanh a) / 2 is computed as sigmoid(2 a), which does not cancel: no weight is exactly 0. The
released code trains on the last iterate; here it is the best. It rounds T/2 down for odd T; here it is exact.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import mean_one


class GAIRATParams(Params):
    norms = ENGINE_NORMS

    lam: float = Field(
        default=-1.0,
        ge=-10,
        le=10,
        description="Larger values make the weights more even (lambda). Default: the released code's.",
    )
    warmup: float = Field(
        default=0.5, ge=0, lt=1, description="Fraction of training before weights are used; until then it is AT."
    )


INFO = MethodInfo(
    name="gairat",
    summary="adversarial training that weights examples by how soon the attack fools them",
    factory=f"{__name__}:GAIRAT",
    params=GAIRATParams,
    citation=cite("zhang2021geometry"),
    example={"warmup": 0},
    attack=Passes("T + 1", "T"),
    claims=("attack",),
    sharded="an example's weight is relative to the weights of its whole batch",
)


class GAIRAT(AT):
    """AT with weights; the attribute `share` [B] holds kappa_i / T from the attack to the loss."""

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
        loss = super().loss(model, batch, x_adv)
        if batch.moment.progress < self.params.warmup:
            return loss
        nearness = torch.sigmoid(2 * (self.params.lam + 5 * (1 - 2 * self.share)))
        return mean_one(nearness, batch.weight) * loss
