r"""Against label leaking:  the attack sees  argmax_k f(x_i)_k  instead of y_i;  the loss keeps its target.

The prediction is made as the attack sees the model and moves no BN statistics. A method whose attack knows no
label (TRADES) stays as it is.   Kurakin, Goodfellow, Bengio: ICLR 2017.
"""

from __future__ import annotations

from dataclasses import replace

from robflat_bench.core import Attacker, Batch, InnerAttack, Modifier, ModifierInfo, Passes, lazy_imports

with lazy_imports():
    from torch import Tensor, nn


INFO = ModifierInfo(
    name="prevent-label-leaking",
    summary="the attack sees the predicted label instead of the true one",
    factory=f"{__name__}:PreventLabelLeaking",
    citation="Kurakin, Goodfellow, Bengio: Adversarial machine learning at scale. ICLR 2017",
    joints=("attack",),
    attack=Passes("1", "0"),
)


class PreventLabelLeaking(Modifier):
    """What the attack cannot know, the adversarial image cannot give away."""

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return attack(model, replace(batch, y=inner.predict(model, batch.x).argmax(1)), inner)
