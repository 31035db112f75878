r"""Against label leaking:  the attack sees  argmax_k f(x_i)_k  instead of y_i;  the loss keeps its target.

The prediction is made as the attack sees the model and moves no BN statistics. A method whose attack knows no
label (TRADES) stays as it is.   Kurakin, Goodfellow, Bengio: ICLR 2017.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from robflat_bench.core.method import Attacker, Batch, InnerAttack, Modifier


class PreventLabelLeaking(Modifier):
    """What the attack cannot know, the adversarial image cannot give away."""

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return attack(model, replace(batch, y=inner.predict(model, batch.x).argmax(1)), inner)
