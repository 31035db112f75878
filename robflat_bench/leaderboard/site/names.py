"""Methods as people call them: `AT + AWP`, with the settings apart."""

from __future__ import annotations

import re
from typing import NamedTuple

from robflat_bench.leaderboard.model import BoardRow

_CAPITALS = (
    "alp asam at awp ema fgsm-rs gairat hat idbh ikl kd-swa mart meat mlcat mma n-fgsm rwp sam score sora swa te trades"
)
SPELLED = {name: name.upper() for name in _CAPITALS.split()} | {
    "autoaugment": "AutoAugment",
    "cons-at": "Cons-AT",
    "cutmix": "CutMix",
    "cutout": "Cutout",
    "entropy-sgd": "Entropy-SGD",
    "free-at": "Free AT",
    "gradalign": "GradAlign",
    "rebat": "ReBAT",
}
"""Component -> its name in its paper. Others are written with spaces instead of dashes."""
_PART = re.compile(r"([a-z0-9:-]+)(?:\((.*?)\))?(?:\+|$)")


class Name(NamedTuple):
    """text: the components. settings: what differs from the defaults; "" where nothing does."""

    text: str
    settings: str


def name(row: BoardRow) -> Name:
    """The name of a row; its label where that has another form."""
    label, _, changes = row.label.partition(" [")
    parts = [*_PART.finditer(label)]
    if "".join(part[0] for part in parts) != label:
        return Name(row.label, "")
    text = " + ".join(SPELLED.get(part[1], part[1].replace("-", " ")) for part in parts)
    settings = [setting for part in parts if (setting := part[2])]
    settings += [changes.removesuffix("]")] if changes else []
    return Name(text, ", ".join(settings).replace("=", "\u00a0"))


def full_name(row: BoardRow) -> str:
    """`AT (weight decay 0.01)`: the name with its settings."""
    said = name(row)
    return f"{said.text} ({said.settings})" if said.settings else said.text
