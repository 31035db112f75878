"""Validation of what a person writes: pydantic's findings as one line, with a suggestion for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from robflat_bench.core import UsageError

Model = TypeVar("Model", bound=BaseModel)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, whatever its case; the empty string where none is near."""
    written = {each.lower(): each for each in known}
    return next((written[near] for near in difflib.get_close_matches(name.lower(), written, n=1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'trades'?` with the known name that is nearest, or the empty string where none is near."""
    near = nearest(name, known)
    return f"; did you mean '{near}'?" if near else ""


def validate(model: type[Model], values: dict[str, Any], owner: str) -> Model:
    """`model(**values)`; UsageError in one line: owner, parameter, value, and the values that are allowed."""
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError(f"{owner}: {explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words. An unknown key comes first: it may be a missing key, misspelt."""
    problems = error.errors()
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        *table, key = problem["loc"]
        known = [*_keys(model, tuple(table))]
        listed = f"; its keys are {', '.join(known)}" if known else "; it has no keys"
        return f"unknown key {where!r}" + (did_you_mean(str(key), known) or listed)
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where!r} = {problem['input']!r:.100}: {message}" if where else message


def _keys(model: Any, path: tuple[int | str, ...]) -> Iterable[str]:
    """The keys of the table at a path below a model; a number in the path stands for an item of a list."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = next(iter(get_args(model)), None) if isinstance(part, int) else field and field.annotation
    return getattr(model, "model_fields", {})
