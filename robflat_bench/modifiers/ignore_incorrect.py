r"""Ignore incorrect:  x_i' = x_i where argmax_k f(x_i)_k != y_i;  the others are attacked.

The clean prediction is made as the attack sees the model and moves no BN statistics, where the released code
updates them by a forward in train mode.   Stutz et al.: ICCV 2021.
"""

from __future__ import annotations

from robflat_bench.core import Attacker, Batch, InnerAttack, Modifier, ModifierInfo, Passes, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn


INFO = ModifierInfo(
    name="ignore-incorrect",
    summary="examples that are misclassified anyway stay clean",
    factory=f"{__name__}:IgnoreIncorrect",
    citation="Stutz et al.: Relating adversarially robust generalization to flat minima. ICCV 2021",
    joints=("attack",),
    attack=Passes("1", "0"),
)


class IgnoreIncorrect(Modifier):
    """All are attacked, those without use for it in vain: the others meet the same draws as without."""

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        correct = inner.predict(model, batch.x).argmax(1) == batch.y
        return torch.where(correct[:, None, None, None], attack(model, batch, inner), batch.x)
