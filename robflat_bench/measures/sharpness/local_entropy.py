r"""Negative local entropy: the loss as seen through a Gaussian window around w,

    -log E_u[ exp(-L(w + u)) ],   u_l ~ N(0, s_l^2 I),   s_l = ||w_l|| / sqrt(gamma d_l)

with L the oracle's mean loss (in nats, inverse temperature 1) and d_l the number of weights of layer l. gamma is thus
relative: ||u_l|| is about ||w_l|| / sqrt(gamma). Estimated as -log mean_k exp(-L(w + u_k)). The integral itself,

    log \int exp( -L(w') - 1/2 \sum_l ||w'_l - w_l||^2 / s_l^2 ) dw' = -value + \sum_l d_l / 2 log(2 \pi s_l^2),

is the detail `local_entropy`; the detail `rise` is value - L(w). The effective sample size
(\sum_k e_k)^2 / \sum_k e_k^2 of e_k = exp(-L(w + u_k)) is reported; a measurement below 5 is refused, since then a
few draws make up the value.   Chaudhari et al., ICLR 2017.

standard_error: to first order, over draws (e_k / mean e - 1) and over examples (their losses averaged with the
weights e_k / \sum e) added as if independent, which counts their interaction twice: not too small.
Invariances: to scaling layers without changing the function (a convolution before batch normalisation), not filters
or single weights. Scaling the last layer, and so the logits, changes it; with logits="normalised" and the coupling
clean it does not. The detail `local_entropy`, a volume in weight space, has none: its constant sees every norm.
Cost: draws + 1 forward passes, an attack more for each under reattack, one for all under frozen.
The peer's code draws with standard deviation 1/gamma, where its kernel exp(-gamma/2 ||u||^2) has 1/sqrt(gamma), and
its constant lacks the factor d.
"""

from __future__ import annotations

import math

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import OracleParams, read

with lazy_imports():
    import numpy as np
    from torch import nn

    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import losses_after, noise
    from robflat_bench.numerics.weight_space import Direction, WeightSpace


class LocalEntropyParams(OracleParams):
    """gamma: sharpness of the Gaussian window; moves have about 1/sqrt(gamma) of each layer's norm."""

    gamma: Number = Field(default=10.0, gt=0)
    draws: int = Field(default=100, gt=5)


INFO = MeasureInfo(
    name="local-entropy",
    summary="minus the logarithm of the mean of exp(-loss) in a Gaussian window around the weights",
    factory=f"{__name__}:LocalEntropy",
    params=LocalEntropyParams,
    citation="Chaudhari et al.: Entropy-SGD: Biasing gradient descent into wide valleys. ICLR 2017",
    title="negative local entropy ({coupling}), gamma={gamma:g}, {draws} draws",
    example={"draws": 8, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=read("draws + 1"),
    powers={"layers": 0},
)


SMALLEST_SAMPLE = 5


class LocalEntropy(Measure):
    """Arrays: `losses` [draws, N], `reference` [N]."""

    params: LocalEntropyParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        space, oracle = WeightSpace(model), Oracle(self.threat, self.params)
        moves = (self._move(space, workspace.seed, draw) for draw in range(self.params.draws))
        reference, losses = losses_after(oracle, space, model, examples, workspace, moves)
        means = losses.mean(1)
        # Relative to the lowest loss, so that nothing underflows.
        weights = np.exp(means.min() - means)
        sample = float(weights.sum() ** 2 / (weights**2).sum())
        if sample < SMALLEST_SAMPLE:
            raise NoValue(
                f"local-entropy: the effective sample size is {sample:.1f} of {len(means)} draws, below "
                f"{SMALLEST_SAMPLE}: take a gamma above {self.params.gamma:g} (smaller moves) or more draws"
            )
        value = float(means.min() - np.log(weights.mean()))
        over_draws = float(weights.std(ddof=1) / weights.mean()) / math.sqrt(len(means))
        tilted = weights @ losses / weights.sum()
        over_examples = float(tilted.std(ddof=1)) / math.sqrt(len(tilted)) if len(tilted) > 1 else 0.0
        constant = sum(
            layer.numel() / 2 * math.log(2 * math.pi * self._std(space, name) ** 2)
            for name, layer in space.layers.items()
        )
        return Measurement(
            value=value,
            standard_error=math.hypot(over_draws, over_examples),
            n=len(examples),
            details={
                "effective_sample_size": sample,
                "local_entropy": constant - value,
                "loss": float(reference.mean()),
                "rise": value - float(reference.mean()),
                "standard_error_draws": over_draws,
                "standard_error_examples": over_examples,
            },
            arrays={"losses": losses, "reference": reference},
        )

    def _std(self, space: WeightSpace, name: str) -> float:
        return space.norms[name] / math.sqrt(self.params.gamma * space.layers[name].numel())

    def _move(self, space: WeightSpace, seed: int, draw: int) -> Direction:
        z = noise(space, seed, "local-entropy", draw)
        return {name: self._std(space, name) * z[name] for name in space.layers}
