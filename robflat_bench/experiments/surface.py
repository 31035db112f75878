r"""The loss over a plane of weights:  (a, b) -> mean_i \ell_i(w + a D + b E),  a, b in [-1,1].

D is random; E is random too, or adversarial (see `landscape`). One panel for each model, one colour scale for all.
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
    from matplotlib.figure import Figure

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.records.journal import StoredJournal


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
    summary = "Loss over the plane of two directions in weight space, a panel for each model."
    params = SurfaceParams

    s: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]

    @property
    def brief(self) -> dict[str, float | None]:
        middle, values = len(self.s) // 2, np.array(self.loss)
        at_w = self.loss[middle][middle]
        return {"loss at w (nats)": at_w, "lowest (nats)": float(values.min()), "highest (nats)": float(values.max())}

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
        """Filled contours at round levels, shared by all panels."""
        params: SurfaceParams = document.params
        surfaces = [np.array(values.loss) for values in document.values]
        levels, logarithmic = fig.round_levels(min(z.min() for z in surfaces), max(z.max() for z in surfaces))
        norm = (colors.LogNorm if logarithmic else colors.Normalize)(levels[0], levels[-1])
        ink = ["white" if norm(level) < 0.6 else "black" for level in levels]
        columns = min(len(surfaces), 3)
        made, panels = fig.panels(
            columns, -(-len(surfaces) // columns), width=3.6, height=2.9, sharex=True, sharey=True
        )
        made.set_layout_engine("compressed")
        for axes in panels.flat[len(surfaces) :]:
            axes.set_visible(False)
        for axes, surface, values, name in zip(panels.flat, surfaces, document.values, document.names, strict=False):
            s = values.s
            filled = axes.contourf(s, s, surface, levels, norm=norm, cmap="cividis")
            lines = axes.contour(s, s, surface, levels, colors=ink, linewidths=0.7)
            axes.clabel(lines, fmt="%g", fontsize=8)
            axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
            axes.set_title(fig.plain(name))
            axes.set_aspect("equal")
            axes.grid(visible=False)
        for axes in panels[-1]:
            axes.set_xlabel("s along D (random)")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"s along E ({params.second})")
        random = f"{params.random:g} of each {params.normalisation}'s norm"
        second = random if params.second == "random" else f"{params.adversarial:g} of each layer's norm"
        lengths = f"Length of D: {random}, of E: {second}. Cross: the model itself."
        bar = made.colorbar(filled, ax=panels, ticks=levels, format="%g", shrink=0.9)
        bar.set_label("loss (nats)")
        return fig.finish(made, document, "Loss surface in weight space", f"{images_sentence(params)} {lengths}")


INFO = LossSurface
