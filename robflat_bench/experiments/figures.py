"""How every figure looks: one style, colours for all eyes (Okabe & Ito), a legend beside the data, a caption below.

Files are the same bytes for the same document and matplotlib: no dates, a fixed salt for SVG identifiers, no setting
of the user's. Figures are made without pyplot, so no window and no global state is involved.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import matplotlib.style
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robflat_bench.experiments.document import Document

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "robflat-bench",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dashes = Literal["-", "--", "-.", ":"]
WIDE = 1.5
"""Decades beyond which values are drawn on a log scale."""


class Look(NamedTuple):
    """How the k-th model is drawn; the 7 x 4 first ones all differ."""

    color: str
    marker: str
    linestyle: Dashes


def look(k: int) -> Look:
    return Look(COLOURS[k % 7], MARKERS[k % 7], get_args(Dashes)[k // 7 % 4])


def figure(columns: int, rows: int = 1, width: float = 4.2, height: float = 3.2, **shared: Any) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]; sizes in inches, of one panel."""
    made = Figure(figsize=(max(width * columns, 5.2), height * rows + 1.0))
    return made, made.subplots(rows, columns, squeeze=False, **shared)


def plain(text: str) -> str:
    """Text in which nothing is read as mathematics."""
    return text.replace("$", r"\$")


def finish(made: Figure, document: Document[Any], title: str, notes: str, legend: list[Any] | None = None) -> Figure:
    """Title and legend above the panels, the caption with protocol, n and seeds below."""
    if legend:
        # The legend carries the title: a figure's own would be laid out in the same place.
        columns = max(1, min(len(legend), int(made.get_figwidth() / 1.9)))
        bold = {"size": 11, "weight": "bold"}
        made.legend(handles=legend, loc="outside upper center", ncols=columns, title=title, title_fontproperties=bold)
    else:
        made.suptitle(title, fontsize=11, fontweight="bold")
    seeds = sorted({reading.model.seed for reading in document.readings if reading.model.seed is not None})
    counts = sorted({reading.values.n for reading in document.readings})
    facts = [
        f"{document.protocol.name} {document.protocol.version}",
        f"n = {' to '.join(map(str, counts[:1] + counts[1:][-1:]))} test images",
        *([] if document.canonical_data else ["not the canonical data"]),
        f"linf radius {document.epsilon:.3g}",
        f"training seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds)) or 'unknown'}",
        f"evaluation seed {document.evaluation_seed}",
    ]
    caption = textwrap.fill(f"{'; '.join(facts)}. {notes}", int(made.get_figwidth() * 16))
    made.supxlabel(plain(caption), fontsize=8, x=0.01, ha="left", color="#333333")
    return made


def wide(values: Iterable[float]) -> bool:
    """Whether the values ask for a log scale: all positive, and more than 1.5 decades between them."""
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) > 10**WIDE


def log_where_wide(axes: Axes, values: Iterable[float], axis: str = "y") -> bool:
    """Set the scale the values ask for, with ticks in plain numbers; whether it is a log scale."""
    if not wide(values):
        return False
    which = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    which.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    which.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    which.set_minor_formatter(ticker.NullFormatter())
    return True


def round_levels(low: float, high: float, count: int = 10) -> tuple[np.ndarray, bool]:
    """At most about `count` round numbers that cover [low, high], and whether they are spaced as on a log scale."""
    if not wide([low, high]):
        levels = ticker.MaxNLocator(count, min_n_ticks=2).tick_values(low, high if high > low else low + 1e-3)
        return np.asarray(levels), False
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = np.array([step * 10.0**decade for decade in decades for step in steps])
        first = max(int((every <= low).sum()) - 1, 0)
        last = min(int((every < high).sum()), len(every) - 1)
        if last - first <= count + 1:
            break
    return every[first : last + 1], True


def rendered(draw: Callable[[Document[Any]], Figure], document: Document[Any]) -> dict[str, bytes]:
    """The figure as files: suffix -> bytes."""
    # What "default" leaves as the user has it never touches content, except the layout engine and the hash salt.
    with matplotlib.style.context(["default", STYLE]):
        made = draw(document)
        files = {}
        for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
            buffer = io.BytesIO()
            made.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
            files[suffix] = buffer.getvalue()
    return files
