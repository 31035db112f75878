"""The marker of a plugin's hooks, and what hooks about runs and boards see and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = "robflat_bench"
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as its implementation of the hook of that name."""


@dataclass(frozen=True)
class RunView:
    """A run, as an observer sees it.

    key: of the run, 16 hex digits; the same again when an interrupted run goes on. label: how a person names it.
    method: its canonical text. folder: where it lies; an observer may write below `folder / "observers"`.
    spec: the JSON document of spec.json.
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

    name: [a-z0-9-], unique on the board. title, note: the two lines of its heading, e.g. "Cost" and "passes of AT".
    values: row id -> number (rows that have none are left out). form: how a number is written, a format spec.
    """

    name: str
    title: str
    values: Mapping[str, float] = field(hash=False)
    note: str = ""
    form: str = ".3g"
