"""The numbers that RobustBench publishes, as reference rows of a board and as a check of records. Without torch."""

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
"""Number of test images behind a published error."""


@dataclass(frozen=True)
class Published:
    """RobustBench's entry for a model on CIFAR-10 under linf.

    Parameters
    ----------
    name, architecture, paper
        As RobustBench gives them.
    clean_error, robust_error
        Fractions of the test set; the robust error is AutoAttack's.
    commit
        Commit of RobustBench's repository at which the entry was read.
    note
        A remark, e.g. extra training data.
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
    """Name -> published entry, in the table's order."""
    text = (resources.files("robflat_robustbench") / "published.toml").read_text("utf-8")
    return {row["name"]: Published(**row) for row in tomllib.loads(text)["models"]}


def merged(text: str, rows: list[dict[str, Any]]) -> str:
    """A file of references with these rows at its end.

    Rows with the same labels are replaced; comments and other rows stay as they are written.

    Raises
    ------
    UsageError
        If the text is not a file of references.
    """
    try:
        labels = [row["label"] for row in tomllib.loads(text).get("rows", [])]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the references there cannot be read: {error}") from None
    head, *blocks = text.split("[[rows]]\n")
    if len(blocks) != len(labels):
        raise UsageError("the references there have rows without a line [[rows]]; put each row under such a line first")
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
    """The problems of an evaluation of published weights on CIFAR-10: a clean error that is not the published one.

    The tolerance is five binomial standard errors plus 0.2 %. A record does not say how many images it counted, so the
    least number is assumed that its fraction can come from.
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
