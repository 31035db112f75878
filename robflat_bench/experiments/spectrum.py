r"""The spectrum of the Hessian: the density of its eigenvalues, both ends, trace and convexity ratio.

Eigenvalues lie in both signs and over many decades, so the axis is u = asinh(lambda / 2s) / log 10, which is close to
log10(lambda / s) beyond s; the density is one of u, smoothed there by Gaussians of standard deviation `width`.
Li et al., NeurIPS 2018 (ratio |lambda_min| / |lambda_max|); Ghorbani et al., ICML 2019; Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robflat_bench.experiments import SpectrumParams, choose
from robflat_bench.experiments.document import Document, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, look, plain
from robflat_bench.experiments.measured import Found, measured
from robflat_bench.experiments.subject import Subject
from robflat_bench.measures.curvature.hessian_lambda_max import HessianLambdaMaxParams
from robflat_bench.measures.curvature.hessian_trace import HessianTraceParams
from robflat_bench.measures.curvature.spectral_density import smoothed
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.registry.components import resolve, write
from robflat_bench.results.store import StoredJournal

LINEAR = 1e-2
"""How far the axis is about linear around 0, relative to the largest eigenvalue: nodes lie no closer to it."""


class Row(Base):
    """lambda_max: its details hold the other end, the ratio and the residuals of Lanczos. nodes, shares: of each probe
    of the density [probes][nodes]. size: number of weights."""

    size: int
    lambda_max: Found
    trace: Found
    nodes: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def brief(self) -> dict[str, float | None]:
        ends = self.lambda_max.details
        return {
            "lambda max": self.lambda_max.value,
            "residual": ends.get("residual"),
            "lambda min": ends.get("lambda_min"),
            "convexity ratio": ends.get("convexity_ratio"),
            "trace": self.trace.value,
            "standard error": self.trace.standard_error,
        }


def read(subject: Subject, params: SpectrumParams, journal: StoredJournal) -> Row:
    """By the measures hessian-lambda-max and hessian-trace, which share the images they find."""
    model, examples, found = subject.load(), subject.examples("test", params.examples), []
    for name, model_of in (("hessian-lambda-max", HessianLambdaMaxParams), ("hessian-trace", HessianTraceParams)):
        own = {key: getattr(params, key) for key in model_of.model_fields}
        measure = resolve(subject.registry, "measure", write(name, own))
        found.append(measured(subject, measure, model, examples, journal))
    (top, density), (trace, _) = found
    return Row(
        n=len(examples),
        size=sum(layer.numel() for layer in WeightSpace(model).layers.values()),
        lambda_max=top,
        trace=trace,
        nodes=tuple(map(tuple, density.get("density_nodes", np.zeros((0, 0))).tolist())),
        shares=tuple(map(tuple, density.get("density_weights", np.zeros((0, 0))).tolist())),
    )


def draw(document: Document[Row]) -> Figure:
    """All models in one panel, on the axis of the one with the largest eigenvalue."""
    params = choose(document.experiment).params
    assert isinstance(params, SpectrumParams)
    rows = [reading.values for reading in document.readings]
    ends = [e for row in rows for e in (row.lambda_max.value, row.lambda_max.details.get("lambda_min")) if e]
    if not ends:
        raise ValueError("no model has an eigenvalue to show")
    scale = 10.0 ** round(math.log10(LINEAR * max(map(abs, ends))))
    edge = [decades(end, scale) for end in (min(*ends, 0), max(*ends, 0))]
    grid = np.linspace(edge[0] - 6 * params.width, edge[1] + 6 * params.width, 1500)
    made, panels = figure(1, width=7.2, height=3.6)
    axes, legend = panels[0][0], []
    called = names([reading.model for reading in document.readings])
    for k, (name, row) in enumerate(zip(called, rows, strict=True)):
        color, marker, dashes = look(k)
        if row.nodes:
            nodes, shares = np.array(row.nodes), np.array(row.shares)
            density = smoothed(decades(nodes, scale), shares, grid, params.width)
            axes.plot(grid, density, color=color, linestyle=dashes)
        for end in (row.lambda_max.value, row.lambda_max.details.get("lambda_min")):
            if end is not None:
                axes.plot(
                    decades(end, scale),
                    0.03 + 0.045 * k,
                    marker=marker,
                    color=color,
                    markersize=7,
                    transform=axes.get_xaxis_transform(),
                    linestyle="",
                    clip_on=False,
                )
        legend.append(
            Line2D([], [], color=color, marker=marker, linestyle=dashes, label=f"{plain(name)}\n{facts(row)}")
        )
    axes.set_yscale("log")
    axes.set_ylim(0.1 / max(row.size for row in rows), 20)
    axes.set_ylabel("density (share of eigenvalues per decade)")
    axes.set_xlabel(r"eigenvalue $\lambda$ of the Hessian (nats), asinh scale")
    ticks(axes, edge, scale)
    sizes = sorted({row.size for row in rows})
    images = {"clean": "clean images", "frozen": f"images found at w by PGD-{params.steps}"}[params.coupling]
    notes = (
        f"Loss of the {images}. Density: {params.density} probes of {params.nodes} Lanczos nodes, smoothed by "
        f"Gaussians of {params.width:g} decades; one of {sizes[-1]:,} eigenvalues has a share of "
        f"{1 / sizes[-1]:.0e}. Markers: both ends, with residuals in the legend; ratio: |min| / max; "
        f"trace by {params.probes} probes, with its standard error over them."
    )
    return finish(made, document, "Spectrum of the Hessian", notes, legend)


def decades(eigenvalues: Any, scale: float) -> Any:
    """u of the docstring."""
    return np.arcsinh(np.asarray(eigenvalues) / (2 * scale)) / math.log(10)


def facts(row: Row) -> str:
    """Ends, ratio and trace, each with its error, as a legend has room for them."""
    ends, top, trace = row.lambda_max.details, row.lambda_max, row.trace
    if top.value is None or trace.value is None:
        return top.reason or trace.reason
    ratio = ends["convexity_ratio"]
    error = (ends["residual_min"] + ratio * ends["residual"]) / abs(top.value) if top.value else 0.0
    return (
        f"max {top.value:.3g} ± {ends['residual']:.1g}, min {ends['lambda_min']:.3g} ± "
        f"{ends['residual_min']:.1g}\nratio {ratio:.2g} ± {error:.1g}, "
        f"trace {trace.value:.3g} ± {trace.standard_error or 0:.2g}"
    )


def ticks(axes: Axes, edge: list[float], scale: float) -> None:
    """0 and 1 and 3 times every power of ten from the scale on, in both signs, that lies within the edges."""
    powers = [scale * step * 10.0**k for k in range(12) for step in (1, 3)]
    marks = [0.0, *powers, *(-power for power in powers)]
    marks = sorted(mark for mark in marks if edge[0] - 0.3 <= decades(mark, scale) <= edge[1] + 0.3)
    axes.set_xticks([decades(mark, scale) for mark in marks], [f"{mark:.6g}" for mark in marks])
