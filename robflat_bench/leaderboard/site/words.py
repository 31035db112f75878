"""How the site writes: numbers with their uncertainty, text without what misleads, and addresses made of slugs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from robflat_bench.leaderboard.model import Place, Value

_SEGMENT = re.compile(r"[a-z0-9.=+-]{1,100}")
# What XML forbids, and what turns the direction of the text around it.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: str) -> str:
    """Text without control characters and without what turns its direction."""
    return _UNSEEN.sub("\ufffd", text)


def path(*segments: str) -> str:
    """`a/b/c` of segments [a-z0-9.=+-]; ValueError for any other, so that no page leaves its folder."""
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or not segment.strip("."):
            raise ValueError(f"{segment!r:.120} is no part of an address: a slug [a-z0-9.=+-] is")
    return "/".join(segments)


def href(target: str) -> str:
    """A path as it stands in a link: some servers read + as a space."""
    return quote(target, safe="/=.-#")


def number(value: float | None, unit: str = "") -> str:
    """Errors in percent, losses with three decimals, ratios with two, all else with three figures; a dash for none."""
    if value is None:
        return "\u2013"
    if unit == "fraction":
        text = f"{100 * value:.1f}"
    elif unit == "ratio":
        text = f"{value:.2f}"
    elif unit == "nats":
        text = f"{value:.3f}"
    else:
        text = _figures(value)
    return text.replace("-", "\u2212" if float(text) else "")


def _figures(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, 2 - exponent)}f}" if -4 <= exponent < 6 else f"{value:.2e}"


def spread(value: Value | None, unit: str) -> str:
    """`33.6 ± 1.2`: the longer side of the 95 % interval, which so never says too little."""
    if value is None or value.low is None or value.high is None:
        return number(value.mean if value else None, unit)
    side = max(value.mean - value.low, value.high - value.mean)
    return f"{number(value.mean, unit)}\u00a0±\u00a0{number(side, unit)}"


def within(title: str) -> str:
    """A title as it stands inside a sentence; abbreviations keep their capitals."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """`32.4 to 34.9`, or nothing where there is none."""
    return "" if low is None or high is None else f"{number(low, unit)} to {number(high, unit)}"


def ranks(place: Place) -> str:
    """`2–5`, or `2` where the bootstrap leaves no doubt."""
    return str(place.low) if place.low == place.high else f"{place.low}\u2013{place.high}"


def amount(value: float) -> str:
    """Image passes: `231 k`, `4.5 M`."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}\u00a0{suffix}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """`48 s`, `12 min`, `3.1 h`."""
    if value < 120:
        return f"{value:.0f}\u00a0s"
    return f"{value / 60:.0f}\u00a0min" if value < 7200 else f"{value / 3600:.1f}\u00a0h"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`a.b` and the value as text, for every leaf of a nested mapping; empty ones are left out."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from flat({str(k + 1): item for k, item in enumerate(value)}, f"{name}.")
        elif value is not None and value != "":
            yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
