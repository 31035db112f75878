"""What is logged, by which names: the numbers of an epoch and of a checkpoint, each under a name that both trackers
take. MLflow allows letters, digits, `_-. :/` in at most 250 characters, and keeps `a/b` as a file in a folder `a`: no
name may be a folder of another one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 200
"""Characters of a component's part of a name; the quantity, the checkpoint and the split need the others."""

_PUNCTUATION = re.compile(r'[(),=\[\]" ]+')
_OTHER = re.compile(r"[^A-Za-z0-9_. -]+")


def legal(component: str) -> str:
    """`pgd restarts 3 steps 20` of `pgd(restarts=3, steps=20)`; where more than a component's punctuation is lost, the
    beginning of the text's hash keeps two names apart."""
    plain = _PUNCTUATION.sub(" ", component).strip()
    name = _OTHER.sub(" ", plain)
    if name == plain and len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(component.encode()).hexdigest()[:8]}"


def of_epoch(epoch: Mapping[str, Any]) -> dict[str, float]:
    """Everything an epoch's line of history has but the time, which differs where the epoch is repeated."""
    return {name: value for name, value in epoch.items() if name not in ("epoch", "seconds") and value is not None}


def of_result(result: Mapping[str, Any]) -> dict[str, float]:
    """A checkpoint's errors, losses, gaps, measures with standard errors, and flags; what it lacks is left out."""
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
