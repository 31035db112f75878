r"""Worst-case flatness of the robust loss:

    F_worst(w) = max_{\nu \in B_xi(w)} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

One \nu for all examples and one d per example climb together (coupling `joint`), from random points of both balls:

    \nu_l <- \Pi_{B_xi} ( \nu_l + \beta ||w_l|| g_l / ||g_l|| ),   d_i <- \Pi ( d_i + \alpha sign \nabla_{d_i} \ell )

Under `frozen` and `clean` the images stay and \nu climbs alone. The matched reference L(w) is the same ascent with
xi = 0. In the end every \nu is met once with a stronger attack that starts from the images found beside it: how much
higher the loss there is, is the detail `shortfall`.
Cost: restarts x steps forward and backward passes for \nu and d, and again without \nu for the reference.
Stutz et al., ICCV 2021. Other balls than the paper's: `weight_space`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.core import (
    BallNorm,
    BallShape,
    Examples,
    Journal,
    Measure,
    MeasureInfo,
    Measurement,
    Number,
    Params,
    Passes,
    Workspace,
    lazy_imports,
)
from robflat_bench.measures.shared import STRONG, OracleParams, reference_is_attacked

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked, project
    from robflat_bench.core.batching import padded_batches
    from robflat_bench.core.randomness import per_example_uniform
    from robflat_bench.measures.flatness.reference import subtracted
    from robflat_bench.measures.oracle import CHUNK, Oracle, differentiable
    from robflat_bench.measures.per_example import error_of_mean
    from robflat_bench.measures.random_moves import section
    from robflat_bench.numerics.folding import folded
    from robflat_bench.numerics.weight_space import Ball, Direction, WeightSpace


class WorstCaseParams(Params):
    """xi: radius relative to the norm of each group of weights, `ball` and `norm` (see `weight_space`). coupling:
    which images climb with the weights: none, those found at w (frozen), or each on its own way (joint). batch:
    examples per update of nu (0: all of them, one update a step). weight_step: of nu, in units of xi = 1, by default
    2.5 xi / updates. warm: one more `joint` restart, from where `frozen` ends. strong_steps: of the attack that each
    nu is met with in the end.

    The released code's setting: batch=128, weight_step=0.01, keep="last", reference="paper".
    """

    coupling: Literal["clean", "frozen", "joint"] = "joint"
    xi: Number = Field(default=0.003, ge=0)
    ball: BallShape = "layer"
    norm: BallNorm = "l2"
    restarts: PositiveInt = 10
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)
    weight_step: Number | None = Field(default=None, gt=0)
    batch: NonNegativeInt = 0
    keep: Literal["best", "last"] = "best"
    warm: bool = False
    strong_steps: PositiveInt = 40
    logits: Literal["plain", "normalised"] = "plain"
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10

    _attacked = model_validator(mode="after")(reference_is_attacked)


INFO = MeasureInfo(
    name="worst-case",
    summary="worst-case flatness of the robust loss: its highest rise over weights within xi",
    factory=f"{__name__}:WorstCase",
    params=WorstCaseParams,
    citation="Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021",
    title="worst-case flatness ({coupling}), xi={xi:g}, {restarts} restarts",
    example={"restarts": 2, "steps": 2, "strong_steps": 2},
    couplings=("clean", "frozen", "joint"),
    passes={
        "clean": Passes("restarts * (steps + 2)", "restarts * steps"),
        "frozen": Passes(
            f"steps + 1 + restarts * (steps + 2) + {STRONG[0]}", f"steps + restarts * steps + {STRONG[1]}"
        ),
        "joint": Passes(f"2 * restarts * (steps + 1) + {STRONG[0]}", f"2 * restarts * steps + {STRONG[1]}"),
    },
    powers={"layers": 0},
)


class Climb(NamedTuple):
    """Where an ascent ended: the perturbation, the images and the loss of each example there, float64 [N]."""

    nu: Direction
    images: Tensor
    losses: Tensor


class WorstCase(Measure):
    """Arrays: `losses` [restarts, N], `strong` [restarts, N] (under the strong attack), `reference` [N],
    `per_example` [N] (at the restart with the highest mean). The standard error is over examples, at its \\nu."""

    params: WorstCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        frozen = self._images(model, examples, workspace) if params.coupling == "frozen" or params.warm else None
        found = self._restarts(model, examples, workspace, params.xi, frozen)
        losses = found["losses"]
        best = int(losses.mean(1).argmax())
        matched = _highest(self._restarts(model, examples, workspace, 0.0, frozen)["losses"])
        reference, details = subtracted(params, matched, model, examples, self.threat, workspace)
        if "strong" in found:
            details["shortfall"] = float((found["strong"][best] - losses[best]).mean())
        difference = losses[best] - reference
        means = losses.mean(1)
        return Measurement(
            value=float(difference.mean()),
            standard_error=error_of_mean(difference),
            n=len(examples),
            details={"spread_over_restarts": float(means.std(ddof=1)) if len(means) > 1 else 0.0, **details},
            arrays={**found, "reference": reference, "per_example": difference},
        )

    def _images(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """Those of the coupling `frozen`."""
        oracle = self._oracle("frozen")
        oracle.freeze(model, examples, section(workspace, "images"))
        return oracle.points(examples).x

    def _oracle(self, coupling: Literal["clean", "frozen"]) -> Oracle:
        params = self.params
        return Oracle(
            self.threat, OracleParams(coupling=coupling, steps=params.steps, step=params.step, logits=params.logits)
        )

    def _restarts(
        self, model: nn.Module, examples: Examples, workspace: Workspace, xi: float, frozen: Tensor | None
    ) -> dict[str, np.ndarray]:
        """Arrays [restarts, N] of the ascents within xi; each restart is a unit of the journal."""
        journal = workspace.journal.section(f"xi-{xi!r}")

        def unit(restart: int) -> dict[str, np.ndarray]:
            climb = self.ascend(model, examples, workspace, xi, restart, frozen)
            arrays = {"losses": climb.losses}
            if xi > 0 and self.params.coupling != "clean":
                arrays["strong"] = self.strong(model, examples, workspace, climb)
            return {name: array.cpu().numpy() for name, array in arrays.items()}

        count = self.params.restarts + (self.params.warm and self.params.coupling == "joint")
        found = [journal.unit(f"restart-{r}", functools.partial(unit, r)) for r in range(count)]
        return {name: np.stack([arrays[name] for arrays in found]) for name in ("losses", "strong") if name in found[0]}

    def strong(self, model: nn.Module, examples: Examples, workspace: Workspace, climb: Climb) -> Tensor:
        """Loss of each example at w + nu under one longer attack, from the images the climb ended with; float64 [N]."""
        attack = Oracle(
            self.threat,
            OracleParams(coupling="reattack", warm=True, steps=self.params.strong_steps, logits=self.params.logits),
        )
        attack.images = climb.images
        with WeightSpace(model).moved(climb.nu):
            return attack.losses(model, examples, replace(workspace, journal=Journal()))

    def ascend(
        self,
        model: nn.Module,
        examples: Examples,
        workspace: Workspace,
        xi: float,
        restart: int,
        frozen: Tensor | None = None,
    ) -> Climb:
        """One ascent; the iterate with the highest mean loss (keep="best") or the last one.

        frozen: the images found at w. A joint ascent beyond the last restart begins where the frozen one ends."""
        params, key = self.params, (workspace.seed, "worst-case", restart)
        start = WeightSpace(model, ball=self._ball).in_ball(xi, *key)
        if params.coupling == "clean":
            return self._climb(model, examples, xi, start, examples.x, joint=False)
        if params.coupling == "frozen":
            assert frozen is not None
            return self._climb(model, examples, xi, start, frozen, joint=False)
        if restart < params.restarts:
            noise = self.threat.epsilon * per_example_uniform(examples.x, examples.index, *key)
            images = project(examples.x + noise, examples.x, self.threat.epsilon)
            return self._climb(model, examples, xi, start, images, joint=True)
        assert frozen is not None
        alone = self._climb(model, examples, xi, start, frozen, joint=False)
        return _better(alone, self._climb(model, examples, xi, alone.nu, frozen, joint=True))

    @property
    def _ball(self) -> Ball:
        return Ball(self.params.ball, self.params.norm)

    def _climb(
        self, model: nn.Module, examples: Examples, xi: float, nu: Direction, images: Tensor, joint: bool
    ) -> Climb:
        """From nu and these images, which climb too where `joint`."""
        params, epsilon = self.params, self.threat.epsilon
        space, reader = WeightSpace(model, ball=self._ball), self._oracle("clean")
        size = params.batch or len(examples)
        groups = [examples[slice(at, at + size)] for at in range(0, len(examples), size)]
        adversarial = list(images.split(size))
        step = epsilon / 4 if params.step is None else params.step
        weight_step = params.weight_step or 2.5 * xi / (params.steps * len(groups))

        best: Climb | None = None
        with attacked(model), nullcontext() if xi > 0 else folded(model, examples.x):
            for _ in range(params.steps if joint or xi > 0 else 0):
                before, at, seen = nu, list(adversarial), []
                for number, group in enumerate(groups):
                    pull = _pull(model, reader, space, group, adversarial[number], nu, joint, xi > 0)
                    if joint:
                        moved = adversarial[number] + step * pull.inputs.sign()
                        adversarial[number] = project(moved, group.x, epsilon)
                    nu = space.step(nu, pull.weights, weight_step, xi) if xi > 0 else nu
                    seen.append(pull.losses)
                if params.keep == "best":
                    # One group: these losses all belong to `before`. Several: nu moved between them.
                    if len(groups) > 1:
                        before, at = nu, list(adversarial)
                        seen = [_losses(model, reader, space, groups, adversarial, nu)]
                    best = _better(best, Climb(before, torch.cat(at), torch.cat(seen)))
            losses = _losses(model, reader, space, groups, adversarial, nu)
        final = Climb(nu, torch.cat(adversarial), losses)
        return final if params.keep == "last" else _better(best, final)


def _chunks(group: Examples, adversarial: Tensor) -> Iterator[tuple[Examples, int]]:
    """The group's adversarial examples, in batches that depend on its size alone."""
    return padded_batches(Examples(adversarial, group.y, group.index), CHUNK)


class Pull(NamedTuple):
    """Gradients of the summed loss of a group: per layer (float64) and per input; and the losses, float64 [n]."""

    weights: dict[str, Tensor]
    inputs: Tensor
    losses: Tensor


def _pull(
    model: nn.Module,
    reader: Oracle,
    space: WeightSpace,
    group: Examples,
    adversarial: Tensor,
    nu: Direction,
    with_inputs: bool,
    with_weights: bool,
) -> Pull:
    layers = space.layers if with_weights else {}
    total = {name: torch.zeros_like(layer, dtype=torch.float64) for name, layer in layers.items()}
    inputs, losses = [], []
    with space.moved(nu), differentiable(list(layers.values())):
        for part, count in _chunks(group, adversarial):
            variable = part.x.detach().requires_grad_(with_inputs)
            loss = reader.cross_entropy(model, replace(part, x=variable))[:count]
            wanted = [*([variable] if with_inputs else []), *layers.values()]
            gradients = list(torch.autograd.grad(loss.sum(), wanted)) if wanted else []
            losses.append(loss.detach().double())
            if with_inputs:
                inputs.append(gradients.pop(0)[:count])
            for name, gradient in zip(layers, gradients, strict=True):
                total[name] += gradient
    return Pull(total, torch.cat(inputs) if inputs else adversarial, torch.cat(losses))


def _losses(
    model: nn.Module,
    reader: Oracle,
    space: WeightSpace,
    groups: list[Examples],
    adversarial: list[Tensor],
    nu: Direction,
) -> Tensor:
    """Cross-entropy [N] float64 of given adversarial examples at w + nu."""
    found = []
    with space.moved(nu), torch.no_grad():
        for group, x in zip(groups, adversarial, strict=True):
            for part, count in _chunks(group, x):
                found.append(reader.cross_entropy(model, part)[:count].double())
    return torch.cat(found)


def _better(current: Climb | None, candidate: Climb) -> Climb:
    if current is None or candidate.losses.mean() > current.losses.mean():
        return candidate
    return current


def _highest(losses: np.ndarray) -> np.ndarray:
    """Of [restarts, N], the restart with the highest mean."""
    row: np.ndarray = losses[int(losses.mean(1).argmax())]
    return row
