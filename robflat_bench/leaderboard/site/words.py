"""How the site writes: numbers with their uncertainty, text without control characters, and addresses made of slugs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt

from robflat_bench.analysis.statistics import Place
from robflat_bench.leaderboard.model import Board, BoardColumn, RowValue

UNITS = {"fraction": "%", "nats": "nats"}
"""Unit of a quantity -> unit as the site shows it."""
NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}
DECIMALS = {"fraction": 1, "nats": 3, "ratio": 2}
_SEGMENT = re.compile(r"[a-z0-9.=+-]{1,100}")
# Characters that XML forbids, and characters that change the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: str) -> str:
    """Text with control characters and changes of direction replaced by U+FFFD."""
    return _UNSEEN.sub("\ufffd", text)


def site_path(*segments: str) -> str:
    """`a/b/c` of slugs [a-z0-9.=+-]; ValueError for any other segment, so that every page stays in its folder."""
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or not segment.strip("."):
            raise ValueError(f"{segment!r:.120} is no part of an address: use a slug of [a-z0-9.=+-]")
    return "/".join(segments)


def href(target: str) -> str:
    """A path as it stands in a link; + is quoted, because some servers read it as a space."""
    return quote(target, safe="/=.-#")


def format_value(value: float | None, unit: str = "") -> str:
    """A number: fractions in percent with one decimal, nats with three, ratios with two, others with three significant
    figures; a dash for None."""
    if value is None:
        return "\u2013"
    shown = 100 * value if unit == "fraction" else value
    text = f"{shown:.{DECIMALS[unit]}f}" if unit in DECIMALS else _significant(value)
    return text.replace("-", "\u2212" if float(text) else "")


def _significant(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, 2 - exponent)}f}" if -4 <= exponent < 6 else f"{value:.2e}"


def format_count(value: float) -> str:
    """A large count, such as image passes: `231 k`, `4.5 M`."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}\u00a0{suffix}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """`48 s`, `12 min`, `3.1 h`."""
    if value < 120:
        return f"{value:.0f}\u00a0s"
    return f"{value / 60:.0f}\u00a0min" if value < 7200 else f"{value / 3600:.1f}\u00a0h"


def spread(value: RowValue | None, unit: str) -> str:
    """`33.6 ± 1.2`: mean and the longer side of the 95 % confidence interval; the mean alone where there is none."""
    if value is None or value.side is None:
        return format_value(value.mean if value else None, unit)
    return f"{format_value(value.mean, unit)}\u00a0±\u00a0{format_value(value.side, unit)}"


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """`32.4 to 34.9`; "" where there is no interval."""
    return "" if low is None or high is None else f"{format_value(low, unit)} to {format_value(high, unit)}"


def p_value(p: float) -> str:
    """`p 0.012`; `p < 0.001` below that."""
    return "p < 0.001" if p < 0.001 else f"p\u00a0{p:.2g}"


def rank_interval(place: Place) -> str:
    """`2–5`, or `2` where both ends are equal."""
    return str(place.low) if place.low == place.high else f"{place.low}\u2013{place.high}"


def unit_and_n(column: BoardColumn) -> str:
    """`%, n 250`: the unit of a column and its number of test images."""
    return ", ".join(filter(None, (UNITS.get(column.unit), f"n {column.n:,}")))


def short_title(title: str) -> str:
    """`Average-case flatness`: a column's title without its settings."""
    name = title.partition(",")[0].partition(" (")[0]
    return capital(name)


def short_titles(columns: Sequence[BoardColumn], plain: Sequence[str] = ()) -> dict[str, str]:
    """Column -> `short_title`, with the first setting that tells it from columns of the same name; without it for the
    columns `plain`."""
    parts = {column.id: _settings(column.title) for column in columns}
    names = {column.id: short_title(column.title) for column in columns}
    short = {}
    for id, name in names.items():
        others = [parts[other] for other in names if other != id and names[other] == name]
        own = [part for part in parts[id] if not all(part in other for other in others)]
        short[id] = ", ".join([name, *own[:1]]) if others and id not in plain else name
    return short


def _settings(title: str) -> list[str]:
    """`reattack`, `xi=0.5`: what a title says after its name."""
    return [part for part in re.split(r", | \(|\)", title)[1:] if part]


def radius(epsilon: float) -> str:
    """`8/255` for a small whole number of pixel values, otherwise three significant figures."""
    pixels = 255 * epsilon
    return f"{round(pixels)}/255" if abs(pixels - round(pixels)) < 0.01 and 0.5 < pixels < 33 else f"{epsilon:.3g}"


def threat(board: Board) -> str:
    """`ℓ∞, ε = 8/255`: norm and radius of the threat."""
    return f"{NORMS[board.norm]}, ε = {radius(board.epsilon)}"


def sentences(said: Mapping[str, bool]) -> str:
    """The sentences that hold, as one text."""
    return " ".join(sentence for sentence, holds in said.items() if holds)


def capital(title: str) -> str:
    """A title at the beginning of a line: its first letter upper case, the others as they are."""
    return title[:1].upper() + title[1:]


def within(title: str) -> str:
    """A title inside a sentence: its first letter lower case, except in abbreviations."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


LEAVES: dict[str, Callable[[Any], str]] = {
    "epsilon": radius,
    "attack_step": radius,
    "memory_bytes": lambda size: f"{size / 1e9:.1f} GB",
}
"""Last part of a leaf's name -> how its value is written, where that is not Python's own way."""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`a.b` and the value as text, for every leaf of a nested mapping; None and "" are left out."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from leaves({str(k + 1): item for k, item in enumerate(value)}, f"{name}.")
        elif value is not None and value != "":
            yield name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else _leaf(key, value)


def _leaf(key: str, value: Any) -> str:
    """A value as text. What a record says of its machine is a stranger's: a key does not promise a number."""
    known = isinstance(value, int | float) and abs(value) < 1e18
    return LEAVES[key](value) if known and key in LEAVES else str(value)


def markdown() -> MarkdownIt:
    """Markdown without HTML and pictures, whose links to other sites carry rel="external noopener"."""
    md = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def link(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        if "://" in str(tokens[index].attrGet("href")):
            tokens[index].attrSet("rel", "external noopener")
        return str(self.renderToken(tokens, index, options, env))

    md.add_render_rule("link_open", link)
    wrap = '<div class="scroll" role="region" tabindex="0" aria-label="Table">'
    md.add_render_rule("table_open", lambda *_: f"{wrap}<table>\n")
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return md
