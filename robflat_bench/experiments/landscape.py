r"""The loss along directions in weight space,  s -> mean_i \ell_i(w + s D).

Random directions give a mean curve over s in [-1,1]; one adversarial direction gives a curve over s in [0,1]. A layer
is one tensor of the `WeightSpace`; the length a is relative.

    random, per layer    D_l = a ||w_l|| z_l / ||z_l||,  z ~ N(0, I)              Stutz et al., ICCV 2021
    random, per filter   D_f = a ||w_f|| z_f / ||z_f||                            Li et al., NeurIPS 2018
    adversarial          D_l = a ||w_l|| \nu_l / ||\nu_l||,  \nu the end of an ascent of the mean loss at fixed images:
                         \nu_l <- \Pi_{a/2} ( \nu_l + a ||w_l|| g_l / ||g_l|| ),  g = d L(w + \nu) / dw

Draws are keyed by the tensor's name, so models of one architecture share z. The ascent keeps the adversarial examples
found at w; along a direction, the coupling says whether the attack is repeated at every s. Bands are one standard error
of the rise over s = 0: over directions and examples, crossed, or over examples alone where there is one direction.

Unlike the released code of Stutz et al. (Q10): norms are l2 (there: the largest entry), all of the protocol's examples
are used, and an adversarial curve is one direction, not a mean that is called worst.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from robflat_bench.core import Examples, Journal, Number, Strict, lazy_imports
from robflat_bench.experiments.document import Document, Experiment
from robflat_bench.measures.shared import OracleParams

with lazy_imports():
    import numpy as np
    from matplotlib.figure import Figure
    from torch import nn

    from robflat_bench.core.estimates import crossed_errors, error_of_mean
    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.numerics.weight_space import Ball, Direction, WeightSpace, norm
    from robflat_bench.records.journal import StoredJournal


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that the middle point is the model itself")
    return value


Points = Annotated[int, Field(ge=3, le=999), AfterValidator(_odd)]


class LandscapeParams(OracleParams):
    coupling: Literal["clean", "frozen", "reattack"] = Field(
        default="reattack", description="How adversarial examples follow the weights."
    )
    steps: PositiveInt = Field(default=10, description="Steps of the attack.")
    points: Points = Field(default=51, description="Odd number of points over s in [-1,1]; adversarial: those s >= 0.")
    directions: int = Field(default=10, ge=2, description="Number of random directions.")
    normalisation: Literal["layer", "filter"] = Field(
        default="layer", description="Parts of a random direction that each have a norm relative to their weights."
    )
    random: Number = Field(default=0.5, gt=0, description="Norm of a random direction, relative to the weights' norm.")
    adversarial: Number = Field(
        default=0.01, gt=0, description="Norm of the adversarial direction, relative to each layer's norm."
    )
    ascent: PositiveInt = Field(default=7, description="Ascent steps of the adversarial direction.")
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")


class LossCurve(Strict):
    """Mean loss (nats) at each s, the standard error of its rise over s = 0, and the mean loss of each direction."""

    s: tuple[float, ...]
    loss: tuple[float, ...]
    standard_error: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]


class LossLandscape(Experiment):
    """The two curves of one model."""

    name = "landscape"
    summary = "Loss along random and along adversarial directions in weight space, attacked again at every point."
    params = LandscapeParams

    random: LossCurve
    adversarial: LossCurve

    @property
    def brief(self) -> dict[str, float | None]:
        middle = len(self.random.s) // 2
        half = middle + (middle + 1) // 2
        return {
            "loss at w (nats)": self.random.loss[middle],
            f"random, s = {self.random.s[half]:.2g}": self.random.loss[half],
            "random, s = 1": self.random.loss[-1],
            "adversarial, s = 1": self.adversarial.loss[-1],
        }

    @classmethod
    def read(cls, model: TrainedModel, params: LandscapeParams, journal: StoredJournal) -> Self:
        """Every point of every direction is a unit of the journal."""
        moved = MovedModel(model, params, journal)
        s = offsets(params.points)
        random = [_losses(moved, moved.random(k), s, journal.section(f"random {k}")) for k in range(params.directions)]
        ahead = s[len(s) // 2 :]
        uphill = _losses(moved, moved.adversarial(journal), ahead, journal.section("adversarial"))
        curves = {"random": _curve(s, np.stack(random)), "adversarial": _curve(ahead, uphill[None])}
        return cls(n=len(moved.examples), **curves)

    @staticmethod
    def draw(document: Document[LossLandscape]) -> Figure:
        """A panel for each kind of direction, a colour for each model."""
        params: LandscapeParams = document.params
        made, panels = fig.panels(2, width=4.6, height=3.4)
        per = {"layer": r"$\|D_l\| = %g\,\|w_l\|$ per layer", "filter": r"$\|D_f\| = %g\,\|w_f\|$ per filter"}
        titles = f"mean of {params.directions} random directions", "one adversarial direction"
        lengths = per[params.normalisation] % params.random, per["layer"] % params.adversarial
        columns = zip(*((values.random, values.adversarial) for values in document.values), strict=True)
        for axes, title, length, curves in zip(panels[0], titles, lengths, columns, strict=True):
            axes.set_title(title)
            axes.set_xlabel(f"s   (w + s D, {length})")
            for k, curve in enumerate(curves):
                loss, error = np.array(curve.loss), np.array(curve.standard_error)
                style = fig.look(k)
                axes.plot(curve.s, loss, color=style["color"], linestyle=style["linestyle"])
                low = np.maximum(loss - error, loss / 10)  # a log scale has no room for less than 0
                axes.fill_between(curve.s, low, loss + error, color=style["color"], alpha=0.2, linewidth=0)
            fig.log_where_wide(axes, [value for curve in curves for value in curve.loss])
        panels[0][0].set_ylabel(f"{LOSS_NAMES[params.coupling]} (nats)")
        bands = "Bands: one standard error of the rise over s = 0, over directions (if several) and images."
        notes = f"{images_sentence(params)} {bands}"
        return fig.finish(
            made, document, "Loss landscape in weight space", notes, fig.entries(document.names, marker="")
        )


def _losses(moved: MovedModel, direction: Direction, s: tuple[float, ...], journal: StoredJournal) -> np.ndarray:
    """Losses [points, N] along one direction."""

    def at(k: int) -> np.ndarray:
        return journal.unit(f"{k}", lambda: {"loss": moved.losses((s[k], direction))})["loss"]

    return np.stack([at(k) for k in range(len(s))])


def _curve(s: tuple[float, ...], losses: np.ndarray) -> LossCurve:
    """The curve of losses [directions, points, N]."""
    rise = losses - losses[:, [s.index(0.0)]]
    if len(losses) > 1:
        errors = [crossed_errors(rise[:, k])["standard_error"] for k in range(len(s))]
    else:
        errors = [error_of_mean(rise[0, k]) or 0.0 for k in range(len(s))]
    means = losses.mean(2)
    each = tuple(map(tuple, means.tolist()))
    return LossCurve(s=s, loss=tuple(means.mean(0).tolist()), standard_error=tuple(errors), directions=each)


# ---------------------------------------------------------------------------------------------------------
# Moved weights, which `surface` shares
# ---------------------------------------------------------------------------------------------------------


def offsets(points: int) -> tuple[float, ...]:
    """Even steps from -1 to 1, with exactly 0 in the middle; `points` is odd."""
    half = points // 2
    return tuple(k / half for k in range(-half, half + 1))


LOSS_NAMES = {"clean": "clean cross-entropy", "frozen": "cross-entropy at fixed images", "reattack": "robust loss"}
"""The loss's name on an axis, by coupling."""
_IMAGES = {
    "clean": "Clean images.",
    "frozen": "Adversarial examples found once, at w, by {attack}.",
    "reattack": "Attacked again at every point by {attack}.",
}


def images_sentence(params: LandscapeParams) -> str:
    """A caption's sentence on the images at which the loss is taken."""
    restarts = f" x {params.restarts}" if params.restarts > 1 else ""
    return _IMAGES[params.coupling].format(attack=f"PGD-{params.steps}{restarts}")


class MovedModel:
    """One model and its loss at moved weights; under the coupling `frozen`, at adversarial examples found at w."""

    def __init__(self, model: TrainedModel, params: LandscapeParams, journal: StoredJournal) -> None:
        self.model, self.params = model, params
        self.network: nn.Module = model.load()
        self.space = WeightSpace(self.network)
        self.examples: Examples = model.examples("test", params.examples)
        self.oracle = self._oracle(params, journal)

    def _oracle(self, params: LandscapeParams, journal: StoredJournal) -> Oracle:
        oracle = Oracle(self.model.threat, params)
        place = journal.section(f"images, {params.coupling}")
        oracle.freeze(self.network, self.examples, self.model.workspace(place))
        return oracle

    def losses(self, *moves: tuple[float, Direction]) -> np.ndarray:
        """Loss of each example at w + sum of s D, float64 [N]."""
        nu = {name: sum(s * direction[name] for s, direction in moves) for name in self.space.layers}
        with self.space.moved(nu):  # type: ignore[arg-type]
            # A journal that keeps nothing: the caller's unit holds the losses, and the images are not needed again.
            found = self.oracle.losses(self.network, self.examples, self.model.workspace(Journal()))
        return found.cpu().numpy()

    def random(self, number: int) -> Direction:
        """The random direction of that number; all models of one architecture share its z."""
        space = WeightSpace(self.network, ball=Ball(self.params.normalisation))
        return dict(space.on_sphere(self.params.random, self.model.fixed.seed, "landscape", number))

    def adversarial(self, journal: StoredJournal) -> Direction:
        """The end of one ascent from w; a layer with zero gradient does not move."""
        size = self.params.adversarial
        coupling = "clean" if self.params.coupling == "clean" else "frozen"
        oracle = self._oracle(self.params.model_copy(update={"coupling": coupling}), journal)
        nu = self.space.zero()
        for _ in range(self.params.ascent):
            with self.space.moved(nu):
                _, gradient = oracle.gradient(self.network, self.examples, self.space.layers)
            nu = self.space.step(nu, gradient, size, size / 2)
        lengths = {name: norm(nu[name]) for name in nu}
        return {
            name: nu[name] * (size * self.space.norms[name] / lengths[name]) if lengths[name] > 0 else nu[name]
            for name in nu
        }


INFO = LossLandscape
