"""Units of the journal: work that an interrupted measurement reads back instead of computing it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from torch import Tensor

from robflat_bench.core import Journal, Workspace

Results: TypeAlias = Mapping[str, Tensor | np.ndarray | float]


def section(workspace: Workspace, name: str) -> Workspace:
    """The workspace with a section of its journal, in which unit names are free again."""
    return replace(workspace, journal=workspace.journal.section(name))


def unit(journal: Journal, name: str, compute: Callable[[], Results]) -> Mapping[str, np.ndarray]:
    """The arrays of one unit; `compute` may return tensors and numbers as well."""
    return journal.unit(name, lambda: {key: _array(result) for key, result in compute().items()})


def units(journal: Journal, name: str, count: int, compute: Callable[[int], Results]) -> dict[str, np.ndarray]:
    """Arrays of the units NAME-0 ... NAME-(count - 1), each stacked to [count, ...]; none where count is 0. No unit
    may need another."""
    found = journal.each(count, lambda number: unit(journal, f"{name}-{number}", functools.partial(compute, number)))
    return {key: np.stack([arrays[key] for arrays in found]) for key in (found[0] if found else ())}


def _array(result: Tensor | np.ndarray | float) -> np.ndarray:
    return result.cpu().numpy() if isinstance(result, Tensor) else np.asarray(result)
