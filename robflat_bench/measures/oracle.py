r"""The loss oracle: the loss of each example at moved weights w'. The coupling says how the adversary follows them.

    clean      \ell(f(x_i; w'), y_i)
    frozen     \ell(f(x_i'; w'), y_i),  x_i' found once, at w, and kept
    reattack   max_{||d|| <= eps} \ell(f(x_i + d; w'), y_i),  attacked afresh at w'; warm: from x_i' as well,
               and with `warm_steps` steps

Losses are per example: means, standard errors and differences follow without another pass. The coupling `joint`, where
images climb together with the weights, belongs to `worst_case`. Normalised logits, z <- (z - mean z) / ||z - mean z||_2
before the cross-entropy, take the scale of z out of the loss; attacks still maximise the plain cross-entropy. Attacks
and readings run on the folded network (`numerics.folding`), gradients with respect to weights on the network itself.

Stutz et al., ICCV 2021; normalisation: Andriushchenko et al., ICML 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, margin
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Measure, Threat, Workspace
from robflat_bench.core.batching import arrays_in_batches, in_batches, padded_batches
from robflat_bench.measures.shared import OracleParams
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.gradients import gradients_of
from robflat_bench.numerics.weights import digest

CHUNK = 128
"""Examples per backward pass with respect to weights. It differs from the memory batch, because the order in which
weight gradients are summed changes their last bits, and a sign or a maximum of them makes the change visible."""


Read: TypeAlias = Callable[[nn.Module, Examples], Tensor]
"""(model, examples) -> a number for each example, [B]."""


def normalised(logits: Tensor) -> Tensor:
    """(z - mean z) / ||z - mean z||_2 of each row of [B,K]."""
    centred = logits - logits.mean(1, keepdim=True)
    scale: Tensor = centred.norm(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    return centred / scale


class Slopes(NamedTuple):
    """Losses [N], float64; the gradient of their sum or mean, float64 per layer; d loss_i / dx_i, shaped as images."""

    losses: Tensor
    weights: dict[str, Tensor]
    images: Tensor | None


class Oracle:
    """Losses at the weights that the model holds when a method is called.

    Parameters
    ----------
    threat : Threat
        Ball of the attack.
    params : OracleParams
        Coupling, attack and scale of the logits. Couplings `frozen` and warm `reattack` need `freeze`, called at w,
        before anything else.
    """

    def __init__(self, threat: Threat, params: OracleParams) -> None:
        self.coupling = params.coupling
        self.warm = params.warm and self.coupling == "reattack"
        self.plain = params.logits == "plain"
        self.logits = torch.nn.Identity() if self.plain else normalised
        attack = PGDParams(steps=params.steps, step=params.step, restarts=params.restarts)
        self.pgd = PGD(attack, threat)
        shorter = {"steps": params.warm_steps} if self.warm and params.warm_steps else {}
        self.again = PGD(attack.model_copy(update=shorter), threat)
        self.images: Tensor | None = None
        norm = "" if threat.norm == Threat.norm else f" of {threat.norm}"  # units of earlier versions name none
        self.attack = f"{self.pgd.params.model_dump_json()} within {threat.epsilon!r}{norm}"
        again = f"warm {self.warm}, {self.again.params.steps} steps"
        self.content = f"{self.coupling}, {params.logits} logits, {self.attack}, then {again}"

    @classmethod
    def of(cls, measure: Measure, model: nn.Module, examples: Examples, workspace: Workspace) -> Oracle:
        """The oracle of a measure with `OracleParams`, its images found at the model's present weights.

        Measures with the same attack, weights and examples share the images.
        """
        oracle = cls(measure.threat, measure.params)
        oracle.freeze(model, examples, workspace)
        return oracle

    def short(self) -> Oracle:
        """The oracle whose attacks take a quarter of the steps, at twice the size, from random starts alone."""
        found, params = copy.copy(self), self.pgd.params
        found.warm, shorter = False, {"steps": -(-params.steps // 4), "step": min(2 * self.pgd.step, 1.0)}
        found.again = PGD(params.model_copy(update=shorter), self.pgd.threat)
        return found

    def part(self, rows: Tensor) -> Oracle:
        """The oracle of some of the examples, [n] of their rows, with their images where it has found any."""
        found = copy.copy(self)
        found.images = None if self.images is None else self.images[rows]
        return found

    def freeze(self, model: nn.Module, examples: Examples, workspace: Workspace) -> None:
        """Find the images x' of `frozen` and of warm `reattack`; the other couplings keep no images."""
        if self.coupling == "frozen" or self.warm:
            self.images = self._attacked_at_w(model, examples, workspace)["x"]

    def reference(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """`losses` at the present weights: read from `workspace.shared` if another measure has computed them there."""
        if self.coupling == "reattack" and self.plain and not self.warm:
            return self._attacked_at_w(model, examples, workspace)["loss"].double()
        return self.losses(model, examples, shared(f"losses of {self.content}", model, examples, workspace))

    def reference_errors(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """`errors` at w, as `reference` reads losses."""
        here = copy.copy(self)
        if self.coupling == "reattack" and not self.warm:
            here.coupling, here.images = "frozen", self._attacked_at_w(model, examples, workspace)["x"]
        return here.errors(model, examples, shared(f"errors of {self.content}", model, examples, workspace))

    def losses(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """Cross-entropy of each example in nats, float64 [N]. Each memory batch is a unit of the journal."""
        if self.coupling == "reattack" and self.plain:
            return self._attacked(model, examples, workspace, "loss").double()
        return self._read(model, examples, workspace, "loss", self.cross_entropy)

    def errors(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """0 where the label's logit is the single highest, else 1 (ties, NaN), float64 [N]; units as in `losses`."""

        def error(model: nn.Module, part: Examples) -> Tensor:
            return ~(margin(part.y)(model(part.x)) < 0)

        return self._read(model, examples, workspace, "error", error)

    def points(self, examples: Examples) -> Examples:
        """The images at which `clean` and `frozen` read the loss. ValueError for `reattack`, whose images move."""
        if self.coupling == "clean":
            return examples
        if self.coupling == "reattack":
            raise ValueError("the coupling reattack has no fixed images; use clean or frozen")
        return Examples(self._kept(), examples.y, examples.index)

    def cross_entropy(self, model: nn.Module, part: Examples) -> Tensor:
        """Loss [B] of these images at the model's weights; differentiable."""
        loss: Tensor = F.cross_entropy(self.logits(model(part.x)), part.y, reduction="none")
        return loss

    def gradient(
        self, model: nn.Module, examples: Examples, layers: Mapping[str, nn.Parameter]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each example, float64 [N], and d mean_i loss_i / dw of these layers, float64; clean or frozen."""
        return self.slopes(model, self.points(examples), layers, len(examples))[:2]

    def slopes(
        self,
        model: nn.Module,
        images: Examples,
        layers: Mapping[str, nn.Parameter],
        divisor: int = 1,
        of_images: bool = False,
    ) -> Slopes:
        """Losses at these images, and the gradient of their sum / divisor by these layers; `of_images`: by the images.

        Computed in chunks of `CHUNK`, so that the memory batch changes no bit.
        """
        total = {name: torch.zeros_like(layer, dtype=torch.float64) for name, layer in layers.items()}
        losses, by_images = [], []
        with attacked(model), differentiable(list(layers.values())):
            for part, count in padded_batches(images, CHUNK):
                x = part.x.detach().requires_grad_(of_images)
                wanted = [*layers.values(), *([x] if of_images else [])]

                def read(x: Tensor = x, part: Examples = part, count: int = count) -> Tensor:
                    return self.cross_entropy(model, replace(part, x=x))[:count]

                loss, gradients = gradients_of(read, wanted)
                losses.append(loss.double())
                for name, gradient in zip(layers, gradients, strict=False):
                    total[name] += gradient / divisor
                by_images += [gradients[-1][:count]] if of_images else []
        return Slopes(torch.cat(losses), total, torch.cat(by_images) if of_images else None)

    def _read(self, model: nn.Module, examples: Examples, workspace: Workspace, name: str, read: Read) -> Tensor:
        """`read` at the images of the coupling, float64 [N]."""
        fresh = self.coupling == "reattack"
        x = self._attacked(model, examples, workspace, "x") if fresh else self.points(examples).x

        def compute(part: Examples) -> Tensor:
            with attacked(model), folded(model, part.x), torch.no_grad():
                return read(model, part)

        here = Examples(x, examples.y, examples.index)
        return in_batches(here, workspace, compute, f"{name}-{self.coupling}").double()

    def _attacked(
        self, model: nn.Module, examples: Examples, workspace: Workspace, keep: Literal["x", "loss"]
    ) -> Tensor:
        """The images or the losses that a fresh attack on each example finds."""
        begin = [examples.x, self._kept()] if self.warm else [examples.x]
        both = Examples(torch.cat(begin, 1), examples.y, examples.index)  # so that each batch brings its own x'

        def compute(part: Examples) -> Tensor:
            x, *warm = part.x.split(examples.x.shape[1], 1)
            found = self.again.maximise(model, Examples(x, part.y, part.index), workspace.seed, *warm)
            return found.x if keep == "x" else found.loss

        return in_batches(both, workspace, compute, {"x": "x_adv-reattack", "loss": "loss-reattack"}[keep])

    def _attacked_at_w(self, model: nn.Module, examples: Examples, workspace: Workspace) -> dict[str, Tensor]:
        """`x` and `loss` of an attack on each example at w, the same for all measures with such an attack."""

        def compute(part: Examples) -> dict[str, Tensor]:
            return self.pgd.maximise(model, part, workspace.seed)._asdict()

        place = shared(f"attack of {self.attack}", model, examples, workspace)
        return arrays_in_batches(examples, place, compute, "attack")

    def _kept(self) -> Tensor:
        if self.images is None:
            raise ValueError(f"the coupling {self.coupling} has no images yet; call freeze first, at w")
        return self.images


def shared(name: str, model: nn.Module, examples: Examples, workspace: Workspace) -> Workspace:
    """The workspace with a section of `workspace.shared` for what has this name at these weights and examples."""
    content = digest({**model.state_dict(), "images": examples.x, "labels": examples.y, "index": examples.index})
    return replace(workspace, journal=workspace.shared.section(f"{name}, {content}"))


def given_images(
    measure: Measure, model: nn.Module, examples: Examples, workspace: Workspace
) -> tuple[Oracle, Examples]:
    """An oracle that reads any images as they are, and the images of the measure's coupling, found at w."""
    images = Oracle.of(measure, model, examples, workspace).points(examples)
    return Oracle(measure.threat, measure.params.model_copy(update={"coupling": "clean"})), images


@contextmanager
def differentiable(layers: list[nn.Parameter]) -> Iterator[None]:
    """These layers receive gradients within an attack, where parameters are frozen."""
    try:
        for layer in layers:
            layer.requires_grad_(True)
        yield
    finally:
        for layer in layers:
            layer.requires_grad_(False)
