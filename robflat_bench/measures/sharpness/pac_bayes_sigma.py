r"""PAC-Bayes flatness: how much Gaussian noise the weights bear before the error rate has risen by `target`.

    1 / sigma^2,   sigma = sup{ s <= largest : E_u[ E(w + u) ] - E(w) <= target },   u ~ N(0, s^2 I)

E is the error rate on the oracle's images: a share of wrong ones, no loss. magnitude: u_i ~ N(0, s^2 w_i^2 + e^2).
Jiang et al., ICLR 2020; Dziugaite et al., NeurIPS 2020.

Lower is flatter; `sigma` itself is a detail. The same standard normal draws serve every s, so that the rise is a
function of s, whose crossing is found by bisection; sigma is the middle of the last bracket, whose width is the
detail `residual`. `saturated` is 1 where the target is not exceeded even at `largest` (the true sigma is larger), -1
where it is at the smallest s (with magnitude, e alone is too much), else 0.
standard_error: None, the value is a root of one curve and no mean of draws; the detail `standard_error_rise` is that
of the mean rise at the s tried last, over draws and examples.
Invariances: none to scaling weights; scaling all layers by c without changing decisions divides the value by c^2.
With magnitude and e = 0, all rescalings of single weights that keep the function. Scaling logits through the last
layer keeps decisions, so only that layer's scale matters; normalised logits would change nothing and are no option.
Cost: draws forward passes for each s, about log2(largest / sigma) + log2(1 / tolerance) of them; under reattack an
attack with each, under frozen one for all.
A peer passes sigma^2 to a sampler that expects a standard deviation; here the noise has standard deviation s.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import OracleParams

with lazy_imports():
    import numpy as np
    import torch
    from torch import nn

    from robflat_bench.measures.bisection import bracket
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import crossed_errors, noise, section
    from robflat_bench.numerics.weight_space import Direction, WeightSpace


class PacBayesSigmaParams(OracleParams):
    """target: rise of the error rate that is borne. largest: s tried first. tolerance: of sigma, relative.

    magnitude: noise of variance s^2 w^2 + e^2 instead of s^2. Error rates do not see how logits are scaled.
    """

    target: Number = Field(default=0.1, gt=0, lt=1)
    draws: int = Field(default=10, ge=2)
    largest: Number = Field(default=2.0, gt=0)
    tolerance: Number = Field(default=0.01, ge=1e-9, lt=1)
    magnitude: bool = False
    e: Number = Field(default=1e-3, ge=0)
    logits: Literal["plain"] = "plain"


INFO = MeasureInfo(
    name="pac-bayes-sigma",
    summary="1/sigma^2 of the largest Gaussian noise on the weights under which the error rate rises by the target",
    factory=f"{__name__}:PacBayesSigma",
    params=PacBayesSigmaParams,
    citation=(
        "Jiang et al.: Fantastic generalization measures and where to find them. ICLR 2020; Dziugaite et "
        "al.: In search of robust measures of generalization. NeurIPS 2020"
    ),
    title="PAC-Bayes 1/sigma^2 ({coupling}), target={target:g}, magnitude={magnitude}, {draws} draws",
    example={"draws": 2, "steps": 2, "tolerance": 0.25},
    couplings=("clean", "frozen", "reattack"),
    powers={"layers": -2},
)


class PacBayesSigma(Measure):
    """Arrays: `tried` [S], every s in the order of the search; `rise` [S, draws] of the error rate; `reference` [N]."""

    params: PacBayesSigmaParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, space, oracle = self.params, WeightSpace(model), Oracle(self.threat, self.params)
        oracle.freeze(model, examples, section(workspace, "images"))
        reference = oracle.errors(model, examples, section(workspace, "reference"))
        rises: dict[float, np.ndarray] = {}

        def within(s: float) -> bool:
            errors = []
            for draw in range(params.draws):
                with space.moved(self._move(space, s, workspace.seed, draw)):
                    errors.append(oracle.errors(model, examples, section(workspace, f"s-{s!r}-{draw}")))
            rises[s] = (torch.stack(errors) - reference).cpu().numpy()
            return bool(rises[s].mean() <= params.target)

        low, high = bracket(within, params.largest, params.tolerance)
        sigma = (low + high) / 2
        return Measurement(
            value=sigma**-2,
            standard_error=None,
            n=len(examples),
            details={
                "sigma": sigma,
                "residual": high - low,
                "saturated": float(low == high) - float(low == 0),
                "standard_error_rise": crossed_errors(list(rises.values())[-1])["standard_error"],
                "error": float(reference.mean()),
            },
            arrays={
                "tried": np.array(list(rises)),
                "rise": np.stack([rise.mean(1) for rise in rises.values()]),
                "reference": reference.cpu().numpy(),
            },
        )

    def _move(self, space: WeightSpace, s: float, seed: int, draw: int) -> Direction:
        z = noise(space, seed, "pac-bayes-sigma", draw)
        if not self.params.magnitude:
            return {name: s * z[name] for name in space.layers}
        return {
            name: (s**2 * layer.detach() ** 2 + self.params.e**2).sqrt() * z[name]
            for name, layer in space.layers.items()
        }
