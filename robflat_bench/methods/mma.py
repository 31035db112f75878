r"""MMA:  L(w) = mean_i \ell_i,   with the margin m_i = min { ||d|| : s(x_i + d) >= 0 } and its minimiser d_i:

    \ell_i = 1/3 \ell_CE(x_i) + 2/3 \ell_CE(x_i + d_i)   if x_i is right and m_i < m_max: pushes the boundary away
    \ell_i = 1/3 \ell_CE(x_i)                            if x_i is right and m_i >= m_max: the margin is large enough
    \ell_i = \ell_CE(x_i)                                if x_i is wrong: d_i = 0

Ding et al.: MMA training: direct input space margin maximization through adversarial training. ICLR 2020.

s = log sum_{j != y} exp z_j - z_y is the soft logit margin. As in the released code, an example is right if s < 0,
which is p_y > 1/2. Adaptive-norm PGD finds m_i in two stages:

1. PGD on s within r_i, the margin found when this example was last attacked: at first the recipe's epsilon, at least
   its step, at most m_max. The start is uniform and the step 2.5 r_i / T. The best iterate x' gives the direction
   (x' - x) / ||x' - x||_inf.
2. Bisection of [0, m_max] along this direction. It keeps the far side, so x_i + d_i has crossed the boundary.

Differences from the released code: right and wrong, and the bisection, are judged in the recipe's BN mode for attacks
and move no BN statistics; the whole batch is attacked, so that the cost is fixed; PGD's best iterate gives the
direction; x_i + d_i is clipped to [0,1], which the released code does in the bisection only; m_max itself bounds the
search, not 1.05 m_max. Margins are l-inf; other norms are refused, because m_max has no default for them. Two forward
passes update BN statistics: the clean images and the images x_i + d_i.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Number, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.climbers import Objective
    from robflat_bench.attacks.engine import ascend
    from robflat_bench.core.randomness import uniform_like
    from robflat_bench.methods.losses import soft_cross_entropy


class MMAParams(Params):
    max_margin: Number = Field(
        default=12 / 255, gt=0, lt=1, description="Margins beyond it are large enough (paper: 12, 20, 32 of 255)."
    )
    steps: PositiveInt = Field(
        default=10, description="PGD steps that find the direction (T). Default: the released code's."
    )
    bisections: PositiveInt = Field(
        default=10, description="Bisections that find the margin along it. Default: the released code's."
    )


INFO = MethodInfo(
    name="mma",
    summary="max-margin adversarial training: each example attacked at its own distance from the boundary",
    factory=f"{__name__}:MMA",
    params=MMAParams,
    citation=cite("ding2020mma"),
    example={"steps": 2, "bisections": 2},
    attack=Passes("steps + bisections + 3", "steps"),
    loss=Passes("2", "2"),
    claims=("attack",),
    sharded="it remembers the margin of each example",
)


class MMA(Method):
    """Remembers each example's margin.

    `margins` [N] are the margins found last, -1 for an example not yet attacked. `counts`, float [B], is 1 if
    x_i + d_i enters the loss; it lasts from the attack to the loss.
    """

    params: MMAParams
    counts: Tensor
    saved = ("margins",)

    def setup(self, training: Training) -> None:
        self.margins = next(training.model.parameters()).new_full((training.count,), -1.0, requires_grad=False)

    def radius(self, epsilon: float) -> float:
        return self.params.max_margin

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        objective, most, steps = soft_margin(batch.y), self.params.max_margin, self.params.steps
        radius = _per_image(self._remembered(batch.index, inner).clamp(max=most))
        start = batch.x + radius * uniform_like(batch.x, batch.moment.random("mma start"))
        with inner.attacking(model):
            step = 2.5 * radius / steps
            found = ascend(model, batch.x, start, objective, epsilon=radius, step=step, steps=steps).x
            offset = found - batch.x
            smallest = torch.finfo(offset.dtype).tiny  # an offset of zero has no direction and stays zero
            direction = offset / offset.abs().amax((1, 2, 3), keepdim=True).clamp(min=smallest)

            @torch.no_grad()
            def crossed(margin: Tensor) -> Tensor:
                logits = model((batch.x + _per_image(margin) * direction).clamp(0, 1))
                return objective(logits) >= 0

            low, high = torch.zeros_like(batch.weight), torch.full_like(batch.weight, most)
            wrong, within = crossed(low), crossed(high)
            for _ in range(self.params.bisections):
                middle = (low + high) / 2
                across = crossed(middle)
                low, high = torch.where(across, low, middle), torch.where(across, middle, high)
        margin = torch.where(wrong, 0, high)
        known = batch.index >= 0
        self.margins[batch.index[known]] = margin[known]
        self.counts = (wrong | within).to(margin.dtype)
        return (batch.x + _per_image(margin) * direction).clamp(0, 1)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = (soft_cross_entropy(model(images), batch.target) for images in (batch.x, x_adv))
        return (clean + 2 * self.counts * adversarial) / 3

    def _remembered(self, index: Tensor, inner: InnerAttack) -> Tensor:
        """The radius of each example's attack, [B]; an image from elsewhere (index -1) is always new."""
        margins = self.margins[index]
        met = (index >= 0) & (margins >= 0)
        return torch.where(met, margins.clamp(min=inner.step), inner.epsilon)


def soft_margin(y: Tensor) -> Objective:
    """log sum_{j != y} exp z_j - z_y: negative if p_y > 1/2."""

    def objective(logits: Tensor) -> Tensor:
        label = y[:, None]
        return logits.scatter(1, label, -torch.inf).logsumexp(1) - logits.gather(1, label)[:, 0]

    return objective


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
