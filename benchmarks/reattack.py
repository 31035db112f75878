"""What shorter attacks at moved weights do to the measures that attack again at every draw of the weights.

    uv run python benchmarks/reattack.py RUN... --protocol FILE.toml --work DIR --draws 30 \
        --json benchmarks/records/reattack.json
    uv run python benchmarks/reattack.py --work DIR --json benchmarks/records/reattack.json     # what DIR holds

Every draw of a measure is attacked by each ascent of `ASCENTS`. An ascent's best loss after k steps is the loss of an
attack of k steps, so one pass over the draws serves every candidate. A candidate is attacked at w as at the moved
weights, with the images found at w by the full attack where it starts warm.

deviation   value of the candidate - value of the full attack, on the same draws, in standard errors of the full attack
            at the measure's default number of draws
rho         Spearman's rank correlation of the two values over networks
passes      image passes of the measure at its default draws, relative to the full attack's

The second table is of `full_draws`: short attacks (`SHORT`) at every draw, corrected by the full attack at m of them.

bias        the same deviation where the recorded draws correct each other, m being all of them: what more draws do not
            remove; 0 but for a free energy
noise       standard deviation of (value - value of the full attack at all default draws), in the same unit:
            sd over draws of (full - short) * sqrt(1 / m - 1 / draws)
rho         mean rank correlation when values have this noise, of 1000 simulations

An ascent's losses lie in DIR, one file for each network and measure, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked, cross_entropy, project
from robflat_bench.core import Examples, Journal, Workspace
from robflat_bench.core.estimates import estimated
from robflat_bench.core.randomness import per_example_uniform
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.experiments.trained_model import TrainedModel, find_models, open_model
from robflat_bench.front.sessions import open_session
from robflat_bench.measures import random_moves
from robflat_bench.measures.oracle import Oracle
from robflat_bench.numerics.folding import folded
from robflat_bench.registry.components import Component, resolve
from robflat_bench.registry.registry import discover
from robflat_bench.runs import environment

REGISTRY = discover()
MEASURES = ("lpf", "local-entropy", "adaptive-average", "average-case")
FULL = ("fresh", 20)
Curves: TypeAlias = Mapping[str, np.ndarray]
"""Ascent -> best losses so far [draws + 1, steps + 1, N], the first at w."""
Attack: TypeAlias = tuple[tuple[str, int], ...]
"""The ascents of an attack, with their steps; the highest loss counts."""


class Plan(NamedTuple):
    """One ascent: from the images found at w or from random images; step size in quarters of epsilon; its steps."""

    warm: bool
    quarters: int
    steps: int


ASCENTS = {
    "fresh": Plan(False, 1, 20),
    "warm": Plan(True, 1, 10),
    "fresh, step eps/2": Plan(False, 2, 7),
    "warm, step eps/2": Plan(True, 2, 5),
}
CANDIDATES: dict[str, Attack] = {
    **{f"fresh, {k} steps": (("fresh", k),) for k in (5, 10, 15)},
    **{f"fresh, {k} steps of eps/2": (("fresh, step eps/2", k),) for k in (5, 7)},
    **{f"warm, {k} steps": (("warm", k),) for k in (3, 5, 7, 10)},
    **{f"warm and fresh, {k} steps": (("warm", k), ("fresh", k)) for k in (3, 5, 7, 10)},
    "warm, 5 steps of eps/2": (("warm, step eps/2", 5),),
    "warm and fresh, 3 steps of eps/2": (("warm, step eps/2", 3), ("fresh, step eps/2", 3)),
    "warm and fresh, 5 steps of eps/2": (("warm, step eps/2", 5), ("fresh, step eps/2", 5)),
}

SHORT: Attack = (("fresh, step eps/2", 5),)
FULL_DRAWS = {"lpf": (10, 15, 20), "local-entropy": (6, 10), "adaptive-average": (4, 5, 8), "average-case": (3, 5)}


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------


class Ascents(Oracle):
    """An oracle that keeps the best losses of every ascent after every step, and reads the full attack's."""

    latest: Ascents

    def freeze(self, model: nn.Module, examples: Examples, workspace: Workspace) -> None:
        Ascents.latest, self.seed = self, workspace.seed
        self.kept: dict[str, list[np.ndarray]] = {name: [] for name in ASCENTS}
        _, self.images = self._climb(model, examples, ASCENTS[FULL[0]])

    def losses(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        for name, plan in ASCENTS.items():
            self.kept[name].append(self._climb(model, examples, plan)[0].numpy())
        return torch.from_numpy(self.kept[FULL[0]][-1][FULL[1]]).double()

    def _climb(self, model: nn.Module, examples: Examples, plan: Plan) -> tuple[Tensor, Tensor]:
        """Best losses so far [steps + 1, N], and the best images."""
        x, epsilon, objective = examples.x, self.pgd.threat.epsilon, cross_entropy(examples.y)
        noise = epsilon * per_example_uniform(x, examples.index, self.seed, "pgd", 0)
        current = project(self._kept() if plan.warm else x + noise, x, epsilon)
        best, highest, curve = x, torch.full((len(x),), -torch.inf), []
        with attacked(model), folded(model, x):
            for number in range(plan.steps + 1):
                variable = current.detach().requires_grad_()
                loss = objective(model(variable))
                better = loss.detach() > highest
                best = torch.where(better[:, None, None, None], current, best)
                highest = torch.where(better, loss.detach(), highest)
                curve.append(highest)
                if number < plan.steps:
                    (gradient,) = torch.autograd.grad(loss.sum(), variable)
                    current = project(current + plan.quarters * epsilon / 4 * gradient.sign(), x, epsilon)
        return torch.stack(curve), best


def record(model: TrainedModel, measure: Component, examples: int, file: Path) -> None:
    """Write the `Curves` of a measure."""
    with patch.object(random_moves, "Oracle", Ascents):
        model.measure(measure, model.load(), model.examples("test", examples), Journal())
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        np.savez(stream, **{name: np.stack(curves) for name, curves in Ascents.latest.kept.items()})
    os.replace(part, file)


# ---------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------


def losses_under(curves: Curves, attack: Attack) -> np.ndarray:
    """Losses of an attack, float64 [draws + 1, N], the first at w."""
    return np.max([curves[name][:, steps] for name, steps in attack], axis=0).astype(np.float64)


def numbers(measure: Component, losses: np.ndarray) -> dict[str, float]:
    """Value of losses [draws + 1, N]; standard error at the default draws; share of the draws in a free energy."""
    found = estimated(measure.info.estimate, {"losses": losses[1:], "reference": losses[0]})
    draws, share = found.details["standard_error_draws"], (len(losses) - 1) / measure.params.draws
    examples = max((found.standard_error or 0.0) ** 2 - draws**2, 0.0)
    return {
        "value": found.value,
        "standard_error": math.sqrt(examples + draws**2 * share),
        "effective": found.details.get("effective_sample_size", math.inf) / (len(losses) - 1),
    }


def with_value(measure: Component, data: Mapping[str, Curves]) -> dict[str, dict[str, float]]:
    """`numbers` of the full attack, for the networks where the measure has a value."""
    everywhere = {label: numbers(measure, losses_under(curves, (FULL,))) for label, curves in data.items()}
    return {label: found for label, found in everywhere.items() if found["effective"] >= 0.05}  # 5 of 100 draws


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Numbers of networks, for the record."""
    return {label: round(float(value), 4) for label, value in values.items()}


def passes(measure: Component, attack: Attack) -> int:
    """Image passes, forward and backward, of the measure at its default draws; the images found at w included."""
    warm = any(ASCENTS[name].warm for name, _ in attack)
    return warm * (2 * FULL[1] + 1) + (measure.params.draws + 1) * sum(2 * steps + 1 for _, steps in attack)


def compared(measure: Component, data: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """One row for each candidate, over the networks where the full attack gives a value."""
    full = with_value(measure, data)
    values = [found["value"] for found in full.values()]
    rows = []
    for name, attack in CANDIDATES.items():
        found = {label: numbers(measure, losses_under(data[label], attack))["value"] for label in full}
        deviations = {label: (found[label] - full[label]["value"]) / full[label]["standard_error"] for label in full}
        signed = np.array([*deviations.values()])
        rows.append(
            {
                "measure": measure.name,
                "attack": name,
                "networks": len(full),
                "draws": len(next(iter(data.values()))[FULL[0]]) - 1,
                "mean": float(signed.mean()),
                "median_size": float(np.median(abs(signed))),
                "largest_size": float(abs(signed).max()),
                "below_half": int((abs(signed) < 0.5).sum()),
                "rho": float(spearmanr([*found.values()], values).statistic),
                "passes": passes(measure, attack) / passes(measure, (FULL,)),
                "deviations": rounded(deviations),
            }
        )
    return rows


def corrected(measure: Component, data: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """One row for each number of full draws."""
    full, draws, rows = with_value(measure, data), measure.params.draws, []
    values, errors = (np.array([each[name] for each in full.values()]) for name in ("value", "standard_error"))
    bias, spread = [], []
    for label, found in full.items():
        long, short = (losses_under(data[label], attack) for attack in ((FULL,), SHORT))
        missed = (long - short)[1:]
        both = np.concatenate([long[:1], short[1:] + missed.mean(0)])
        bias.append((numbers(measure, both)["value"] - found["value"]) / found["standard_error"])
        spread.append(missed.mean(1).std(ddof=1) / found["standard_error"])
    each, quick = (passes(measure, attack) // (draws + 1) for attack in ((FULL,), SHORT))
    for m in FULL_DRAWS[measure.name]:
        noise = np.array(spread) * math.sqrt(1 / m - 1 / draws)
        random = np.random.default_rng(0).standard_normal((1000, len(values)))
        seen = values + (np.array(bias) + random * noise) * errors
        rows.append(
            {
                "measure": measure.name,
                "full_draws": m,
                "networks": len(full),
                "largest_bias": float(np.abs(bias).max()),
                "median_noise": float(np.median(noise)),
                "largest_noise": float(noise.max()),
                "rho": float(np.mean([spearmanr(row, values).statistic for row in seen])),
                "passes": ((m + 1) * each + draws * quick) / ((draws + 1) * each),
                "noise": rounded(dict(zip(full, noise, strict=True))),
                "bias": rounded(dict(zip(full, bias, strict=True))),
            }
        )
    return rows


def line(row: Mapping[str, Any]) -> str:
    """A row of either table."""
    if "full_draws" in row:
        name, sizes = f"m = {row['full_draws']}", ("largest_bias", "median_noise", "largest_noise")
    else:
        name, sizes = row["attack"], ("mean", "median_size", "largest_size", "below_half")
    cells = "  ".join(f"{size} {row[size]:.4g}" for size in (*sizes, "passes"))
    return f"{row['measure']:17s} {name:33s} n={row['networks']}  {cells}  rho {row['rho']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--protocol")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--draws", type=int, default=0, help="of each measure, at most; 0: its default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [resolve(REGISTRY, "measure", f"{name}(coupling=reattack)") for name in MEASURES]
    for run in options.runs:
        session = open_session(REGISTRY, options.protocol, (), None, options.work, "cpu")
        model = open_model(session, find_models(session, [run], "chosen", ModelOptions())[0])
        for measure in chosen:
            file = options.work / f"{Path(run).parent.name}~{measure.name}.npz"
            draws = min(options.draws or measure.params.draws, measure.params.draws)
            if not file.is_file():
                record(model, model.variant(measure, draws=draws), options.examples, file)
                print(file.stem, flush=True)  # noqa: T201
    rows, levels, full = [], [], {}
    for measure in chosen:
        files = sorted(options.work.glob(f"*~{measure.name}.npz"))
        data = {file.name.partition("~")[0]: dict(np.load(file)) for file in files}
        rows += compared(measure, data) if data else []
        levels += corrected(measure, data) if data else []
        full[measure.name] = with_value(measure, data)
    print("\n".join(map(line, [*rows, *levels])))  # noqa: T201
    if options.json:
        machine = {**environment.describe(), **environment.torch_environment("cpu")}
        options.json.write_text(
            json.dumps({"environment": machine, "full": full, "attacks": rows, "full_draws": levels}, indent=1) + "\n",
            "utf-8",
        )


if __name__ == "__main__":
    main()
