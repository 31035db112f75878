r"""The spectrum of the Hessian: the density of its eigenvalues, both ends, trace and convexity ratio.

Eigenvalues have both signs and span many decades, so the axis is u = asinh(lambda / 2s) / log 10, which is close to
log10(lambda / s) beyond s. The density is one of u, smoothed there by Gaussians of standard deviation `width`.
Li et al., NeurIPS 2018 (ratio |lambda_min| / |lambda_max|); Ghorbani et al., ICML 2019; Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core import NoValue, Number, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, MeasuredValue
from robflat_bench.measures.curvature.hessian_lambda_max import HessianLambdaMaxParams
from robflat_bench.measures.curvature.hessian_trace import HessianTraceParams

with lazy_imports():
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.measures.curvature.spectral_density import smoothed
    from robflat_bench.numerics.weight_space import WeightSpace
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.registry.components import resolve, write

LINEAR = 1e-2
"""Scale s relative to the largest eigenvalue: below it the axis is nearly linear, and the density has no nodes."""


class SpectrumParams(HessianLambdaMaxParams):
    """Parameters of `spectrum`; those not listed here are those of `hessian-lambda-max`."""

    density: PositiveInt = Field(default=4, description="Probes of the density, each of `nodes` products.")
    probes: int = Field(default=50, ge=2, description="Probes of the trace.")
    width: Number = Field(
        default=0.05, gt=0, description="Standard deviation, in decades, of the Gaussians that smooth the density."
    )
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")


class HessianSpectrum(Experiment):
    """The spectrum of one model.

    Attributes
    ----------
    size
        Number of weights.
    lambda_max
        The largest eigenvalue; its details hold the smallest, their ratio and the residuals of Lanczos.
    nodes, shares
        Nodes and weights of the density, [probes][nodes].
    """

    name = "spectrum"
    summary = "Density of the Hessian's eigenvalues, with lambda max, trace and convexity ratio."
    params = SpectrumParams

    size: int
    lambda_max: MeasuredValue
    trace: MeasuredValue
    nodes: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def ends(self) -> list[float]:
        """The largest and the smallest eigenvalue, where there are any."""
        both = self.lambda_max.value, self.lambda_max.details.get("lambda_min")
        return [end for end in both if end is not None]

    @property
    def brief(self) -> dict[str, float | None]:
        details = self.lambda_max.details
        return {
            "lambda max": self.lambda_max.value,
            "residual": details.get("residual"),
            "lambda min": details.get("lambda_min"),
            "convexity ratio": details.get("convexity_ratio"),
            "trace": self.trace.value,
            "standard error": self.trace.standard_error,
        }

    @classmethod
    def read(cls, model: TrainedModel, params: SpectrumParams, journal: StoredJournal) -> Self:
        """Read the measures hessian-lambda-max and hessian-trace, which share adversarial images."""
        network, examples, found = model.load(), model.examples("test", params.examples), []
        measures = (("hessian-lambda-max", HessianLambdaMaxParams), ("hessian-trace", HessianTraceParams))
        for name, own in measures:
            text = write(name, {key: getattr(params, key) for key in own.model_fields})
            found.append(model.measure(resolve(model.registry, "measure", text), network, examples, journal))
        (top, density), (trace, _) = found
        return cls(
            n=len(examples),
            size=sum(layer.numel() for layer in WeightSpace(network, exclude=params.exclude).layers.values()),
            lambda_max=top,
            trace=trace,
            nodes=tuple(map(tuple, density.get("density_nodes", np.zeros((0, 0))).tolist())),
            shares=tuple(map(tuple, density.get("density_weights", np.zeros((0, 0))).tolist())),
        )

    @staticmethod
    def draw(document: Document[HessianSpectrum]) -> Figure:
        """All models in one panel, on the axis of the one with the largest eigenvalue."""
        params: SpectrumParams = document.params
        spectra = document.values
        ends = [end for spectrum in spectra for end in spectrum.ends if end]
        if not ends:
            raise NoValue("no model has an eigenvalue to draw; the JSON file holds the reasons")
        scale = 10.0 ** round(math.log10(LINEAR * max(map(abs, ends))))
        edge = [decades(end, scale) for end in (min(*ends, 0), max(*ends, 0))]
        grid = np.linspace(edge[0] - 6 * params.width, edge[1] + 6 * params.width, 1500)
        made, ((axes,),) = fig.panels(1, width=7.2, height=3.6)
        markers: dict[str, Any] = {"markersize": 7, "transform": axes.get_xaxis_transform(), "clip_on": False}
        for k, spectrum in enumerate(spectra):
            style = fig.look(k)
            if spectrum.nodes:
                nodes, shares = np.array(spectrum.nodes), np.array(spectrum.shares)
                density = smoothed(decades(nodes, scale), shares, grid, params.width)
                axes.plot(grid, density, color=style["color"], linestyle=style["linestyle"])
            for end in spectrum.ends:
                axes.plot(decades(end, scale), 0.03 + 0.045 * k, **{**style, **markers, "linestyle": ""})
        axes.set_yscale("log")
        axes.set_ylim(0.1 / max(spectrum.size for spectrum in spectra), 20)
        axes.set_ylabel("density (share of eigenvalues per decade)")
        axes.set_xlabel(r"eigenvalue $\lambda$ of the Hessian (nats), asinh scale")
        _ticks(axes, edge, scale)
        legend = fig.entries(
            f"{name}\n{_facts(spectrum)}" for name, spectrum in zip(document.names, spectra, strict=True)
        )
        size = max(spectrum.size for spectrum in spectra)
        images = {"clean": "clean images", "frozen": f"images found at w by PGD-{params.steps}"}[params.coupling]
        notes = (
            f"Loss of the {images}. Density: {params.density} probes of {params.nodes} Lanczos nodes, smoothed by "
            f"Gaussians of {params.width:g} decades; one of {size:,} eigenvalues has a share of {1 / size:.0e}. "
            "Markers: both ends, with residuals in the legend; ratio: |min| / max; "
            f"trace by {params.probes} probes, with its standard error over them."
        )
        return fig.finish(made, document, "Spectrum of the Hessian", notes, legend)


def decades(eigenvalues: Any, scale: float) -> Any:
    """The axis u = asinh(lambda / 2s) / log 10."""
    return np.arcsinh(np.asarray(eigenvalues) / (2 * scale)) / math.log(10)


def _facts(spectrum: HessianSpectrum) -> str:
    """Ends, ratio and trace with their errors, short enough for a legend."""
    ends, top, trace = spectrum.lambda_max.details, spectrum.lambda_max, spectrum.trace
    if top.value is None or trace.value is None:
        return top.reason or trace.reason
    ratio = ends["convexity_ratio"]
    error = (ends["residual_min"] + ratio * ends["residual"]) / abs(top.value) if top.value else 0.0
    return (
        f"max {top.value:.3g} ± {ends['residual']:.1g}, min {ends['lambda_min']:.3g} ± "
        f"{ends['residual_min']:.1g}\nratio {ratio:.2g} ± {error:.1g}, "
        f"trace {trace.value:.3g} ± {trace.standard_error or 0:.2g}"
    )


def _ticks(axes: Axes, edge: list[float], scale: float) -> None:
    """Ticks at 0 and, within the edges, at 1 and 3 times every power of ten from the scale on, in both signs."""
    powers = [scale * step * 10.0**k for k in range(12) for step in (1, 3)]
    marks = sorted([0.0, *powers, *(-power for power in powers)])
    marks = [mark for mark in marks if edge[0] - 0.3 <= decades(mark, scale) <= edge[1] + 0.3]
    axes.set_xticks([decades(mark, scale) for mark in marks], [f"{mark:.6g}" for mark in marks])


INFO = HessianSpectrum
