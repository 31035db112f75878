"""The README's picture: robust generalization gap against average-case flatness, from the committed board.

    uv run python docs/figures/gap_against_flatness.py

reads leaderboard/board.json and writes gap_against_flatness.svg beside this file: the same bytes for the same board and
matplotlib. The plotted numbers are also in the SVG's description, where a test compares them with the board.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from robflat_bench.experiments.figures import COLOURS, MARKERS, STYLE

SVG = Path(__file__).with_suffix(".svg")
BOARD = Path(__file__).parents[2] / "leaderboard" / "board.json"
PROTOCOL = "cifar10-mini"
GAP, FLATNESS, ERROR = "gap_robust_loss", "measure:average-case(", "robust_error"
FAMILIES = {
    "AT and its variants": ("at",),
    "TRADES": ("trades",),
    "MART": ("mart",),
    "one step": ("fgsm-rs", "n-fgsm"),
}
"""Title -> methods, with whatever modifiers. Any other method is of the family `OTHERS`."""
OTHERS = "another method"
NAMED = {
    "at": (5, -10),
    "trades(beta=9.0)": (7, -6),
    "fgsm-rs": (-40, 3),
    "at [weight_decay=0.002]": (-118, 3),
    "at [weight_decay=0.005]": (-118, 3),
    "at+awp": (7, 0),
    "at+idbh": (7, -4),
    "at+autoaugment": (7, -4),
    "at+label-noise(tau=0.5)": (7, -9),
    "at+unlabeled(ratio=0.5)": (7, -10),
    "at [schedule=one-cycle]": (-122, 3),
    "at [schedule=constant]": (-122, 3),
    "standard": (-50, 3),
}
"""Rows that carry their name, and where it stands, in points from their marker."""


class Plotted(NamedTuple):
    """What the picture shows: the board, the flatness measure's name there, its rank correlation with the gap."""

    board: dict[str, Any]
    measure: str
    spearman: dict[str, Any]

    def points(self) -> dict[str, dict[str, list[float]]]:
        """Row -> quantity -> mean over seeds and its 95 % interval, at the last checkpoint."""
        names = {"flatness": self.measure, "gap": GAP}
        return {row["label"]: {name: _value(row, quantity) for name, quantity in names.items()} for row in self.rows}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.board["rows"]  # type: ignore[no-any-return]

    def count(self, quantity: str) -> int:
        """Test images behind a quantity."""
        return next(found["n"] for found in self.board["quantities"] if found["id"] == quantity)  # type: ignore[no-any-return]


def _value(row: dict[str, Any], quantity: str) -> list[float]:
    value = row["values"]["last"][quantity]
    return [value["mean"], value["low"], value["high"]]


def read(board: Path = BOARD) -> Plotted:
    """The board of `PROTOCOL`; the measure is the protocol's average case."""
    found = next(found for found in json.loads(board.read_text("utf-8"))["boards"] if found["id"] == PROTOCOL)
    measure = next(q["id"] for q in found["quantities"] if q["protocol"] and q["id"].startswith(FLATNESS))
    correlation = next(
        c for c in found["correlations"] if (c["quantity"], c["target"], c["checkpoint"]) == (measure, GAP, "last")
    )
    return Plotted(found, measure, next(s for s in correlation["statistics"] if s["name"] == "spearman"))


def caption(plotted: Plotted) -> str:
    """What a reader needs to judge the picture."""
    seeds = sorted({row["values"]["last"][GAP]["seeds"] for row in plotted.rows})
    title = next(q["title"] for q in plotted.board["quantities"] if q["id"] == plotted.measure)
    spearman = plotted.spearman
    return (
        f"{PROTOCOL} {plotted.board['version']}, last checkpoint: {len(plotted.rows)} methods and variants,"
        f" {' to '.join(map(str, seeds))} training seeds each. Bars: 95 % intervals.\n"
        f"Gap over {plotted.count(GAP)} test images; {title}, over {plotted.count(plotted.measure)}.\n"
        f"Spearman's rank correlation {spearman['value']:.2f}, 95 % interval"
        f" [{spearman['low']:.2f}, {spearman['high']:.2f}]. Both axes are logarithmic."
    )


def family(row: dict[str, Any]) -> str:
    """The title of a row's family."""
    base = row["method"].partition("(")[0].split("+")[0]
    return next((title for title, methods in FAMILIES.items() if base in methods), OTHERS)


def figure(plotted: Plotted) -> Figure:
    """One point a row, one colour and marker a family of methods."""
    made = Figure(figsize=(7.2, 4.8))
    axes = made.subplots()
    points = plotted.points()
    for k, title in enumerate((*FAMILIES, OTHERS)):
        rows = [points[row["label"]] for row in plotted.rows if family(row) == title]
        if not rows:
            continue
        x, y = ([row[name][0] for row in rows] for name in ("flatness", "gap"))
        bars = [
            [[row[name][0] - row[name][1] for row in rows], [row[name][2] - row[name][0] for row in rows]]
            for name in ("flatness", "gap")
        ]
        style = {"fmt": MARKERS[k], "color": COLOURS[k], "elinewidth": 0.6, "capsize": 0, "label": title, "zorder": 3}
        _, _, lines = axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], **style)
        for line in lines:
            line.set_alpha(0.35)
    for label, offset in NAMED.items():
        at = (points[label]["flatness"][0], points[label]["gap"][0])
        axes.annotate(label, at, offset, textcoords="offset points", fontsize=8, color="#333333")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("average-case flatness of the robust loss (nats; lower is flatter)")
    axes.set_ylabel("robust generalization gap:\nrobust loss, test minus train (nats)")
    axes.legend(loc="lower right")
    made.supxlabel(caption(plotted), fontsize=8, x=0.01, ha="left", color="#333333")
    return made


def drawn(plotted: Plotted) -> bytes:
    """The picture as SVG."""
    with matplotlib.style.context(["default", STYLE]):
        buffer = io.BytesIO()
        description = json.dumps({"caption": caption(plotted), "points": plotted.points()})
        metadata = {"Date": None, "Creator": None, "Title": "Gap against flatness", "Description": description}
        figure(plotted).savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue()


if __name__ == "__main__":
    SVG.write_bytes(drawn(read()))
