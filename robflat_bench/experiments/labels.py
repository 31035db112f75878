"""Names beside points, and labels of contours, that do not overprint each other. Positions follow the final layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from robflat_bench.experiments.figures import GREY, plain

SIZE = 8
"""Font size of a name, in points."""
CLEAR, GAP = 3.0, 6.0
"""Half the side of the square around a drawn point that stays free of names, and the distance of the nearest name; both
in points."""
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Sides of a point, right and up, on which its name is tried; to the right first."""
RINGS = 30
"""Distances at which it is tried, each one `GAP` further away."""

Point = tuple[float, float]


def name_points(
    axes: Axes, points: Sequence[Point], names: Sequence[str], colours: Sequence[str], avoid: Sequence[Point]
) -> None:
    """Write each name beside its point, clear of all points, of other names and of their lines.

    A name further away than `GAP` has a thin line to its point. A name without a free place inside the axes is left
    out. The layout must be final.

    Parameters
    ----------
    points, avoid
        Points to name, and other points that no name may cover; finite, in the units of the axes.
    """
    unit = axes.figure.dpi / 72
    taken = [_square(place, CLEAR * unit) for place in axes.transData.transform([*points, *avoid])]
    written: list[Bbox] = []
    for point, name, colour in zip(points, names, colours, strict=True):
        place, size = axes.transData.transform(point), _size(axes, name)
        for ring, shift in _shifts(*size, unit):
            x, y = place + shift
            box = Bbox.from_bounds(x, y, *size)
            way = _way(place, box, unit) if ring else []
            crossed = any(each.contains(*dot) for each in written for dot in way)
            if _inside(box, axes) and not box.count_overlaps(taken) and not crossed:
                taken += [box, *(_square(dot, unit) for dot in way)]
                written.append(box)
                _write(axes, point, name, colour, shift / unit, leader=ring > 0)
                break


def hide_overprinted(texts: Iterable[Text], axes: Axes) -> None:
    """Hide each text that overlaps an earlier one or reaches beyond the axes; the layout must be final."""
    kept: list[Bbox] = []
    for text in texts:
        box = text.get_window_extent()
        if _inside(box, axes) and not box.count_overlaps(kept):
            kept.append(box)
        else:
            text.set_visible(False)


def _write(axes: Axes, point: Point, name: str, colour: str, shift: np.ndarray, leader: bool) -> None:
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": CLEAR}
    text = axes.annotate(
        plain(name),
        point,
        (shift[0], shift[1]),
        textcoords="offset points",
        fontsize=SIZE,
        color=colour,
        arrowprops=line if leader else None,
    )
    text.set_in_layout(False)


def _shifts(width: float, height: float, unit: float) -> Iterator[tuple[int, np.ndarray]]:
    """Ring, and where the lower left corner of a name lies from its point, in pixels; nearest first."""
    for ring in range(RINGS):
        for side in SIDES:
            towards = np.array(side)
            distance = GAP * (ring + 1) * unit / math.hypot(*side)
            yield ring, distance * towards + np.array([width, height]) * (towards - 1) / 2


def _way(place: np.ndarray, box: Bbox, unit: float) -> list[np.ndarray]:
    """Points of the line from a marker to a name, at most 2 points apart, without those inside the name."""
    centre = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
    count = 2 + int(math.dist(place, centre) / (2 * unit))
    dots = [place + (centre - place) * share for share in np.linspace(0, 1, count)]
    return [dot for dot in dots if not box.contains(*dot)]


def _square(place: np.ndarray, half: float) -> Bbox:
    return Bbox([place - half, place + half])


def _size(axes: Axes, name: str) -> tuple[float, float]:
    """Width and height of a name, in pixels."""
    text = axes.text(0, 0, plain(name), fontsize=SIZE)
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _inside(box: Bbox, axes: Axes) -> bool:
    return all(axes.bbox.contains(*corner) for corner in box.corners())
