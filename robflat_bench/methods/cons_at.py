r"""Cons-AT:  L(w) = mean_i [ 1/2 \ell_CE(f(x_i1'), y_i) + 1/2 \ell_CE(f(x_i2'), y_i) + \lambda JS(p_i1, p_i2) ],

    p_iv = softmax(f(x_iv') / T),   JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m),   m = (p + q) / 2,

where x_i1 and x_i2 are two augmentations of one image, and x_iv' is the recipe's attack on each.

Tack et al.: Consistency regularization for adversarial robustness. AAAI 2022.

As in the released code, the two cross-entropies are averaged, and one forward pass of both views updates BN
statistics. The views are attacked one after the other. The released code attacks them together; the result differs
only if the attack normalises by the batch. It also bounds m below by 1e-8; here the logarithm of m is exact.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class ConsATParams(Params):
    norms = ENGINE_NORMS

    weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the divergence between the views (lambda). Default: the released code's.",
    )
    temperature: float = Field(
        default=0.5, gt=0, description="Divides the logits in the divergence (T). Default: the released code's."
    )


INFO = MethodInfo(
    name="cons-at",
    summary="adversarial training on two augmentations of each image, with a penalty where their predictions differ",
    factory=f"{__name__}:ConsAT",
    params=ConsATParams,
    citation=cite("tack2022consistency"),
    attack=Passes("2 * (T + 1)", "2 * T"),
    loss=Passes("2", "2"),
    claims=("attack", "batch"),
    sharded=True,
)


class ConsAT(Method):
    """x_adv is the first attacked view; the attribute `second` [B,C,H,W] holds the other until the loss."""

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
    """JS(p, q) [B] between the predictions of two logits [B,K]."""
    mean = torch.logaddexp(one.log_softmax(1), two.log_softmax(1))  # logits of m: log 2 cancels in the softmax
    return (divergence(one, mean) + divergence(two, mean)) / 2
