r"""Standard training:  L(w) = mean_i \ell_CE(f(x_i; w), y_i)

There is no adversary: x_adv is x.
"""

from __future__ import annotations

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, Method, MethodInfo, Params, lazy_imports

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.methods.losses import soft_cross_entropy


class StandardParams(Params):
    norms = ENGINE_NORMS


INFO = MethodInfo(
    name="standard",
    summary="cross-entropy on clean images: the control without robustness",
    factory=f"{__name__}:Standard",
    params=StandardParams,
    claims=("attack",),
    sharded=True,
)


class Standard(Method):
    """Cross-entropy on clean images."""

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return batch.x

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        return soft_cross_entropy(model(batch.x), batch.target)
