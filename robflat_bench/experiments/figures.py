"""The style of every figure: colours for colour-blind readers (Okabe & Ito), legend above the panels, caption below.

The same document and matplotlib give the same bytes: files carry no date, SVG identifiers have a fixed salt, and the
user's matplotlib settings are ignored. Figures are made without pyplot: no window opens, no global state changes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robflat_bench.experiments.document import Document, ValueWithError

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
DASHES = ("-", "--", "-.", ":")
GREY = "#555555"
WIDE = 1.5
"""Decades beyond which values are drawn on a log scale."""


def look(k: int) -> dict[str, Any]:
    """Colour, marker and line style of the k-th model; the first 28 differ."""
    return {"color": COLOURS[k % 7], "marker": MARKERS[k % 7], "linestyle": DASHES[k // 7 % 4]}


def entry(label: str, **style: Any) -> Line2D:
    """An entry of a legend, grey unless the style has a colour."""
    return Line2D([], [], label=plain(label), **{"color": GREY, **style})


def entries(names: Iterable[str], **style: Any) -> list[Any]:
    """An entry for each model in its look; `style` replaces parts of it."""
    return [entry(name, **{**look(k), **style}) for k, name in enumerate(names)]


def errorbars(axes: Axes, x: Sequence[Any], values: Sequence[ValueWithError], k: int, **style: Any) -> None:
    """Values of the k-th model with their standard errors (0 where undefined)."""
    errors = [value.standard_error or 0.0 for value in values]
    y = [value.drawn for value in values]
    axes.errorbar(x, y, errors, **{"color": look(k)["color"], "marker": look(k)["marker"], **style})


def panels(columns: int, rows: int = 1, width: float = 4.2, height: float = 3.2, **shared: Any) -> tuple[Figure, Any]:
    """A figure and its axes, an array [rows, columns]; width and height of one panel in inches."""
    made = Figure(figsize=(max(width * columns, 5.2), height * rows + 1.0))
    return made, made.subplots(rows, columns, squeeze=False, **shared)


def plain(text: str) -> str:
    """Escape `$`, so that matplotlib draws the text as it is."""
    return text.replace("$", r"\$")


def finish(made: Figure, document: Document[Any], title: str, notes: str, legend: list[Any] | None = None) -> Figure:
    """Add title and legend above the panels, and below them a caption with protocol, n and seeds."""
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
        f"{document.norm} radius {document.epsilon:.3g}",
        f"training seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds)) or 'unknown'}",
        f"evaluation seed {document.evaluation_seed}",
    ]
    caption = textwrap.fill(f"{'; '.join(facts)}. {notes}", int(made.get_figwidth() * 16))
    made.supxlabel(plain(caption), fontsize=8, x=0.01, ha="left", color="#333333")
    return made


def wide(values: Iterable[float]) -> bool:
    """Whether the finite values are all positive and span more than `WIDE` decades."""
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) > 10**WIDE


def log_where_wide(axes: Axes, values: Iterable[float], axis: str = "y") -> bool:
    """Set a log scale with ticks in plain numbers where the values are `wide`; True if set."""
    if not wide(values):
        return False
    which = getattr(axes, f"{axis}axis")
    getattr(axes, f"set_{axis}scale")("log")
    which.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    which.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    which.set_minor_formatter(ticker.NullFormatter())
    return True


def round_levels(low: float, high: float, count: int = 10) -> tuple[np.ndarray, bool]:
    """About `count` round numbers that cover [low, high], and whether their spacing is logarithmic."""
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


def figure_files(document: Document[Any]) -> dict[str, bytes]:
    """The document's figure as files: suffix -> bytes."""
    # "default" leaves the user's backend settings as they are; STYLE sets the two that change the content: layout
    # engine and hash salt.
    with matplotlib.style.context(["default", STYLE]):
        made = document.values[0].draw(document)
        files = {}
        for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
            buffer = io.BytesIO()
            made.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
            files[suffix] = buffer.getvalue()
    return files
