r"""Worst-case flatness of the robust loss:

    F_worst(w) = max_{\nu \in B_xi(w)} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

One \nu for all examples and one d per example climb together (coupling `joint`):

    \nu_l <- \Pi_{B_xi} ( \nu_l + \beta ||w_l|| g_l / ||g_l|| ),   d_i <- \Pi ( d_i + \alpha sign \nabla_{d_i} \ell )

The matched reference L(w) is the same ascent with xi = 0.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, project
from robflat_bench.base import Examples, Measure, Measurement, Workspace
from robflat_bench.batching import padded_batches
from robflat_bench.measures import WorstCaseParams
from robflat_bench.measures.oracle import CHUNK, differentiable, paper_reference
from robflat_bench.measures.weight_space import Direction, WeightSpace
from robflat_bench.randomness import per_example_uniform


class Joint(NamedTuple):
    """Where the joint ascent ended: the perturbation and the loss of each example under it, float64 [N]."""

    nu: Direction
    losses: Tensor


class WorstCase(Measure):
    """Arrays: `losses` [restarts, N], `reference` [N], `per_example` [N] (at the restart with the highest mean)."""

    params: WorstCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        losses = self._restarts(model, examples, workspace, params.xi)
        matched = _highest(self._restarts(model, examples, workspace, 0.0))
        reference, details = matched, {}
        if params.reference == "paper":
            reference = (
                paper_reference(
                    model,
                    examples,
                    self.threat,
                    replace(workspace, journal=workspace.journal.section("paper")),
                    steps=params.steps,
                    step=params.step,
                    restarts=params.reference_restarts,
                )
                .cpu()
                .numpy()
            )
            details["offset_at_zero"] = float((matched - reference).mean())
        difference = _highest(losses) - reference
        means = losses.mean(1)
        return Measurement(
            value=float(difference.mean()),
            standard_error=float(difference.std(ddof=1)) / math.sqrt(len(examples)) if len(examples) > 1 else None,
            n=len(examples),
            details={"spread_over_restarts": float(means.std(ddof=1)) if len(means) > 1 else 0.0, **details},
            arrays={"losses": losses, "reference": reference, "per_example": difference},
        )

    def _restarts(self, model: nn.Module, examples: Examples, workspace: Workspace, xi: float) -> np.ndarray:
        """Losses [restarts, N] of the joint ascent within xi; each restart is a unit of the journal."""
        journal = workspace.journal.section(f"xi-{xi!r}")

        def unit(restart: int) -> dict[str, np.ndarray]:
            return {"losses": self.ascend(model, examples, workspace, xi, restart).losses.cpu().numpy()}

        found = [journal.unit(f"restart-{r}", functools.partial(unit, r)) for r in range(self.params.restarts)]
        return np.stack([arrays["losses"] for arrays in found])

    def ascend(self, model: nn.Module, examples: Examples, workspace: Workspace, xi: float, restart: int) -> Joint:
        """One joint ascent; the iterate with the highest mean loss (keep="best") or the last one."""
        params, epsilon = self.params, self.threat.epsilon
        space = WeightSpace(model)
        size = params.batch or len(examples)
        groups = [examples[slice(at, at + size)] for at in range(0, len(examples), size)]
        step = epsilon / 4 if params.step is None else params.step
        weight_step = params.weight_step or 2.5 * xi / (params.steps * len(groups))
        key = (workspace.seed, "worst-case", restart)

        nu = space.in_ball(xi, *key)
        adversarial = [
            project(group.x + epsilon * per_example_uniform(group.x, group.index, *key), group.x, epsilon)
            for group in groups
        ]
        best: Joint | None = None
        with attacked(model):
            for _ in range(params.steps):
                before, seen = nu, []
                for number, group in enumerate(groups):
                    pull = _pull(model, space, group, adversarial[number], nu, xi > 0)
                    moved = adversarial[number] + step * pull.inputs.sign()
                    adversarial[number] = project(moved, group.x, epsilon)
                    nu = space.step(nu, pull.weights, weight_step, xi) if xi > 0 else nu
                    seen.append(pull.losses)
                if params.keep == "best":
                    # One group: these losses all belong to `before`. Several: nu moved between them.
                    if len(groups) > 1:
                        before, seen = nu, [_losses(model, space, groups, adversarial, nu)]
                    best = _better(best, Joint(before, torch.cat(seen)))
            final = Joint(nu, _losses(model, space, groups, adversarial, nu))
        return final if params.keep == "last" else _better(best, final)


def _chunks(group: Examples, adversarial: Tensor) -> Iterator[tuple[Examples, int]]:
    """The group's adversarial examples, in batches that depend on its size alone."""
    return padded_batches(Examples(adversarial, group.y, group.index), min(CHUNK, len(group)))


class Pull(NamedTuple):
    """Gradients of the mean loss of a group: per layer (float64), and per input; and the losses, float64 [n]."""

    weights: dict[str, Tensor]
    inputs: Tensor
    losses: Tensor


def _pull(
    model: nn.Module,
    space: WeightSpace,
    group: Examples,
    adversarial: Tensor,
    nu: Direction,
    with_weights: bool,
) -> Pull:
    names = list(space.layers) if with_weights else []
    total = {name: torch.zeros_like(space.layers[name], dtype=torch.float64) for name in names}
    inputs, losses = [], []
    with space.moved(nu), differentiable([space.layers[name] for name in names]):
        for part, count in _chunks(group, adversarial):
            variable = part.x.detach().requires_grad_()
            loss = F.cross_entropy(model(variable), part.y, reduction="none")[:count]
            gradients = torch.autograd.grad(loss.sum(), [variable, *(space.layers[name] for name in names)])
            inputs.append(gradients[0][:count])
            losses.append(loss.detach().double())
            for name, gradient in zip(names, gradients[1:], strict=True):
                total[name] += gradient
    return Pull(total, torch.cat(inputs), torch.cat(losses))


def _losses(
    model: nn.Module,
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
                found.append(F.cross_entropy(model(part.x), part.y, reduction="none")[:count].double())
    return torch.cat(found)


def _better(current: Joint | None, candidate: Joint) -> Joint:
    if current is None or candidate.losses.mean() > current.losses.mean():
        return candidate
    return current


def _highest(losses: np.ndarray) -> np.ndarray:
    """Of [restarts, N], the restart with the highest mean."""
    row: np.ndarray = losses[int(losses.mean(1).argmax())]
    return row
