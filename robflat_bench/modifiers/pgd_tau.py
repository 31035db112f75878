r"""PGD-\tau:  the attack on example i ends at its misclassified iterate number \tau + 1:

    x_i' = x_i^(min(T, j)),   j = min{ t : #{ s <= t : argmax_k f(x_i^(s))_k != y_i } = \tau + 1 },   the start is s = 0

Zhang et al.: Attacks which do not kill training make adversarial learning stronger. ICML 2020.

Iterates that are classified correctly are not counted, so an example that turns correct again is attacked further. If
there are fewer misclassified iterates, x_i' = x_i^(T); a released implementation leaves such examples unperturbed. The
last iterate is used, whatever its loss. y_i is the label that the method's attack receives, whatever it maximises.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, NonNegativeInt

from robflat_bench.core import ENGINE_NORMS, Attacker, Batch, InnerAttack, Modifier, ModifierInfo, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn


class PGDTauParams(Params):
    norms = ENGINE_NORMS

    tau: NonNegativeInt = Field(default=0, description="Misclassified iterates that are passed before the attack ends.")


INFO = ModifierInfo(
    name="pgd-tau",
    summary="friendly attack: each example stops soon after it is misclassified",
    factory=f"{__name__}:PGDTau",
    params=PGDTauParams,
    citation=cite("zhang2020attacks"),
    joints=("attack",),
    sharded=True,
)


class PGDTau(Modifier):
    """Stops the attack on each example early."""

    params: PGDTauParams

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return attack(model, batch, inner.until(lambda: moving(batch.y, self.params.tau)))


def moving(y: Tensor, tau: int) -> Callable[[Tensor], Tensor]:
    """A function of logits [B,K] that says which examples take another step, bool [B].

    The attack calls it at each iterate but the last, because it counts the misclassified iterates. An example that has
    stopped stays where it is.
    """
    left = torch.full_like(y, tau)
    stopped = torch.zeros_like(y, dtype=torch.bool)

    def moves(logits: Tensor) -> Tensor:
        fooled = logits.argmax(1) != y
        stopped.logical_or_(fooled & (left == 0))
        left.sub_((fooled & ~stopped).long())
        return ~stopped

    return moves
