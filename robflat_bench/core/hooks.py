"""The marker of a plugin's hooks, and the classes that hooks about runs and boards receive and return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = "robflat_bench"
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator: marks a function of a plugin as its implementation of the hook with that name."""


@dataclass(frozen=True)
class RunView:
    """A run, as an observer sees it.

    Parameters
    ----------
    key : str
        16 hex digits; an interrupted run continues with the same key.
    label : str
        Its name for people.
    method : str
        Canonical text of the method.
    protocol : str
        Name of the protocol.
    seed : int
        Seed of training.
    folder : Path
        The run's folder; an observer may write below `folder / "observers"`.
    spec : Mapping
        The JSON document of spec.json.
    """

    key: str
    label: str
    method: str
    protocol: str
    seed: int
    folder: Path
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class LeaderboardColumn:
    """A column that a plugin adds to a board's page.

    Parameters
    ----------
    name : str
        [a-z0-9-], unique on the board.
    title, note : str
        The two lines of its heading, e.g. "Cost" and "passes of AT".
    values : Mapping of str to float
        Row id -> number; rows without a number are left out.
    form : str
        Format spec of the numbers.
    """

    name: str
    title: str
    values: Mapping[str, float] = field(hash=False)
    note: str = ""
    form: str = ".3g"
