r"""Ignore incorrect:  x_i' = x_i if argmax_k f(x_i)_k != y_i;  the other examples are attacked.

Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

The clean prediction is made in the recipe's BN mode for attacks and moves no BN statistics. The released code makes it
in train mode, which moves them.
"""

from __future__ import annotations

from robflat_bench.core import (
    ENGINE_NORMS,
    Attacker,
    Batch,
    InnerAttack,
    Modifier,
    ModifierInfo,
    Params,
    Passes,
    lazy_imports,
)
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn


class IgnoreIncorrectParams(Params):
    norms = ENGINE_NORMS


INFO = ModifierInfo(
    name="ignore-incorrect",
    summary="examples that are misclassified anyway stay clean",
    factory=f"{__name__}:IgnoreIncorrect",
    params=IgnoreIncorrectParams,
    citation=cite("stutz2021relating"),
    joints=("attack",),
    attack=Passes("1", "0"),
    sharded=True,
)


class IgnoreIncorrect(Modifier):
    """Attacks the whole batch, so that every example draws the same random numbers as without this modifier."""

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        correct = inner.predict(model, batch.x).argmax(1) == batch.y
        return torch.where(correct[:, None, None, None], attack(model, batch, inner), batch.x)
