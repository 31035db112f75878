r"""AT:  L(w) = mean_i max_{||d||_inf <= eps} \ell_CE(f(x_i + d; w), y_i)

Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018.

All examples are adversarial. BN statistics see only the adversarial images.
"""

from __future__ import annotations

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import soft_cross_entropy


INFO = MethodInfo(
    name="at",
    summary="adversarial training: cross-entropy on PGD examples",
    factory=f"{__name__}:AT",
    citation=cite("madry2018towards"),
    attack=Passes("T + 1", "T"),
    sharded=True,
)


class AT(Method):
    """Cross-entropy on the adversarial images that maximise it."""

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return inner(model, batch.x, cross_entropy(batch.y))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        return soft_cross_entropy(model(x_adv), batch.target)
