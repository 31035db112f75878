r"""The loss over a plane of weights:  (a, b) -> mean_i \ell_i(w + a D + b E),  a, b in [-1,1].

D is random, E random too or adversarial (see `directions`). One panel for each model, one colour scale for all.
Li et al., NeurIPS 2018; Stutz et al., ICCV 2021, whose surfaces keep the adversarial examples of w (coupling `frozen`).
"""

from __future__ import annotations

import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure

from robflat_bench.experiments import SurfaceParams, choose
from robflat_bench.experiments.directions import COUPLINGS, Landscape, offsets
from robflat_bench.experiments.document import Document, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, plain, round_levels
from robflat_bench.experiments.subject import Subject
from robflat_bench.results.store import StoredJournal


class Row(Base):
    """loss[i][j]: mean loss (nats) at w + s[j] D + s[i] E."""

    s: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]

    @property
    def brief(self) -> dict[str, float | None]:
        middle = len(self.s) // 2
        values = [value for line in self.loss for value in line]
        return {"loss at w (nats)": self.loss[middle][middle], "lowest": min(values), "highest": max(values)}


def read(subject: Subject, params: SurfaceParams, journal: StoredJournal) -> Row:
    """Every line of points is a unit of the journal."""
    landscape = Landscape(subject, params, journal)
    first = landscape.random(0)
    second = landscape.random(1) if params.second == "random" else landscape.adversarial(journal)
    there = offsets(params.points)

    def line(b: float) -> dict[str, np.ndarray]:
        return {"loss": np.array([landscape.losses((a, first), (b, second)).mean() for a in there])}

    lines = [journal.unit(f"line-{k}", lambda b=b: line(b))["loss"] for k, b in enumerate(there)]  # type: ignore[misc]
    return Row(n=len(landscape.examples), s=there, loss=tuple(tuple(line.tolist()) for line in lines))


def draw(document: Document[Row]) -> Figure:
    """Filled contours at round levels, shared by all panels."""
    params = choose(document.experiment).params
    assert isinstance(params, SurfaceParams)
    surfaces = [np.array(reading.values.loss) for reading in document.readings]
    levels, logarithmic = round_levels(min(z.min() for z in surfaces), max(z.max() for z in surfaces))
    norm = (colors.LogNorm if logarithmic else colors.Normalize)(levels[0], levels[-1])
    columns = min(len(surfaces), 3)
    made, panels = figure(columns, -(-len(surfaces) // columns), width=3.6, height=2.9, sharex=True, sharey=True)
    made.set_layout_engine("compressed")
    for axes in panels.flat[len(surfaces) :]:
        axes.set_visible(False)
    called = names([reading.model for reading in document.readings])
    for axes, surface, reading, name in zip(panels.flat, surfaces, document.readings, called, strict=False):
        s = reading.values.s
        filled = axes.contourf(s, s, surface, levels, norm=norm, cmap="cividis")
        ink = ["white" if norm(level) < 0.6 else "black" for level in levels]
        lines = axes.contour(s, s, surface, levels, colors=ink, linewidths=0.7)
        axes.clabel(lines, fmt="%g", fontsize=8)
        axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        axes.set_title(plain(name))
        axes.set_aspect("equal")
        axes.grid(visible=False)
    for axes in panels[-1]:
        axes.set_xlabel("s along D (random)")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"s along E ({params.second})")
    random = f"{params.random:g} of each {params.normalisation}'s norm"
    second = random if params.second == "random" else f"{params.adversarial:g} of each layer's norm"
    notes = (
        f"{COUPLINGS[params.coupling].caption(params)} Length of D: {random}, of E: {second}. Cross: the model itself."
    )
    bar = made.colorbar(filled, ax=panels, ticks=levels, format="%g", shrink=0.9)
    bar.set_label("loss (nats)")
    return finish(made, document, "Loss surface in weight space", notes)
