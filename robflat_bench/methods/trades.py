r"""TRADES:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta KL( p(x_i) || p(x_i') ) ],

    x_i' = argmax_{||x' - x_i||_inf <= eps} KL( p(x_i) || p(x') )

Zhang et al.: Theoretically principled trade-off between robustness and accuracy. ICML 2019.

The attack treats the clean prediction as a constant; in the loss the gradient flows through both predictions. Clean
and adversarial images are two forward passes, and each updates BN statistics. At x itself the attack's gradient is
zero, so the recipe's start must be random.

The released code keeps the attack's last iterate, starts it unclipped at x + 0.001 N(0,1), and updates BN statistics
in a third forward pass, the clean one of the attack. Here the iterate with the highest divergence is kept, the start
lies in [0,1], and the attack leaves statistics alone.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import divergence_from
    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class TRADESParams(Params):
    beta: float = Field(
        default=6.0, ge=0, description="Weight of the divergence (lambda in some papers). Default: the released code's."
    )


INFO = MethodInfo(
    name="trades",
    summary="clean cross-entropy plus divergence between clean and adversarial predictions",
    factory=f"{__name__}:TRADES",
    params=TRADESParams,
    citation=cite("zhang2019theoretically"),
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    random_start=True,
    sharded=True,
)


class TRADES(Method):
    """Accuracy on clean images, and predictions that stay the same within the ball."""

    params: TRADESParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return inner(model, batch.x, divergence_from(inner.predict(model, batch.x)))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        return soft_cross_entropy(clean, batch.target) + self.params.beta * divergence(clean, adversarial)
