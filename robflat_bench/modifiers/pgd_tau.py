r"""PGD-\tau:  the attack on example i ends \tau steps after its first iterate that is misclassified,

    x_i' = x_i^(min(T, j + \tau)),   j the first iterate (the start is 0) with argmax_k f(x_i^(j))_k != y_i,

and x_i^(T) where there is none. The last iterate is kept, whatever its loss; a released implementation leaves
examples that are never misclassified unperturbed.   Zhang et al.: ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import NonNegativeInt

from robflat_bench.core import Attacker, Batch, InnerAttack, Modifier, ModifierInfo, Params, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn


class PGDTauParams(Params):
    """tau: steps after the first misclassified iterate."""

    tau: NonNegativeInt = 0


INFO = ModifierInfo(
    name="pgd-tau",
    summary="friendly attack: each example stops soon after it is misclassified",
    factory=f"{__name__}:PGDTau",
    params=PGDTauParams,
    citation="Zhang et al.: Attacks which do not kill training make adversarial learning stronger. ICML 2020",
    joints=("attack",),
)


class PGDTau(Modifier):
    """Misclassified is meant of the label that the method's attack is given, whatever it maximises."""

    params: PGDTauParams

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return attack(model, batch, inner.until(lambda: moving(batch.y, self.params.tau)))


def moving(y: Tensor, tau: int) -> Callable[[Tensor], Tensor]:
    """True until `tau` steps have followed the first misclassified iterate; asked at each iterate but the last."""
    left = torch.full_like(y, tau)
    fooled = torch.zeros_like(y, dtype=torch.bool)

    def moves(logits: Tensor) -> Tensor:
        fooled.logical_or_(logits.argmax(1) != y)
        move = ~fooled | (left > 0)
        left.sub_(fooled.long())
        return move

    return moves
