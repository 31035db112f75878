r"""The loss over a plane of weights:  (a, b) -> mean_i \ell_i(w + a D + b E),  a, b in [-1,1].

D is random; E is random too, or adversarial (see `landscape`). Below the loss of each model stands its rise over the
loss at w, which is the flatness that the plane shows. All losses share one colour scale, and all rises another.
Li et al., NeurIPS 2018; Stutz et al., ICCV 2021, whose surfaces keep the adversarial examples of w (coupling `frozen`).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from robflat_bench.core import lazy_imports
from robflat_bench.experiments.document import Document, Experiment
from robflat_bench.experiments.landscape import LandscapeParams, MovedModel, Points, images_sentence, offsets

with lazy_imports():
    import numpy as np
    from matplotlib import colors
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.labels import hide_overprinted
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.records.journal import StoredJournal


COLUMNS = 3
"""Most models side by side."""
COLOURS = "cividis"


class SurfaceParams(LandscapeParams):
    """Parameters of `surface`; those not listed here are those of `landscape`."""

    coupling: Literal["clean", "frozen", "reattack"] = Field(
        default="frozen", description="How adversarial examples follow the weights."
    )
    points: Points = Field(default=25, description="Odd number of points per axis.")
    directions: Literal[1] = Field(default=1, description="Always 1: the first axis is one random direction.")
    second: Literal["random", "adversarial"] = Field(default="random", description="Direction of the second axis.")


class LossSurface(Experiment):
    """loss[i][j] is the mean loss (nats) at w + s[j] D + s[i] E."""

    name = "surface"
    summary = "Loss, and its rise over the loss at w, over the plane of two directions in weight space."
    params = SurfaceParams

    s: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]

    @property
    def at_w(self) -> float:
        """The loss of the model itself."""
        middle = len(self.s) // 2
        return self.loss[middle][middle]

    @property
    def brief(self) -> dict[str, float | None]:
        values = np.array(self.loss)
        ends = {"lowest (nats)": float(values.min()), "highest (nats)": float(values.max())}
        return {"loss at w (nats)": self.at_w, **ends, "highest rise (nats)": float(values.max()) - self.at_w}

    @classmethod
    def read(cls, model: TrainedModel, params: SurfaceParams, journal: StoredJournal) -> Self:
        """Every line of points is a unit of the journal."""
        moved = MovedModel(model, params, journal)
        first = moved.random(0)
        second = moved.random(1) if params.second == "random" else moved.adversarial(journal)
        s = offsets(params.points)

        def line(k: int) -> np.ndarray:
            return np.array([moved.losses((a, first), (s[k], second)).mean() for a in s])

        lines = [journal.unit(f"line-{k}", lambda k=k: {"loss": line(k)})["loss"] for k in range(len(s))]  # type: ignore[misc]
        return cls(n=len(moved.examples), s=s, loss=tuple(tuple(losses.tolist()) for losses in lines))

    @staticmethod
    def draw(document: Document[LossSurface]) -> Figure:
        """A column for each model: the loss above, its rise below; at most `COLUMNS` models side by side."""
        params: SurfaceParams = document.params
        count = len(document.values)
        columns = min(count, COLUMNS)
        made, panels = fig.panels(columns, 2 * -(-count // columns), width=3.6, height=2.9, sharex=True, sharey=True)
        made.set_layout_engine("compressed")
        surfaces = [np.array(values.loss) for values in document.values]
        rises = [surface - values.at_w for surface, values in zip(surfaces, document.values, strict=True)]
        labels: list[tuple[Axes, list[Text]]] = []
        for row, (shown, title) in enumerate(((surfaces, "loss"), (rises, "rise over the loss at w"))):
            grid = panels[row::2]
            for axes in grid.flat[count:]:
                axes.set_visible(False)
            here = list(grid.flat[:count])
            labels += _contours(made, here, list(grid.flat), shown, document.values, title)
            for axes, name in zip(here, document.names, strict=True):
                axes.set_title(f"{fig.plain(name)}: {'loss' if row == 0 else 'rise'}")
        for axes in panels[-1]:
            axes.set_xlabel("s along D (random)")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"s along E ({params.second})")
        random = f"{params.random:g} of each {params.normalisation}'s norm"
        second = random if params.second == "random" else f"{params.adversarial:g} of each layer's norm"
        lengths = f"Length of D: {random}, of E: {second}. Cross: the model itself."
        fig.finish(made, document, "Loss surface in weight space", f"{images_sentence(params)} {lengths}")
        made.draw_without_rendering()
        for axes, texts in labels:
            hide_overprinted(texts, axes)
        return made


def _contours(
    made: Figure,
    panels: list[Axes],
    around: list[Axes],
    surfaces: list[np.ndarray],
    models: list[LossSurface],
    title: str,
) -> list[tuple[Axes, list[Text]]]:
    """Filled contours at round levels that all panels share, and their colour bar; the labels of each panel.

    The scale is logarithmic where the values are positive and `wide`; the bar's label says which scale it is.
    """
    levels, logarithmic = fig.round_levels(min(z.min() for z in surfaces), max(z.max() for z in surfaces))
    norm = (colors.LogNorm if logarithmic else colors.Normalize)(levels[0], levels[-1])
    labels = []
    for axes, surface, model in zip(panels, surfaces, models, strict=True):
        filled = axes.contourf(model.s, model.s, surface, levels, norm=norm, cmap=COLOURS)
        ink = ["white" if norm(level) < 0.6 else "black" for level in levels]
        lines = axes.contour(model.s, model.s, surface, levels, colors=ink, linewidths=0.7)
        labels.append((axes, axes.clabel(lines, fmt="%g", fontsize=8, inline=False)))
        for text in labels[-1][1]:
            ground = filled.cmap(norm(float(text.get_text())))
            text.set_bbox({"facecolor": ground, "edgecolor": "none", "pad": 0.6})
        axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        axes.set_aspect("equal")
        axes.grid(visible=False)
    bar = made.colorbar(filled, ax=around, ticks=levels, format="%g", shrink=0.9)
    bar.set_label(f"{title} (nats), {'log' if logarithmic else 'linear'} scale")
    return labels


INFO = LossSurface
