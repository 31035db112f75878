"""One measure on one model, as it is or changed: what the experiments about the measures themselves are made of.

Unlike `readings`, nothing of this is in a run's record: the parameters, the examples or the weights are other ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from robflat_bench.core import Examples, Journal, MeasureInfo, Measurement, NoValue
from robflat_bench.experiments.document import Text, Value
from robflat_bench.experiments.subject import Subject
from robflat_bench.registry.components import Component, parse, resolve, write
from robflat_bench.registry.registry import Registry


class Found(Value):
    """A measurement: details as the measure names them, and why there is no value, where there is none."""

    details: dict[str, float] = Field(default_factory=dict)
    reason: Text = ""


def measured(
    subject: Subject, measure: Component, model: nn.Module, examples: Examples, journal: Journal
) -> tuple[Found, Mapping[str, np.ndarray]]:
    """The measurement and its arrays; the model need not be the subject's own."""
    place = replace(subject.workspace(journal), initial=subject.initial)
    try:
        found = measure.build(subject.threat).measure(model, examples, place)
    except NoValue as error:
        return Found(value=None, standard_error=None, n=len(examples), reason=str(error)[:300]), {}
    return kept(found), found.arrays


def kept(found: Measurement) -> Found:
    """What a document has room for: no arrays, and finite numbers."""
    there, error = math.isfinite(found.value), found.standard_error
    return Found(
        value=found.value if there else None,
        standard_error=error if error is not None and there and math.isfinite(error) else None,
        n=found.n,
        details={name: value for name, value in found.details.items() if math.isfinite(value)},
        reason="" if there else f"it is {found.value} here",
    )


def coupled(registry: Registry, text: str, coupling: str) -> Component[MeasureInfo]:
    """The measure under this coupling, if it takes any and does not say its own."""
    name, values = parse(text)
    if "coupling" in registry.get("measure", name).info.params.model_fields:
        values = {"coupling": coupling, **values}
    return resolve(registry, "measure", write(name, values))


def changed(registry: Registry, measure: Component, **values: Any) -> Component:
    """The measure with other values of some parameters."""
    return resolve(registry, "measure", write(measure.name, {**measure.params.model_dump(), **values}))


def titled(component: Component, **instead: str) -> str:
    """As a panel names it; instead: words in place of a parameter's value."""
    return component.info.title.format(**{**component.params.model_dump(), **instead}) or component.brief
