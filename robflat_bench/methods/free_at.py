r"""Free AT:  each batch is used for m updates. One backward pass moves the weights and the perturbation \delta:

    x' = clip_{[0,1]}(x + \delta),   L(w) = mean_i \ell_CE(f(x_i'; w), y_i),
    \delta <- clip_{[-eps,eps]}( \delta + eps sign \nabla_{x'} L )

Shafahi et al.: Adversarial training for free! NeurIPS 2019.

Under an l2 threat, \delta moves by eps along the gradient and is projected onto the l2 ball. \delta begins at 0 and is
carried over from update to update and from batch to batch. Its row i belongs to position i of a batch; a smaller batch
uses the first rows. Everything is in train mode: BN statistics see x' in each of the m updates. The released code
differentiates through the clip, so a pixel clipped at 0 or 1 keeps its \delta; here it moves, as in the paper's
algorithm. An epoch is a pass over the data of m updates per batch: for equal cost, divide the recipe's epochs by m.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, MethodInfo, Params, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.norms import climbed


class FreeATParams(Params):
    norms = ENGINE_NORMS

    repeats: PositiveInt = Field(
        default=8, description="Updates per batch (m): an epoch costs m times as much. Default: the released code's."
    )


INFO = MethodInfo(
    name="free-at",
    summary="uses each batch several times; one backward pass moves weights and perturbation, which is carried over",
    factory=f"{__name__}:FreeAT",
    params=FreeATParams,
    citation=cite("shafahi2019adversarial"),
    example={"repeats": 3},
    updates="repeats",
    claims=("attack",),
    sharded="its perturbation is carried over from batch to batch, by place in the batch",
)


class FreeAT(AT):
    """x_adv is a leaf of the loss's graph, so the backward pass that moves the weights also reaches `delta`.

    If a modifier differentiates the loss several times, only the last gradient that reaches the images moves `delta`.
    """

    params: FreeATParams
    saved = ("delta",)

    def setup(self, training: Training) -> None:
        size, weight = training.shape.size, next(training.model.parameters())
        self.delta = weight.new_zeros(0, training.shape.channels, size, size)

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        rows, norm = len(batch.x), climbed(inner.norm)
        before = torch.cat([self.delta, torch.zeros_like(batch.x[len(self.delta) :])])
        x_adv = (batch.x + before[:rows]).clamp(0, 1).requires_grad_()

        def move(gradient: Tensor) -> None:
            moved = norm.shrunk(before[:rows] + inner.epsilon * norm.steepest(gradient), inner.epsilon)
            self.delta = torch.cat([moved, before[rows:]])

        x_adv.register_hook(move)
        return x_adv
