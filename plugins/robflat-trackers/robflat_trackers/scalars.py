"""The logged numbers of an epoch and of a checkpoint, under names that both trackers accept.

MLflow accepts at most 250 letters, digits and `_-. :/`. It keeps `a/b` as a file in a folder `a`, so no name may be the
folder of another name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 200
"""Most characters of a component within a name; quantity, checkpoint and split need the rest."""

_PUNCTUATION = re.compile(r'[(),=\[\]" ]+')
_OTHER = re.compile(r"[^A-Za-z0-9_. -]+")


def legal(component: str) -> str:
    """A component's text as a name: `pgd(restarts=3, steps=20)` becomes `pgd restarts 3 steps 20`.

    If more than punctuation is lost, the beginning of the text's hash is added, so that different texts have different
    names.
    """
    plain = _PUNCTUATION.sub(" ", component).strip()
    name = _OTHER.sub(" ", plain)
    if name == plain and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(component.encode()).hexdigest()[:8]}"


def of_epoch(epoch: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's line of history, without the time, which differs if the epoch is repeated."""
    return {name: value for name, value in epoch.items() if name not in ("epoch", "seconds") and value is not None}


def of_result(result: Mapping[str, Any]) -> dict[str, float]:
    """A checkpoint's errors, losses, gaps, measures with standard errors, and flags, as far as it has them."""
    found = {
        "clean_error/test": result["clean_error"],
        "clean_error/train": result["clean_error_train"],
        **{f"robust_loss/{split}": value for split, value in (result["robust_loss"] or {}).items()},
        **{f"gap/{name}": value for name, value in result["gap"].items()},
        **{f"flags/{name}": value for name, value in result["flags"].items()},
    }
    for attack, errors in result["robust_error"].items():
        found |= {f"robust_error/{legal(attack)}/{split}": value for split, value in errors.items()}
    for split, measures in (("test", result["measures"]), ("train", result["measures_train"])):
        for measure, measured in measures.items():
            found[f"measure/{legal(measure)}/{split}"] = measured["value"]
            found[f"standard_error/{legal(measure)}/{split}"] = measured["standard_error"]
    return {name: float(value) for name, value in found.items() if value is not None}
