"""Experiments: each is one figure about trained models, with its data as JSON.

One file holds one experiment: its parameters, the class `Experiment` says what it reads from a model and how the
figure is drawn, and `INFO` lists it. Reading the catalogue imports neither torch nor matplotlib (`core/catalogue.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from robflat_bench import __version__
from robflat_bench.core import Params, UsageError
from robflat_bench.core.catalogue import catalogue_rows
from robflat_bench.experiments.document import Experiment
from robflat_bench.registry.components import write
from robflat_bench.registry.describe import describe_parameters
from robflat_bench.registry.grammar import parse
from robflat_bench.registry.validation import did_you_mean, validate


@cache
def experiments() -> dict[str, type[Experiment]]:
    """Every experiment by name, in alphabetical order."""
    return {row.name: row for row in sorted(catalogue_rows(__name__), key=lambda row: row.name)}


@dataclass(frozen=True)
class Chosen:
    """An experiment with validated parameters."""

    experiment: type[Experiment]
    params: Params

    @property
    def canonical(self) -> str:
        """`name(every=parameter)` with sorted keys: equal experiments have equal text."""
        return write(self.experiment.name, self.params.model_dump())


def choose(text: str) -> Chosen:
    """Find an experiment and validate its parameters.

    Parameters
    ----------
    text
        Name and parameters, e.g. `landscape(points=21)`.

    Raises
    ------
    UsageError
        The name or a parameter is unknown or invalid; the message suggests the nearest name.
    """
    name, values = parse(text)
    if name not in experiments():
        guess = did_you_mean(name, experiments())
        raise UsageError(f"unknown experiment '{name}'{guess}; see `robflat-bench list experiments`")
    experiment = experiments()[name]
    return Chosen(experiment, validate(experiment.params, values, f"experiment {name}"))


def describe_experiment(name: str) -> dict[str, Any]:
    """Describe one experiment for `list` and `info`, as a JSON document."""
    found = experiments()[name]
    row = {"name": name, "kind": "experiment", "summary": found.summary, "provider": f"robflat-bench {__version__}"}
    return {**row, "reads": found.reads, **describe_parameters(found.params)}
