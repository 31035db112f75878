r"""The path of an attack: the loss at every iterate of PGD, and how flat the last layer is there.

    x_0 = x_i,   x_{t+1} = \Pi( x_t + step sign \nabla_x \ell(f(x_t), y_i) )
    \kappa_t = ||W||_F Tr H_W(x_t),   Tr H_W = d^2 \ell / dW^2 summed over its diagonal = ||h||^2 \sum_k p_k (1 - p_k)

W, h: weight and features of the last linear layer, z = W h + b; p = softmax z. The trace is exact for cross-entropy,
because d^2 \ell / dz^2 = diag p - p p' and dz_k / dW_k = h. So the passes of the attack suffice. b does not move: with
it, ||h||^2 + 1 would stand for ||h||^2. Tr H_W does not depend on the label: it is small where the network is sure of a
class, right or wrong.

Both ends of the path decide the group of an image: misclassified before the attack; of the others, fooled at the last
iterate, or not.
Walter, Adilova, Vreeken, Kamp: The uncanny valley, arXiv 2405.16918, and arXiv 2510.14231: adversarial examples first
meet sharper regions, then flat ones in which the network is sure of the wrong class.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core import Examples, Params, Strict, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, ValueWithError
from robflat_bench.measures.shared import Step

with lazy_imports():
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import ascend, attacked, cross_entropy
    from robflat_bench.core.batching import in_batches
    from robflat_bench.core.estimates import error_of_mean
    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.measures.curvature.relative_flatness import head_pass
    from robflat_bench.measures.recording import recorded
    from robflat_bench.records.journal import StoredJournal


class PathParams(Params):
    """Parameters of `path`."""

    steps: PositiveInt = Field(default=10, le=1000, description="Steps of the attack, which starts at the image.")
    step: Step = None
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")


Images = Literal["misclassified", "fooled", "unfooled"]
"""Misclassified without an attack; of the others, those misclassified at the last iterate and those that are not."""
LINES: dict[Images, str] = {"misclassified": ":", "fooled": "-", "unfooled": "--"}


class PathRow(Strict):
    """Means over a group of images at one step, with standard errors over images: cross-entropy in nats, flatness."""

    images: Images
    step: int
    loss: ValueWithError
    flatness: ValueWithError


class AttackPath(Experiment):
    """The rows of one model: every group of images at every step, step 0 without an attack."""

    name = "path"
    summary = "Loss and flatness of the last layer along the iterates of an attack, for images fooled and not fooled."
    params = PathParams

    points: tuple[PathRow, ...]

    def of(self, images: Images) -> list[PathRow]:
        """The rows of one group, by step."""
        return [row for row in self.points if row.images == images]

    @property
    def brief(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        groups: tuple[Images, ...] = ("fooled", "unfooled")
        for images in groups:
            rows = self.of(images)
            found |= {f"{images}, images": rows[0].loss.n, f"{images}, flatness before": rows[0].flatness.value}
            found |= {f"{images}, highest": _highest(rows), f"{images}, at the end": rows[-1].flatness.value}
        return found

    @classmethod
    def read(cls, model: TrainedModel, params: PathParams, journal: StoredJournal) -> Self:
        """Walk all examples; every memory batch is a unit of the journal."""
        network, examples = model.load(), model.examples("test", params.examples)
        head, _ = head_pass(network, examples[:1])
        step = model.threat.epsilon / 4 if params.step is None else params.step

        def walk(part: Examples) -> Tensor:
            return walked(network, head, part, model.threat.epsilon, step, params.steps)

        found = in_batches(examples, model.workspace(journal), walk, "path").cpu().numpy()
        loss, flatness, wrong = found[..., 0], found[..., 1], found[..., 2].astype(bool)
        before, after = wrong[:, 0], wrong[:, -1]
        groups: dict[Images, np.ndarray] = {
            "misclassified": before,
            "fooled": ~before & after,
            "unfooled": ~before & ~after,
        }
        rows = [
            PathRow(images=name, step=t, loss=_mean(loss[group, t]), flatness=_mean(flatness[group, t]))
            for name, group in groups.items()
            for t in range(params.steps + 1)
        ]
        return cls(n=len(examples), points=tuple(rows))

    @staticmethod
    def draw(document: Document[AttackPath]) -> Figure:
        """A panel for loss and one for flatness, a colour for each model, a line style for each group of images."""
        params: PathParams = document.params
        made, panels = fig.panels(2, width=4.6, height=3.4)
        panels[0][0].set_ylabel("cross-entropy (nats)")
        panels[0][1].set_ylabel(r"relative flatness $\|W\|_F\,\mathrm{Tr}\,H_W$")
        for axes, quantity in zip(panels[0], ("loss", "flatness"), strict=True):
            drawn = []
            for k, values in enumerate(document.values):
                for images, line in LINES.items():
                    rows = values.of(images)
                    points: list[ValueWithError] = [getattr(row, quantity) for row in rows]
                    y = np.array([point.drawn for point in points])
                    error = np.array([point.standard_error or 0.0 for point in points])
                    colour, steps = fig.look(k)["color"], [row.step for row in rows]
                    axes.plot(steps, y, color=colour, linestyle=line)
                    low = np.maximum(y - error, y / 10)  # a log scale has no room for less than 0
                    axes.fill_between(steps, low, y + error, color=colour, alpha=0.2, linewidth=0)
                    drawn += y.tolist()
            axes.set_xlabel("step of the attack")
            fig.log_where_wide(axes, drawn)
        legend = [
            *fig.entries(document.names, marker="", linestyle="-"),
            *(fig.entry(f"{images} images", linestyle=line) for images, line in LINES.items()),
        ]
        size = "a quarter of the radius" if params.step is None else f"{params.step:.3g}"
        notes = (
            f"PGD-{params.steps} from the image, steps of {size}. Misclassified: without an attack; of the others, "
            "fooled: at the last step. Lower is flatter. Bands: one standard error over images."
        )
        return fig.finish(made, document, "Loss and flatness along an attack", notes, legend)


def walked(model: nn.Module, head: nn.Linear, part: Examples, epsilon: float, step: float, steps: int) -> Tensor:
    """Loss, relative flatness, and 1 where misclassified, of each example at each iterate: float64 [B,steps+1,3]."""
    with attacked(model), recorded([head]) as calls:
        ascend(model, part.x, part.x, cross_entropy(part.y), epsilon=epsilon, step=step, steps=steps)
    length, found = head.weight.detach().double().norm(), []
    for _, features, logits in calls[-(steps + 1) :]:  # an ascent with a gradient that is not finite is repeated
        z, h = logits.detach().double(), features.detach().double()
        p = z.softmax(1)
        flatness = length * h.square().sum(1) * (p * (1 - p)).sum(1)
        found.append(torch.stack([cross_entropy(part.y)(z), flatness, z.argmax(1) != part.y], 1))
    return torch.stack(found, 1)


def _mean(values: np.ndarray) -> ValueWithError:
    """The mean of values [n], None where there are none, with its standard error."""
    if not len(values):
        return ValueWithError(value=None, standard_error=None, n=0)
    return ValueWithError(value=float(values.mean()), standard_error=error_of_mean(values), n=len(values))


def _highest(rows: list[PathRow]) -> float | None:
    """The largest mean flatness on the way."""
    return max((row.flatness.value for row in rows if row.flatness.value is not None), default=None)


INFO = AttackPath
