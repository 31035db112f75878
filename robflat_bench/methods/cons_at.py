r"""Cons-AT:  L(w) = mean_i [ 1/2 \ell_CE(f(x_i1'), y_i) + 1/2 \ell_CE(f(x_i2'), y_i) + \lambda JS(p_i1, p_i2) ],

p_iv = softmax(f(x_iv') / T),   JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m),  m = (p + q) / 2,

where x_i1, x_i2 are two augmentations of one image and x_iv' the recipe's attack of each.
Tack et al.: AAAI 2022. As in the authors' code the cross-entropies are averaged, and one forward of both views together
updates BN statistics. The views are attacked one after the other (there together, which differs only where the
attack normalises by the batch).
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class ConsATParams(Params):
    """weight: of the divergence between the views (lambda). temperature: divides the logits in it."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.5, gt=0)


INFO = MethodInfo(
    name="cons-at",
    summary="adversarial training on two augmentations whose predictions shall agree",
    factory=f"{__name__}:ConsAT",
    params=ConsATParams,
    citation="Tack et al.: Consistency regularization for adversarial robustness. AAAI 2022",
    attack=Passes("2 * (T + 1)", "2 * T"),
    loss=Passes("2", "2"),
    claims=("attack", "batch"),
)


class ConsAT(Method):
    """x_adv is the first view's; `second`, set by each attack, is the other's, as shaped."""

    params: ConsATParams
    second: Tensor

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        objective = cross_entropy(batch.y)
        first = inner(model, batch.x, objective)
        self.second = inner(model, batch.view(1), objective)
        return first

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        logits = model(torch.cat([x_adv, self.second]))
        classes = soft_cross_entropy(logits, batch.target.repeat(2, 1))
        consistency = jensen_shannon(*(logits / self.params.temperature).chunk(2))
        return torch.stack(classes.chunk(2)).mean(0) + self.params.weight * consistency


def jensen_shannon(one: Tensor, two: Tensor) -> Tensor:
    """1/2 KL(p || m) + 1/2 KL(q || m) of logits [B,K], m the mean of p and q: [B]."""
    mean = torch.logaddexp(one.log_softmax(1), two.log_softmax(1))  # as logits: a constant does not matter
    return (divergence(one, mean) + divergence(two, mean)) / 2
