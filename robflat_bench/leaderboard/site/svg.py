"""Scales, axes, points and labels as SVG text. Colours come from the page's style sheet, so figures follow its theme.

A figure is `WIDTH` units wide, which can be read on a phone. `figures.py` decides what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from robflat_bench.leaderboard.site.words import format_count, format_value

WIDTH = 460
Box = tuple[float, float, float, float]
GLYPH = 6.6
"""Approximate width of a letter of a label."""
BREAK = 26.0
"""Distance from the end of an axis to the place of the values beyond its break."""


@dataclass(frozen=True)
class Scale:
    """Values [low, high] -> positions [start, end]. unit: as in `words.format_value`. beyond: values from here on are
    drawn at one place behind a break of the axis."""

    low: float
    high: float
    start: float
    end: float
    unit: str = ""
    log: bool = False
    beyond: float = math.inf

    def __call__(self, value: float) -> float:
        """The position of a value. Values from `beyond` on are at the break."""
        if value >= self.beyond:
            return self.end + (BREAK if self.end > self.start else -BREAK)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, part) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """About six round values in [low, high]."""
        decades_within = math.log10(self.high / self.low) if self.log else 0.0
        if decades_within > 0.7:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if decades_within > 3 else (1, 3) if decades_within > 1.5 else (1, 2, 5)
            return [step * 10.0**d for d in decades for step in steps if self.low <= step * 10.0**d <= self.high]
        wide = self.high - self.low
        size = 10.0 ** math.floor(math.log10(wide / 6))
        step = min((size * m for m in (1, 2, 5, 10)), key=lambda step: abs(wide / step - 6))
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def tick_label(self, value: float) -> str:
        """A tick with as many decimals as it needs."""
        if self.log:
            return format_count(value)
        shown = 100 * value if self.unit == "fraction" else value
        return f"{round(shown, 10):g}".replace("-", "\u2212")


def scale(
    values: Iterable[float], start: float, end: float, unit: str = "", log: bool = False, floor: float | None = None
) -> Scale:
    """A scale that shows all values with a margin; it does not reach below `floor` unless a value does."""
    found = [value for value in values if math.isfinite(value)] or [1.0, 2.0]
    low, high = min(found), max(found)
    if log:
        return Scale(low / 1.3, high * 1.3, start, end, unit, log)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 0.5
    if floor is not None and low >= floor:
        return Scale(max(floor, low - room), high + room, start, end, unit)
    return Scale(low - room, high + room, start, end, unit)


def cut(values: Sequence[float]) -> float:
    """The least value behind the break of an axis: at most a quarter of the values, which lie further from the others
    than these do from each other; or the highest of ten or more, if it lies further away than half of the others'
    range. Infinity where there is no such value."""
    ordered = sorted(values)
    for k in range(max(3, math.ceil(0.75 * len(ordered))), len(ordered)):
        if ordered[k] - ordered[k - 1] > ordered[k - 1] - ordered[0] > 0:
            return ordered[k]
    if len(ordered) >= 10 and ordered[-1] - ordered[-2] > (ordered[-2] - ordered[0]) / 2 > 0:
        return ordered[-1]
    return math.inf


@dataclass
class Drawing:
    """Shapes in drawing order.

    Attributes
    ----------
    name : slug, unique on its page.
    title, desc : text alternative of the picture.
    taken : boxes (left, top, right, bottom) that labels must not cover.
    linked : it holds links, so it is a group of them and not one image.

    Every text from outside is escaped here; `name` and the classes are ours.
    """

    name: str
    title: str
    desc: str
    height: float
    width: float = WIDTH
    parts: list[str] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)
    linked: bool = False

    def line(self, points: Sequence[tuple[float, float]], look: str) -> None:
        self.lines([points], look)

    def lines(self, strokes: Sequence[Sequence[tuple[float, float]]], look: str) -> None:
        """Several lines as one shape; none where there is no stroke."""
        steps = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) for points in strokes)
        self.parts += [f'<path class="{look}" d="{steps}"/>'] if steps else []

    def text(self, x: float, y: float, content: str, look: str = "", turned: bool = False) -> None:
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{look}"{turn}>{escape(content)}</text>')

    def mark(self, x: float, y: float, look: str, hint: str, shape: str = "circle") -> None:
        """One datum, with a hint for the pointer if there is one. Shapes: circle, ring, square, diamond, triangle."""
        tag, form = {
            "circle": ("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="4.5"'),
            "ring": ("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="8"'),
            "square": ("rect", f'x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"'),
            "diamond": ("path", f'd="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5-5.5z"'),
            "triangle": ("path", f'd="M{x:.1f} {y - 5.5:.1f}l5.5 9.5h-11z"'),
        }[shape]
        end = f"><title>{escape(hint)}</title></{tag}>" if hint else "/>"
        self.parts.append(f'<{tag} {form} class="{look}"{end}')
        self.taken.append((x - 5, y - 5, x + 5, y + 5))

    @contextmanager
    def link(self, target: str, name: str) -> Iterator[None]:
        """What is drawn inside is a link with a name of its own."""
        self.parts.append(f'<a class="datum" href="{escape(target)}"><title>{escape(name)}</title>')
        self.linked = True
        yield
        self.parts.append("</a>")

    def area(self, points: Sequence[tuple[float, float]], look: str) -> None:
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{look}" d="M{steps}z"/>')

    def label(self, x: float, y: float, content: str, within: Box) -> None:
        """The name of a datum beside it; left out where there is no room inside the box `within`."""
        content = short(content)
        wide = GLYPH * len(content)
        for dx, dy, anchor in (
            (9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 18, "middle"),
            (7, -7, "start"), (-7, -7, "end"), (7, 15, "start"), (-7, 15, "end"),
        ):  # fmt: skip
            left = x + dx - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
            box = (left, y + dy - 10, left + wide, y + dy + 3)
            inside = box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]
            if inside and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                return self.text(x + dx, y + dy, content, f"label {anchor}")
        return None

    def frame(self, x: Scale, y: Scale, across: str, up: str) -> None:
        """Grid lines, tick labels and the axes' titles."""
        low, high, left, right = max(y.start, y.end), min(y.start, y.end), x.start, x.end
        for tick in y.ticks:
            self.line([(left, y(tick)), (right, y(tick))], "grid")
            self.text(left - 7, y(tick) + 4, y.tick_label(tick), "tick end")
        for tick in x.ticks:
            self.line([(x(tick), low), (x(tick), low + 4)], "axis")
            self.text(x(tick), low + 18, x.tick_label(tick), "tick middle")
        self.line([(left, low), (right, low)], "axis")
        if x.beyond < math.inf:
            self._break(right, low, 1, 0)
        if y.beyond < math.inf:
            self._break(left, high, 0, -1)
        self.text((left + right) / 2, low + 37, across, "title middle")
        self.text(left - 42, (low + high) / 2, up, "title middle", turned=True)

    def _break(self, x: float, y: float, along: int, up: int) -> None:
        """Two strokes across an axis at (x, y), and the rest of the axis behind them."""
        for k in (5, 10):
            self.line([(x + k * along - 4 * abs(up) - 2 * along, y + k * up + 4 * along + 2 * up),
                       (x + k * along + 4 * abs(up) + 2 * along, y + k * up - 4 * along - 2 * up)], "axis")  # fmt: skip
        self.line([(x + 14 * along, y + 14 * up), (x + (BREAK + 12) * along, y + (BREAK + 12) * up)], "axis")

    @property
    def svg(self) -> Markup:
        title, desc = escape(self.title), escape(self.desc)
        return Markup(
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="{"group" if self.linked else "img"}" '
            f'aria-labelledby="{self.name}-title {self.name}-desc"><title id="{self.name}-title">{title}</title>'
            f'<desc id="{self.name}-desc">{desc}</desc>{"".join(self.parts)}</svg>'
        )


def short(text: str) -> str:
    """A name for a picture: from 33 characters on, its middle is left out, because ends tell variants apart."""
    return text if len(text) <= 32 else f"{text[:16]}\u2026{text[-15:]}"


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def hint(name: str, *values: tuple[str, float, str]) -> str:
    """`trades: robust error 33.6 %, ...`: the tooltip of a datum."""
    percent = {"fraction": " %"}
    parts = [f"{title} {format_value(value, unit)}{percent.get(unit, '')}" for title, value, unit in values]
    return f"{name}: {', '.join(parts)}"
