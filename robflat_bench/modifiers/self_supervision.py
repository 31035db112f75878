r"""Self-supervision:  L(w) + \lambda mean_i \ell_CE( h(\phi(R_{r_i} x_i + d_i)), r_i ),   r_i ~ U{0,1,2,3},

    d_i = argmax_{||d||_inf <= eps} \ell_CE( h(\phi(R_{r_i} x_i + d)), r_i )

Hendrycks et al.: Using self-supervised learning can improve model robustness and uncertainty. NeurIPS 2019;
this head Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

R_r turns an image by 90 r degrees. \phi(x) are the features that the network's last linear layer receives. The head h
is F-256(BN,ReLU)-4, trained along and never evaluated; it begins with the same weights in every run. Every image of
the batch is turned once, and every turned image is adversarial; the released code leaves half of them clean and clamps
the features to [0,1]. The turned images pass as a batch of their own and move BN statistics once.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Modifier, ModifierInfo, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.backbones.parts import initialize
    from robflat_bench.core.randomness import generator
    from robflat_bench.numerics.heads import WithHead, last_linear

TURNS = 4


class SelfSupervisionParams(Params):
    weight: float = Field(
        default=1.0, ge=0, description="Weight of the turned images' loss (lambda). Stutz et al. try 0.5 to 8."
    )


INFO = ModifierInfo(
    name="self-supervision",
    summary="adds the loss of predicting how adversarial images were turned",
    factory=f"{__name__}:SelfSupervision",
    params=SelfSupervisionParams,
    citation=cite("hendrycks2019using"),
    joints=("loss",),
    attack=Passes("T + 1", "T"),
    loss=Passes("1", "1"),
    sharded=True,
)


class SelfSupervision(Modifier):
    """Adds the loss of a head that predicts turns."""

    params: SelfSupervisionParams

    def setup(self, training: Training) -> None:
        linear = last_linear(training.model)
        layers = [nn.Linear(linear.in_features, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, TURNS)]
        self.head = nn.Sequential(*layers)
        initialize(self.head, generator(training.seed, "self-supervision"))
        self.head.to(linear.weight)

    def parts(self) -> Mapping[str, nn.Module]:
        return {"head": self.head}

    def prepare(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> tuple[Tensor, Tensor]:
        """The turned and attacked images, [B,C,H,W], and their turns, int64 [B]."""
        drawn = torch.randint(TURNS, (len(batch.x),), generator=batch.moment.random("turns"))
        turns = drawn.to(batch.x.device)
        every = torch.stack([batch.x.rot90(turn, (2, 3)) for turn in range(TURNS)])
        turned = every[turns, torch.arange(len(turns), device=turns.device)]
        return inner(WithHead(model, self.head), turned, cross_entropy(turns)), turns

    def loss(self, model: nn.Module, batch: Batch, prepared: tuple[Tensor, Tensor]) -> Tensor:
        x_adv, turns = prepared
        return self.params.weight * nn.functional.cross_entropy(WithHead(model, self.head)(x_adv), turns)
