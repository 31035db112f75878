"""The cost of a method's training, in image passes relative to adversarial training: a column of the board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robflat_bench.api import LeaderboardColumn


def training_cost(board: Mapping[str, Any]) -> list[LeaderboardColumn]:
    """Forward and backward passes of each row's training, divided by those of AT under the protocol's own recipe. The
    list is empty if that row is missing."""
    passes = {row["id"]: row["forward"] + row["backward"] for row in board["rows"]}
    plain = [passes[row["id"]] for row in board["rows"] if row["method"] == "at" and not row["changes"]]
    return [
        LeaderboardColumn("cost", "Cost", {row: count / at for row, count in passes.items()}, "passes, AT = 1", ".2f")
        for at in plain
    ]
