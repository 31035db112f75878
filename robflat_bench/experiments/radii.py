r"""Robust error against the radius of the threat, and the area under the curve:

    E(r) = mean_i 1{ f errs on x_i or on an image found within a radius r' <= r of the grid },
    area = 1/R \int_0^R E(r) dr   (trapezoidal rule over the grid 0 = r_0 < r_1 < ... < R)

What is found within a smaller radius lies in every larger ball too, so no curve falls. The area is the mean error over
radii up to R: it compares networks without the choice of one radius. Every attack starts anew, with steps of the size
that its own radius gives. A curve that stays below 1 far beyond the training radius is a sign of masked gradients.
Carlini et al., On evaluating adversarial robustness, 2019, arXiv 1902.06705 (error against radius as a check).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.core import Number, Params, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, Text, ValueWithError

with lazy_imports():
    import numpy as np
    from matplotlib.figure import Figure

    from robflat_bench.config.protocol import Attacked
    from robflat_bench.config.threat import ThreatModel, check_norm
    from robflat_bench.core.estimates import error_of_mean
    from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel, short_title
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.registry.components import resolve
    from robflat_bench.registry.validation import validate

Radius = Annotated[Number, Field(gt=0)]


class RadiiParams(Params):
    radii: tuple[Radius, ...] = Field(
        default=(),
        max_length=100,
        description="Radii in pixels of [0,1], in the protocol's norm; none: `points` equal steps up to `largest`.",
    )
    points: PositiveInt = Field(default=8, le=100, description="Number of radii, where none are named.")
    largest: Number = Field(default=2.0, gt=0, description="The largest radius, in units of the protocol's epsilon.")
    attack: str = Field(
        default="pgd(steps=20)", description="Attack at each radius; without a `step`, its steps grow with the radius."
    )
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")


class RobustRadii(Experiment):
    """The curve of one model.

    Attributes
    ----------
    attack
        Title of the attack.
    radii
        From 0 upwards, in pixels of [0,1].
    errors
        Robust error at each radius: the clean error at 0.
    area
        Mean robust error over radii up to the largest, with the standard error over examples.
    """

    name = "radii"
    summary = "Robust error against the radius of the threat, and the area under each curve."
    params = RadiiParams

    attack: Text
    radii: tuple[float, ...] = Field(min_length=2, max_length=101)
    errors: tuple[ValueWithError, ...]
    area: ValueWithError

    @model_validator(mode="after")
    def _one_error_a_radius(self) -> Self:
        if len(self.errors) != len(self.radii) or list(self.radii) != sorted({*self.radii}):
            raise ValueError("radii must increase, with one error each")
        return self

    @property
    def brief(self) -> dict[str, float | None]:
        return {"area": self.area.value, **{f"error at {radius:.3g}": e.value for radius, e in self.pairs}}

    @property
    def pairs(self) -> list[tuple[float, ValueWithError]]:
        """Radius and error of each point."""
        return list(zip(self.radii, self.errors, strict=True))

    @classmethod
    def read(cls, model: TrainedModel, params: RadiiParams, journal: StoredJournal) -> Self:
        """Attack the network at each radius as the protocol's evaluation would; each radius has its own section."""
        component = resolve(model.registry, "attack", params.attack)
        check_norm(component, model.threat.norm)
        network, n = model.load(), len(model.examples("test", params.examples))
        even = (params.largest * model.threat.epsilon * (k + 1) / params.points for k in range(params.points))
        chosen = sorted({*(params.radii or even)} - {0.0})  # the protocol's epsilon may be 0
        if not chosen:
            raise UsageError(f"{model.found.protocol.name} has epsilon 0; name radii, e.g. 'radii(radii=[0.1, 0.2])'")
        threats = [
            validate(ThreatModel, {"epsilon": radius, "norm": model.threat.norm}, f"radius {radius:g}")
            for radius in chosen
        ]
        plan = Plan((Attacked(attack=component.canonical, test=n),), ())
        wrong: list[np.ndarray] = []
        for threat in threats:
            fixed = model.fixed.model_copy(update={"threat": threat})
            session = replace(model.session, protocol=replace(model.session.protocol, fixed=fixed))
            subject = EvaluatedModel(network, model.found.name, model.found.epoch)
            _, outcomes = evaluate(session, plan, subject, journal.section(f"radius {threat.epsilon!r}"))
            path = f"{model.found.name}/test"
            wrong = wrong or [outcomes[f"{path}/clean/error"]]
            wrong.append(wrong[-1] | outcomes[f"{path}/{component.canonical}/error"])
        radii, errors = np.array([0.0, *chosen]), np.array(wrong, float)
        areas = (np.diff(radii)[:, None] * (errors[1:] + errors[:-1]) / 2).sum(0) / radii[-1]
        return cls(
            n=n,
            attack=short_title(component),
            radii=tuple(radii.tolist()),
            errors=tuple(_mean(row) for row in errors),
            area=_mean(areas),
        )

    @staticmethod
    def draw(document: Document[RobustRadii]) -> Figure:
        """A curve for each model; the protocol's radius is dashed."""
        made, ((axes,),) = fig.panels(1, width=6.4, height=3.6)
        for k, values in enumerate(document.values):
            fig.errorbars(axes, values.radii, values.errors, k, linestyle=fig.look(k)["linestyle"])
        axes.axvline(document.epsilon, color=fig.GREY, linewidth=0.9, linestyle=":")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{document.norm} radius (pixels of [0,1])")
        axes.set_ylabel("robust error; lower is better")
        legend = fig.entries(
            f"{name}\narea {values.area.drawn:.3f} ± {values.area.standard_error or 0.0:.3f}"
            for name, values in zip(document.names, document.values, strict=True)
        )
        notes = (
            f"Attack: {document.values[0].attack}. An image counts from the smallest radius at which it is "
            "misclassified. Area: mean robust error over radii up to the largest. Bars and ±: one standard error over "
            "images. Dotted: the protocol's radius."
        )
        return fig.finish(made, document, "Robust error against the radius", notes, legend)


def _mean(values: np.ndarray) -> ValueWithError:
    return ValueWithError(value=float(values.mean()), standard_error=error_of_mean(values), n=len(values))


INFO = RobustRadii
