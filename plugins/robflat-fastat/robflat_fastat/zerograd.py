r"""ZeroGrad, adversarial training with one step that moves only pixels with large gradients:

    L(w) = mean_i \ell_CE(f(x_i'; w), y_i),   d ~ U(-eps, eps), clipped to images,
    g = \nabla_x \ell_CE(f(x + d), y),   g_j <- 0 where |g_j| is below the q-quantile of the example's |g|,
    x' = clip( x + d + \alpha eps sign g ),   clip: to the ball and to images.

Golgooni, Saberi, Eskandar, Rohban: ZeroGrad: mitigating and explaining catastrophic overfitting in FGSM adversarial
training, arXiv 2103.15476, 2021. The authors' commands at 8/255: q = 0.35 for CIFAR-10, \alpha = 2. So a pixel that
steps ends at a face of the ball, and a pixel that does not step keeps its noise. BN statistics see x' only; the
gradient is taken in the recipe's BN mode for attacks.
"""

from __future__ import annotations

from torch import Tensor, nn

from robflat_bench.api import Batch, InnerAttack, Method, cross_entropy, project, soft_cross_entropy, uniform_like
from robflat_fastat import ZeroGradParams


class ZeroGrad(Method):
    """Cross-entropy of adversarial images, made in one step from a random start."""

    params: ZeroGradParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        noise = inner.epsilon * uniform_like(batch.x, batch.moment.random("start"))
        start = project(batch.x + noise, batch.x, inner.epsilon)
        gradient = large(inner.gradient(model, start, cross_entropy(batch.y)), self.params.q)
        return project(start + self.params.alpha * inner.epsilon * gradient.sign(), batch.x, inner.epsilon)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        return soft_cross_entropy(model(x_adv), batch.target)


def large(gradient: Tensor, q: float) -> Tensor:
    """Gradients [B,...] with 0 where the magnitude is below the q-quantile of its example."""
    size = gradient.flatten(1).abs()
    small = size < size.quantile(q, dim=1, keepdim=True)
    return gradient.masked_fill(small.view_as(gradient), 0)
