r"""Adversarial images of each model on every model: does one network's robustness hold against another's attack?

    error(i, j) = mean over (x, y) of [ f_j(x) or f_j(x'_i) has its largest logit elsewhere than at y ]

x'_i are the attack's images of x on f_i. Row i is the model that the images were made on, column j the model that sees
them. The diagonal is the white-box error, as `evaluate` has it: an image that is wrong without an attack is wrong. A
column whose white-box error is lower than its error under another model's images has gradients that mislead the attack.

Papernot, McDaniel, Goodfellow: Transferability in machine learning: from phenomena to black-box attacks using
adversarial samples. 2016, arXiv 1605.07277. Athalye, Carlini, Wagner: Obfuscated gradients give a false sense of
security. ICML 2018, arXiv 1802.00420.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, NonNegativeInt

from robflat_bench.config.protocol import Attacked
from robflat_bench.core import Params, RunFailed, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, Text, ValueWithError

with lazy_imports():
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from robflat_bench.core import Examples
    from robflat_bench.core.batching import MEMORY_BATCH
    from robflat_bench.core.estimates import error_of_mean
    from robflat_bench.evaluation.evaluate import EvaluatedModel, adversarial_images
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel, short_title
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.registry.components import resolve


class TransferParams(Params):
    attack: str = Field(default="", description='Attack that makes the images; "": the first one of the protocol.')
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: those of that attack.")


class PairValue(ValueWithError):
    """The robust error of one model on the images made on another, with its standard error over examples.

    Attributes
    ----------
    on
        Name of the model that sees the images.
    white_box
        Whether it is the model that they were made on.
    """

    on: Text
    white_box: bool


class Transfer(Experiment):
    """The errors of all models on the images made on one model.

    Attributes
    ----------
    attack
        Title of the attack.
    pairs
        One value for each model, in the order of the figure.
    """

    name = "transfer"
    summary = "Robust error of each model on the adversarial images of every model; the diagonal is white-box."
    params = TransferParams
    compares = True

    attack: Text
    pairs: tuple[PairValue, ...]

    @property
    def brief(self) -> dict[str, float | None]:
        return {pair.on: pair.value for pair in self.pairs}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {"seen by": pair.on, "robust error": pair.value, "standard error": pair.standard_error, "n": pair.n}
            for pair in self.pairs
        ]

    @classmethod
    def read(cls, model: TrainedModel, params: TransferParams, journal: StoredJournal) -> Self:
        """Attack one model, then show its images to all."""
        usual = model.fixed.attacks[0]
        attack = resolve(model.registry, "attack", params.attack or usual.attack)
        available = model.session.splits.available("test")
        if params.examples == 1 or params.examples > available:
            raise UsageError(f"examples={params.examples}: there are {available} test examples; ask for 2 to that many")
        count = params.examples or min(usual.test, available)
        plan = Plan((Attacked(attack=attack.canonical, test=count),), ())
        subject = EvaluatedModel(model.load(), model.found.name, model.found.epoch, model.initial)
        x_adv = adversarial_images(model.session, plan, subject, journal.section("attack"))
        examples = model.session.examples("test", count)
        pairs = []
        for name, other in model.among.items():
            error = errors(other.load(), x_adv, examples)
            pairs.append(
                PairValue(
                    on=name,
                    white_box=(other.weights, other.network) == (model.weights, model.network),
                    value=float(error.mean()),
                    standard_error=error_of_mean(error),
                    n=len(error),
                )
            )
        return cls(n=count, attack=short_title(attack), pairs=tuple(pairs))

    @staticmethod
    def draw(document: Document[Transfer]) -> Figure:
        """The matrix: a row for each model attacked, a column for each model that sees the images."""
        models = document.values
        columns = [pair.on for pair in models[0].pairs]
        rows = [[pair.on for pair in values.pairs] for values in models]
        if rows != [columns] * len(columns) or not all(values.pairs[k].white_box for k, values in enumerate(models)):
            raise ValueError("its rows are not of the same models as its columns")
        errors = 100 * np.array([[pair.drawn for pair in values.pairs] for values in models])
        side = max(2.6, 0.9 * len(models))
        made, ((axes,),) = fig.panels(1, width=side + 2.2, height=side)
        shown = axes.imshow(errors, cmap="Blues", vmin=0, vmax=100)
        for (i, j), error in np.ndenumerate(errors):
            weight = "bold" if models[i].pairs[j].white_box else "normal"
            colour = "white" if error > 60 else "#222222"
            axes.text(j, i, f"{error:.1f}", ha="center", va="center", color=colour, fontweight=weight, fontsize=9)
        axes.set_xticks(range(len(columns)), [fig.plain(name) for name in columns], rotation=30, ha="right")
        axes.set_yticks(range(len(columns)), [fig.plain(name) for name in columns])
        axes.set_xlabel("seen by")
        axes.set_ylabel("images made on")
        axes.grid(visible=False)
        made.colorbar(shown, ax=axes, label="robust error (%)")
        worst = max((pair.standard_error or 0.0 for values in models for pair in values.pairs), default=0.0)
        notes = (
            f"Robust error in % under {models[0].attack}; bold: white-box. Standard errors over images are at most "
            f"{100 * worst:.2g} points."
        )
        return fig.finish(made, document, "Transfer of adversarial images", notes)


def errors(network: nn.Module, x_adv: Tensor, examples: Examples) -> np.ndarray:
    """Whether each image is misclassified when clean or when attacked, as 0.0 or 1.0, [N]."""
    wrong = torch.zeros(len(examples), dtype=torch.bool, device=x_adv.device)
    for images in (examples.x, x_adv):
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split(MEMORY_BATCH)])
        if not logits.isfinite().all():
            raise RunFailed("a network's logits are NaN or infinite on images made on another; leave that model out")
        wrong |= logits.argmax(1) != examples.y
    found: np.ndarray = wrong.double().cpu().numpy()
    return found


INFO = Transfer
