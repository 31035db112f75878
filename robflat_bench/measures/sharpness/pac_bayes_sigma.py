r"""PAC-Bayes flatness: the Gaussian noise on the weights at which the error rate has risen by `target`,

    1 / sigma^2,   sigma = sup{ s <= largest : E_u[ E(w + u) ] - E(w) <= target },   u ~ N(0, s^2 I)

E is the error rate on the oracle's images. With `magnitude`, u_i ~ N(0, s^2 w_i^2 + e^2). Lower is flatter; `sigma`
itself is a detail.
Jiang et al., ICLR 2020; Dziugaite et al., NeurIPS 2020. One implementation passes sigma^2 to a sampler that expects a
standard deviation; here the noise has standard deviation s.

The same standard normal draws serve every s. So the rise is a function of s, and a search finds its crossing: sigma is
the middle of the last bracket, whose width is the detail `residual`. Pairs of a draw and an image are read until the
verdict on s is sure, or wrong with probability 1e-6 at most (`racing`): far from the crossing 64 pairs are enough, near
it all are read. `failure_probability` bounds the probability that any verdict of the search is wrong. `saturated` is 1
where the target is not exceeded even at `largest` (the true sigma is larger), -1 where it is exceeded at the smallest s
(with `magnitude`, e alone is too much), else 0.
Under `reattack` the rise is noisy at the scale of the tolerance, since an attack's last successes change with rounding:
it may cross the target several times, and two machines may find crossings further apart than `residual`.
Standard error: None, because the value is a root of one curve. The detail `standard_error_rise` is the standard error
of the mean rise at the upper end, over draws and examples.
Invariances: none to scaling weights; scaling all layers by c at the same decisions divides the value by c^2, up to the
residual. Where the rise crosses the target several times, the search may then find another crossing. With `magnitude`
and e = 0, all rescalings of single weights that keep the function. Scaling logits through the last layer keeps
decisions, so only the scale of that layer matters; normalised logits would change nothing and are no option.
Cost: `draws` forward passes for each s near sigma, about 4 to 8 of them, and little for others; `reattack` adds an
attack for each, `frozen` one attack in all.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import Draws, E, Magnitude, OracleParams, Target, Tolerance, WeightSpaceParams

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.core.estimates import crossed_errors
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.racing import UNREAD, Race
    from robflat_bench.measures.random_moves import random_move
    from robflat_bench.measures.units import section
    from robflat_bench.numerics.weight_space import WeightSpace


class PacBayesSigmaParams(WeightSpaceParams, OracleParams):
    target: Target = 0.1
    draws: Draws = 10
    largest: Number = Field(default=2.0, gt=0, description="Noise s tried first, and the largest.")
    tolerance: Tolerance = 0.01
    magnitude: Magnitude = False
    e: E = 1e-3
    logits: Literal["plain"] = Field(default="plain", description="No effect: error rates ignore the scale of logits.")


INFO = MeasureInfo(
    name="pac-bayes-sigma",
    summary="1/sigma^2 of the largest Gaussian noise on the weights under which the error rate rises by the target",
    factory=f"{__name__}:PacBayesSigma",
    params=PacBayesSigmaParams,
    citation=cite("jiang2020fantastic", "dziugaite2020search"),
    title="PAC-Bayes 1/sigma^2 ({coupling}), target={target:g}, magnitude={magnitude}, {draws} draws",
    example={"draws": 4, "steps": 2, "tolerance": 0.001},
    couplings=("clean", "frozen", "reattack"),
    powers={"layers": -2},
)


class PacBayesSigma(Measure):
    """Arrays: `tried` [S], every s in the order of the search; `read` [S], pairs of a draw and an image that were read
    there, and `wrong` [S] of them; `rise` [2, draws] of the error rate at both ends of the bracket; `reference` [N].
    """

    params: PacBayesSigmaParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, space = self.params, WeightSpace(model, exclude=self.params.exclude)
        oracle = Oracle.of(self, model, examples, workspace)
        reference = oracle.reference_errors(model, examples, workspace).cpu().numpy()

        def read(s: float, draw: int, rows: np.ndarray) -> np.ndarray:
            def scaled(z: Tensor, w: Tensor) -> Tensor:
                return (s**2 * w**2 + params.e**2).sqrt() * z if params.magnitude else s * z

            place = section(workspace, f"s-{s!r}-{draw}-{counts[s, draw]}")
            counts[s, draw] += 1
            some = torch.from_numpy(rows)
            with space.moved(random_move(space, scaled, workspace.seed, INFO.name, draw)):
                return oracle.part(some).errors(model, examples[some], place).cpu().numpy()

        counts: Counter[tuple[float, int]] = Counter()
        race = Race(read, reference, params.draws, params.target, workspace.seed, INFO.name)
        low, high = race.bracket(params.largest, params.tolerance)
        sigma, tried = (low + high) / 2, [s for s in race.known if s > 0]
        return Measurement(
            value=sigma**-2,
            standard_error=None,
            n=len(examples),
            details={
                "sigma": sigma,
                "residual": high - low,
                "saturated": float(low == high) - float(low == 0),
                "failure_probability": race.failure,
                "standard_error_rise": crossed_errors(race.errors(high) - reference)["standard_error"],
                "error": float(reference.mean()),
            },
            arrays={
                "tried": np.array(tried),
                "read": np.array([(race.known[s] != UNREAD).sum() for s in tried]),
                "wrong": np.array([(race.known[s] == 1).sum() for s in tried]),
                "rise": np.stack([(race.errors(s) - reference).mean(1) for s in (low, high)]),
                "reference": reference,
            },
        )
