"""The numbers that RobustBench publishes: as reference rows of a board, and as a check of records. Without torch."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Any

from robflat_bench.api import UsageError, parse
from robflat_robustbench import RobustBenchParams

IMAGES = 10_000
"""Test images behind a published error."""


@dataclass(frozen=True)
class Published:
    """What RobustBench says of a model on CIFAR-10 under linf: errors as fractions, the robust one AutoAttack's.

    commit: of RobustBench's repository, where its file says so. note: what to know beside the numbers.
    """

    name: str
    architecture: str
    clean_error: float
    robust_error: float
    paper: str
    commit: str
    note: str = ""

    @property
    def reference(self) -> dict[str, Any]:
        """As a reference row of a board."""
        row = {
            "label": f"RobustBench {self.name}, {self.architecture}",
            "clean_error": self.clean_error,
            "robust_error": self.robust_error,
            "attack": "AutoAttack",
            "source": f"{self.paper}; RobustBench, model_info/cifar10/Linf/{self.name}.json at {self.commit[:12]}",
            "note": self.note,
        }
        return {key: value for key, value in row.items() if value != ""}


@cache
def published() -> dict[str, Published]:
    """Name -> what is published, in the table's order."""
    text = (resources.files("robflat_robustbench") / "published.toml").read_text("utf-8")
    return {row["name"]: Published(**row) for row in tomllib.loads(text)["models"]}


def merged(text: str, rows: list[dict[str, Any]]) -> str:
    """The text of a file of references with these rows at its end, instead of those with their labels; comments and
    other rows stay as they are written."""
    try:
        labels = [row["label"] for row in tomllib.loads(text).get("rows", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the references there are not what they should be: {error}") from None
    head, *blocks = text.split("[[rows]]\n")
    if len(blocks) != len(labels):
        raise UsageError("the references there do not have each row under a line [[rows]]; put them so first")
    own = {row["label"] for row in rows}
    kept = [block for label, block in zip(labels, blocks, strict=True) if label not in own]
    added = [
        "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in row.items()) for row in rows
    ]
    blocks = [block.rstrip("\n") + "\n" for block in (*kept, *added)]
    return "\n".join(
        [*([head.rstrip("\n") + "\n"] if head.strip() else []), *(f"[[rows]]\n{block}" for block in blocks)]
    )


def problems(record: Mapping[str, Any]) -> list[str]:
    """What is wrong with an evaluation of published weights on CIFAR-10: a clean error that is not the published one.

    Allowed are five binomial standard errors and 0.2 %. A record does not say on how many images it counted: taken
    are as few as its fraction can come from.
    """
    text = str(record.get("model", ""))
    if not text.startswith("robustbench(") or record["dataset"]["name"] != "cifar10":
        return []
    params = RobustBenchParams(**parse(text)[1])
    known = published().get(params.name)
    if known is None or (params.dataset, params.threat, params.weights) != ("cifar10", "Linf", "published"):
        return []
    found = []
    for result in record["results"].values():
        error = result["clean_error"]
        images = Fraction(error).limit_denominator(IMAGES).denominator
        allowed = 5 * math.sqrt(known.clean_error * (1 - known.clean_error) / images) + 0.002
        if abs(error - known.clean_error) > allowed:
            found.append(
                f"the clean error of {params.name} is {error:.2%} here and {known.clean_error:.2%} as RobustBench "
                f"publishes it, more than {allowed:.2%} apart: weights, data or preprocessing are not those published"
            )
    return found
