r"""Negative local entropy: the loss seen through a Gaussian window around w,

    -log E_u[ exp(-L(w + u)) ],   u_l ~ N(0, s_l^2 I),   s_l = ||w_l|| / sqrt(gamma d_l)

estimated as -log mean_k exp(-L(w + u_k)). L is the oracle's mean loss in nats (inverse temperature 1), d_l the number
of weights of layer l. gamma is relative: ||u_l|| is about ||w_l|| / sqrt(gamma). Lower is flatter. The integral itself,

    log \int exp( -L(w') - 1/2 \sum_l ||w'_l - w_l||^2 / s_l^2 ) dw' = -value + \sum_l d_l / 2 log(2 \pi s_l^2),

is the detail `local_entropy`; the detail `rise` is value - L(w). The detail `effective_sample_size` is
(\sum_k e_k)^2 / \sum_k e_k^2 with e_k = exp(-L(w + u_k)). Below 5 a few draws would decide, and there is no value.
Chaudhari et al., ICLR 2017. Their code draws with standard deviation 1/gamma, where the kernel exp(-gamma/2 ||u||^2)
has 1/sqrt(gamma), and its constant lacks the factor d.

Standard error: to first order. The part over draws (e_k / mean e - 1) and the part over examples (their losses averaged
with the weights e_k / \sum e) are added as if independent; this counts their interaction twice, and errs upwards.
With `full_draws` one correction serves all draws. So the value exceeds that of the full attack by about
var(c) / 2 + cov(s, c) over draws, s the mean loss under the short attack and c what this attack misses.
Invariances: to scaling layers without changing the function (a convolution before batch normalisation), not filters or
single weights. Scaling the last layer, and so the logits, changes it; with logits="normalised" and the coupling clean
it does not. The detail `local_entropy` is a volume in weight space and has no invariance: its constant sees every norm.
Cost: draws + 1 forward passes, and `frozen` one attack in all. `reattack`: an attack at w, `full_draws` full attacks
and `draws` short ones (`random_moves`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import DrawsParams, FullDraws, passes_of_draws

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.core.estimates import estimated
    from robflat_bench.measures.random_moves import losses_after, random_move
    from robflat_bench.numerics.weight_space import WeightSpace, norm


class LocalEntropyParams(DrawsParams):
    gamma: Number = Field(
        default=10.0,
        gt=0,
        description="Moves have about 1/sqrt(gamma) of each layer's norm. Default: that of the LPF paper's code.",
    )
    draws: int = Field(default=100, gt=5, description="Random draws of the weights.")
    full_draws: FullDraws = 10


INFO = MeasureInfo(
    name="local-entropy",
    summary="minus the logarithm of the mean of exp(-loss) in a Gaussian window around the weights",
    factory=f"{__name__}:LocalEntropy",
    params=LocalEntropyParams,
    citation=cite("chaudhari2017entropy"),
    title="negative local entropy ({coupling}), gamma={gamma:g}, {draws} draws",
    example={"draws": 8, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=passes_of_draws(),
    powers={"layers": 0},
    estimate="draws and examples of a free energy",
)

SMALLEST_SAMPLE = 5


class LocalEntropy(Measure):
    """Arrays: `losses` [draws, N], `reference` [N]; `shortfall` [full_draws, N] where short attacks are corrected."""

    params: LocalEntropyParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        space = WeightSpace(model, exclude=self.params.exclude)
        move = partial(random_move, space, lambda z, w: self._std(w) * z, workspace.seed, INFO.name)
        arrays = losses_after(self, space, examples, workspace, move)
        found = estimated(INFO.estimate, arrays)
        sample = found.details["effective_sample_size"]
        if sample < SMALLEST_SAMPLE:
            raise NoValue(
                f"local-entropy: the effective sample size is {sample:.1f} of {self.params.draws} draws, below "
                f"{SMALLEST_SAMPLE}: take a gamma above {self.params.gamma:g} (smaller moves) or more draws"
            )
        volumes = (w.numel() / 2 * math.log(2 * math.pi * self._std(w) ** 2) for w in space.layers.values())
        return replace(found, details={**found.details, "local_entropy": sum(volumes) - found.value})

    def _std(self, w: Tensor) -> float:
        """s_l of one layer."""
        return norm(w) / math.sqrt(self.params.gamma * w.numel())
