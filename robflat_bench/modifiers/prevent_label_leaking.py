r"""Against label leaking:  the attack receives argmax_k f(x_i)_k instead of y_i;  the loss keeps its target.

Kurakin, Goodfellow, Bengio: Adversarial machine learning at scale. ICLR 2017.

An adversarial image cannot give away a label that the attack does not know. The prediction is made in the recipe's BN
mode for attacks and moves no BN statistics. A method whose attack uses no label (TRADES) is unchanged.
"""

from __future__ import annotations

from dataclasses import replace

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
    from torch import Tensor, nn


class PreventLabelLeakingParams(Params):
    norms = ENGINE_NORMS


INFO = ModifierInfo(
    name="prevent-label-leaking",
    summary="the attack sees the predicted label instead of the true one",
    factory=f"{__name__}:PreventLabelLeaking",
    params=PreventLabelLeakingParams,
    citation=cite("kurakin2017adversarial"),
    joints=("attack",),
    attack=Passes("1", "0"),
    sharded=True,
)


class PreventLabelLeaking(Modifier):
    """Attacks the predicted label."""

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return attack(model, replace(batch, y=inner.predict(model, batch.x).argmax(1)), inner)
