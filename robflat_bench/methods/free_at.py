r"""Free AT:  each batch is replayed m times; one backward pass moves the weights and the perturbation \delta, which is
carried over from update to update and from batch to batch:

    x' = clip_{[0,1]}(x + \delta),   L(w) = mean_i \ell_CE(f(x_i'; w), y_i),
    \delta <- clip_{[-eps,eps]}( \delta + eps sign \nabla_{x'} L ).

Shafahi et al.: NeurIPS 2019. Row i of delta belongs to position i of a batch, it starts at 0, and a smaller batch uses
the first rows. All in train mode: BN statistics see x', m times. The authors' code differentiates through the clip,
so that a pixel clipped at 0 or 1 keeps its delta; here it moves, as in the paper's algorithm. The recipe's epochs are
passes over the data of m updates each: for equal cost, divide them by m.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveInt

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Params, Training, lazy_imports
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn


class FreeATParams(Params):
    """repeats: updates per batch (m); an epoch is a pass over the data, so it costs `repeats` times as much."""

    repeats: PositiveInt = 8


INFO = MethodInfo(
    name="free-at",
    summary="replays each batch; one backward pass moves weights and perturbation, which is carried over",
    factory=f"{__name__}:FreeAT",
    params=FreeATParams,
    citation="Shafahi et al.: Adversarial training for free! NeurIPS 2019",
    example={"repeats": 3},
    updates="repeats",
    claims=("attack",),
)


class FreeAT(AT):
    """x_adv is a leaf of the loss's graph, so the backward pass that moves the weights reaches delta, too. Where
    the loss is differentiated repeatedly, the last gradient that reaches the images counts, once."""

    params: FreeATParams

    def setup(self, training: Training) -> None:
        shape = training.shape
        weight = next(training.model.parameters())
        self.delta = weight.new_zeros(0, shape.channels, shape.size, shape.size)

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        rows = len(batch.x)
        new = torch.zeros_like(batch.x[len(self.delta) :])
        before = torch.cat([self.delta, new])
        x_adv = (batch.x + before[:rows]).clamp(0, 1).requires_grad_()

        def move(gradient: Tensor) -> None:
            moved = (before[:rows] + inner.epsilon * gradient.sign()).clamp(-inner.epsilon, inner.epsilon)
            self.delta = torch.cat([moved, before[rows:]])

        x_adv.register_hook(move)
        return x_adv

    def state_dict(self) -> dict[str, Tensor]:
        return {"delta": self.delta}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.delta = state["delta"].to(self.delta)
