r"""Worst-case flatness of the robust loss:

    F_worst(w) = max_{\nu \in B_xi} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

    B_xi: ||\nu_l||_2 <= xi ||w_l||_2 in every layer l

One \nu for all examples and one d per example climb together (coupling `joint`), from random points of both balls:

    \nu_l <- \Pi_{B_xi} ( \nu_l + \beta ||w_l|| g_l / ||g_l|| ),   d_i <- \Pi ( d_i + \alpha sign \nabla_{d_i} \ell )

Under an l2 threat, d_i moves along its gradient instead of the sign. Under `frozen` and `clean` the images stay and \nu
climbs alone. The matched reference L(w) is the same ascent with xi = 0. At the end of the highest ascent a stronger
attack at w + \nu starts from the images found there; its loss is higher by the detail `shortfall`. The released code's
setting is start=released, batch=128, weight_step=0.01, step=0.007, keep=last, reference=paper: images start on Gaussian
directions, and their first gradient is taken before they are clipped to [0,1]. Its step is longer than the ball's
radius, so \nu follows the last batch, and each batch of images makes one step while \nu makes one for every batch. The
paper's ball has one l2 radius per layer; for other balls see `weight_space`. Stutz et al., ICCV 2021.

Unchanged when a convolution followed by batch normalisation is rescaled.
Standard error: over examples, at the best \nu.
Cost: restarts x steps forward and backward passes for \nu and d, again without \nu for the reference, and one strong
attack.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.core import (
    ENGINE_NORMS,
    Examples,
    Journal,
    Measure,
    MeasureInfo,
    Measurement,
    Passes,
    ThreatNorm,
    Workspace,
    lazy_imports,
)
from robflat_bench.core.works import cite
from robflat_bench.measures import shared

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.attacks.norms import climbed
    from robflat_bench.core.estimates import standard_deviation
    from robflat_bench.core.randomness import generator, global_state, per_example_gaussian_direction
    from robflat_bench.measures.flatness.reference import subtracted
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.per_example import best_start, mean_of
    from robflat_bench.measures.units import unit, units
    from robflat_bench.numerics.folding import folded
    from robflat_bench.numerics.passes import uncounted
    from robflat_bench.numerics.weight_space import Ball, Direction, WeightSpace


class WorstCaseParams(shared.WeightSpaceParams):
    coupling: Literal["clean", "frozen", "joint"] = Field(
        default="joint", description=shared.couplings("clean", "frozen", "joint")
    )
    xi: shared.Xi = 0.003
    ball: shared.Shape = "layer"
    norm: shared.Norm = "l2"
    restarts: PositiveInt = Field(
        default=10,
        description="Ascents, each from random weights and images of the balls. Default: the released code's.",
    )
    steps: PositiveInt = Field(
        default=20, description="Steps of each ascent, and of the attack of `frozen`. Default: the released code's."
    )
    step: shared.Step = None
    weight_step: shared.Step = Field(
        default=None, description="Step size of the weights, in units of xi=1; by default 2.5 xi / updates."
    )
    start: Literal["released"] | None = Field(
        default=None,
        description="First images of a joint ascent: by default uniform in the ball; `released`: eps U(0,1) along a "
        "Gaussian direction, not clipped to [0,1].",
    )
    batch: NonNegativeInt = Field(default=0, description="Examples per update of the weights; 0: all of them.")
    keep: Literal["best", "last"] = Field(
        default="best", description="Iterate of an ascent that counts; the released code takes the last."
    )
    warm: bool = Field(default=False, description="Under `joint`: one more ascent, from where `frozen` ends.")
    strong_steps: PositiveInt = Field(default=40, description="Steps of the attack at the end of the highest ascent.")
    logits: shared.Logits = "plain"
    reference: shared.Reference = "matched"
    reference_restarts: shared.ReferenceRestarts = 10

    _attacked = model_validator(mode="after")(shared.reference_is_attacked)

    @model_validator(mode="after")
    def _iterates_lie_in_the_threat_model(self) -> WorstCaseParams:
        if self.start == "released" and self.keep == "best":
            raise ValueError("start=released needs keep=last, because its first images may lie outside [0,1]")
        return self

    @property
    def norms(self) -> tuple[ThreatNorm, ...]:  # type: ignore[override]  # the released code starts in the l-inf ball
        return ENGINE_NORMS if self.start is None else ("linf",)


STRONG, STRONG_BACK = "2 * (strong_steps + 1) + N", "2 * strong_steps"
"""Forward and backward passes of the strong attack."""
WARM, WARM_BACK = "warm * (4 * steps + 5) + P", "warm * 4 * steps + Q"
"""Passes of the ascent of `warm`, with those of `frozen` before it, and of reference=paper."""

INFO = MeasureInfo(
    name="worst-case",
    summary="worst-case flatness of the robust loss: its highest rise over weights within xi",
    factory=f"{__name__}:WorstCase",
    params=WorstCaseParams,
    citation=cite("stutz2021relating"),
    title="worst-case flatness ({coupling}), xi={xi:g}, {restarts} restarts",
    example={"restarts": 2, "steps": 2, "strong_steps": 2},
    couplings=("clean", "frozen", "joint"),
    passes={
        "clean": Passes("restarts * (steps + 2)", "restarts * steps"),
        "frozen": Passes(
            f"steps + 1 + restarts * (steps + 2) + {STRONG}", f"steps + restarts * steps + {STRONG_BACK}", at_most=True
        ),
        "joint": Passes(
            f"2 * restarts * (steps + 1) + {STRONG} + {WARM}",
            f"2 * restarts * steps + {STRONG_BACK} + {WARM_BACK}",
            at_most=True,
        ),
    },
    powers={"layers": 0},
    estimate="examples",
)


class Climb(NamedTuple):
    """A point of an ascent: the move of the weights, the images, and the loss of each example there, float64 [N]."""

    nu: Direction
    images: Tensor
    losses: Tensor


class WorstCase(Measure):
    """Arrays: `losses` [restarts, N]; of the restart with the highest mean `strong` [N], its losses under the strong
    attack, and `per_example` [N]; `reference` [N]. Details: `spread_over_restarts`, a standard deviation; `shortfall`.
    """

    params: WorstCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        frozen = self._images(model, examples, workspace) if params.coupling == "frozen" or params.warm else None
        found = self._restarts(model, examples, workspace, params.xi, frozen)
        losses, at_w = found["losses"], self._restarts(model, examples, workspace, 0.0, frozen)["losses"]
        best, matched = best_start(losses), at_w[best_start(at_w)]
        reference, offset = subtracted(self, matched, model, examples, workspace)
        details = {"spread_over_restarts": standard_deviation(losses.mean(1)), **offset}
        if "strong" in found:
            details["shortfall"] = float((found["strong"] - losses[best]).mean())
        return mean_of(losses[best] - reference, details, {**found, "reference": reference})

    def _images(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """The images of the coupling `frozen`."""
        oracle = self._oracle("frozen")
        oracle.freeze(model, examples, workspace)
        return oracle.points(examples).x

    def _oracle(self, coupling: Literal["clean", "frozen"]) -> Oracle:
        params = self.params
        attack = shared.OracleParams(coupling=coupling, steps=params.steps, step=params.step, logits=params.logits)
        return Oracle(self.threat, attack)

    def _space(self, model: nn.Module) -> WeightSpace:
        return WeightSpace(model, ball=Ball(self.params.ball, self.params.norm), exclude=self.params.exclude)

    def _restarts(
        self, model: nn.Module, examples: Examples, workspace: Workspace, xi: float, frozen: Tensor | None
    ) -> dict[str, np.ndarray]:
        """`losses` [restarts, N] of the ascents within xi, and `strong` [N] of the highest; each is a unit of the
        journal."""
        kept: dict[int, Climb] = {}  # the highest ascent so far

        def climbed(restart: int) -> Climb:
            with global_state(generator(workspace.seed, INFO.name, repr(xi), restart)):  # equal when computed again
                return self.ascend(model, examples, workspace, xi, restart, frozen)

        def one(restart: int) -> dict[str, Tensor]:
            climb = climbed(restart)
            highest = np.stack([each.losses.cpu().numpy() for each in (*kept.values(), climb)])
            if best_start(highest) == len(kept):
                kept.clear()
                kept[restart] = climb
            return {"losses": climb.losses}

        def strongest() -> dict[str, Tensor]:
            if best not in kept:  # an interrupted measurement reads its losses back, but not where it had climbed
                with uncounted():
                    kept[best] = climbed(best)
            return {"strong": self.strong(model, examples, workspace, kept[best])}

        count = self.params.restarts + (self.params.warm and self.params.coupling == "joint")
        journal = workspace.journal.section(f"xi-{xi!r}")
        found = units(journal, "restart", count, one)
        best = best_start(found["losses"])
        if xi == 0 or self.params.coupling == "clean":
            return found
        return {**found, **unit(journal, f"strong-{best}", strongest)}

    def strong(self, model: nn.Module, examples: Examples, workspace: Workspace, climb: Climb) -> Tensor:
        """Losses at w + nu under a longer attack that also starts from the images of the climb, float64 [N]."""
        params = self.params
        attack = shared.OracleParams(coupling="reattack", warm=True, steps=params.strong_steps, logits=params.logits)
        oracle = Oracle(self.threat, attack)
        oracle.images = climb.images
        with self._space(model).moved(climb.nu):
            return oracle.losses(model, examples, replace(workspace, journal=Journal()))

    def ascend(
        self,
        model: nn.Module,
        examples: Examples,
        workspace: Workspace,
        xi: float,
        restart: int,
        frozen: Tensor | None = None,
    ) -> Climb:
        """One ascent: the iterate with the highest mean loss (keep=best), or the last.

        `frozen` holds the images found at w. A joint ascent beyond the last restart begins where the frozen one ends.
        """
        params, key = self.params, (workspace.seed, INFO.name, restart)
        nu = self._space(model).in_ball(xi, *key)
        if params.coupling == "joint" and restart < params.restarts:
            images = self._start(examples, *key)
            return self._climb(model, examples, xi, nu, images, joint=True)
        fixed = examples.x if params.coupling == "clean" else frozen
        assert fixed is not None
        alone = self._climb(model, examples, xi, nu, fixed, joint=False)
        if params.coupling != "joint":
            return alone
        return _better(alone, self._climb(model, examples, xi, alone.nu, fixed, joint=True))

    def _start(self, examples: Examples, *key: int | str) -> Tensor:
        """The images at which a joint ascent begins; those of the released code are not clipped to [0,1]."""
        x, epsilon, norm = examples.x, self.threat.epsilon, climbed(self.threat.norm)
        if self.params.start is None:
            return norm.project(x + epsilon * norm.noise(x, examples.index, *key), x, epsilon)
        return x + epsilon * per_example_gaussian_direction(x, examples.index, *key)

    def _climb(
        self, model: nn.Module, examples: Examples, xi: float, nu: Direction, images: Tensor, joint: bool
    ) -> Climb:
        """The ascent from w + nu and these images, which climb too if `joint`. With xi = 0 the weights stay."""
        params, epsilon, norm, moving = self.params, self.threat.epsilon, climbed(self.threat.norm), xi > 0
        space, oracle = self._space(model), self._oracle("clean")
        layers = space.layers if moving else {}
        size = params.batch or len(examples)
        clean, given = examples.x.split(size), Examples(images, examples.y, examples.index)
        groups = [given[slice(at, at + size)] for at in range(0, len(examples), size)]
        step = norm.step(epsilon, params.steps) if params.step is None else params.step
        weight_step = params.weight_step or 2.5 * xi / (params.steps * len(groups))
        best: Climb | None = None

        def here() -> Climb:
            with space.moved(nu):
                losses = [oracle.slopes(model, group, {}).losses for group in groups]
            return Climb(nu, torch.cat([group.x for group in groups]), torch.cat(losses))

        with attacked(model), nullcontext() if moving else folded(model, examples.x):
            for _ in range(params.steps if joint or moving else 0):
                for number, (group, x) in enumerate(zip(groups, clean, strict=True)):
                    with space.moved(nu):
                        slopes = oracle.slopes(model, group, layers, of_images=joint)
                    if params.keep == "best" and len(groups) == 1:
                        best = _better(best, Climb(nu, group.x, slopes.losses))
                    if slopes.images is not None:
                        moved = norm.project(group.x + step * norm.steepest(slopes.images), x, epsilon)
                        groups[number] = replace(group, x=moved)
                    nu = space.step(nu, slopes.weights, weight_step, xi) if moving else nu
                if params.keep == "best" and len(groups) > 1:  # nu has moved since the first group was read
                    best = _better(best, here())
            end = here()
        return end if params.keep == "last" else _better(best, end)


def _better(current: Climb | None, candidate: Climb) -> Climb:
    """The climb with the higher mean loss, NaN the highest: it becomes the measure's reason for having no value."""
    if current is None or candidate.losses.mean() > current.losses.mean() or candidate.losses.isnan().any():
        return candidate
    return current
