r"""The loss oracle: what loss of an example is read at moved weights w'. Its coupling says how the adversary follows.

    clean      \ell(f(x_i; w'), y_i)
    frozen     \ell(f(x_i'; w'), y_i),  x_i' found once, at w, and kept
    reattack   max_{||d|| <= eps} \ell(f(x_i + d; w'), y_i),  attacked afresh at w', warm: from x_i' as well

Losses are per example, so means, errors and differences are derived and never run again. The coupling `joint`,
where the adversarial examples climb together with the weights, is `worst_case`. With normalised logits,
z <- (z - mean z) / ||z - mean z||_2 before the cross-entropy, and scaling them changes nothing; the images remain
those that maximise the plain one. Attacks and readings run on the folded network (`folding`), gradients with respect to
weights on the network as it is.   Stutz et al., ICCV 2021; normalisation: Andriushchenko et al., ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import Ascent, attacked, margin
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Threat, Workspace
from robflat_bench.core.batching import in_batches, padded_batches
from robflat_bench.measures.shared import OracleParams
from robflat_bench.numerics.folding import folded

CHUNK = 128
"""Examples per backward pass with respect to weights. Not the memory batch: the order in which weight gradients are
summed changes their last bits, and whatever takes a sign or a maximum makes those visible."""


def normalised(logits: Tensor) -> Tensor:
    """(z - mean z) / ||z - mean z||_2 of each row of [B,K]."""
    centred = logits - logits.mean(1, keepdim=True)
    scale: Tensor = centred.norm(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    return centred / scale


class Oracle:
    """Losses at the weights that the model holds when asked. `freeze` at w before asking for frozen or warm ones."""

    def __init__(self, threat: Threat, params: OracleParams) -> None:
        self.coupling = params.coupling
        self.warm = params.warm and self.coupling == "reattack"
        self.plain = params.logits == "plain"
        self.logits = torch.nn.Identity() if self.plain else normalised
        self.pgd = PGD(PGDParams(steps=params.steps, step=params.step, restarts=params.restarts), threat)
        self.images: Tensor | None = None

    def freeze(self, model: nn.Module, examples: Examples, workspace: Workspace) -> None:
        """Find the images x' of the coupling `frozen`, or of a warm `reattack`; the others have none to keep."""
        if self.coupling == "frozen" or self.warm:
            self.images = in_batches(
                examples, workspace, lambda part: self.pgd.perturb(model, part, workspace.seed), "x_adv"
            )

    def losses(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """Cross-entropy of each example, float64 [N], in nats; by memory batches, each a unit of the journal."""
        if self.coupling == "reattack" and self.plain:
            return self._each(model, examples, workspace, "loss-reattack", lambda found: found.loss).double()
        return self._read(model, examples, workspace, "loss", self.cross_entropy)

    def errors(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """0 where the label's logit alone is the highest, else (a tie, nothing finite) 1; float64 [N], as `losses`."""

        def error(model: nn.Module, part: Examples) -> Tensor:
            return ~(margin(part.y)(model(part.x)) < 0)

        return self._read(model, examples, workspace, "error", error)

    def points(self, examples: Examples) -> Examples:
        """The images at which the loss is read (clean and frozen), e.g. to differentiate it."""
        if self.coupling == "clean":
            return examples
        if self.coupling == "reattack":
            raise ValueError("the coupling reattack has no fixed images; clean and frozen have")
        return Examples(self._kept(), examples.y, examples.index)

    def cross_entropy(self, model: nn.Module, part: Examples) -> Tensor:
        """Of given images at the model's weights, [B]; differentiable."""
        loss: Tensor = F.cross_entropy(self.logits(model(part.x)), part.y, reduction="none")
        return loss

    def gradient(
        self, model: nn.Module, examples: Examples, layers: Mapping[str, nn.Parameter]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each example, float64 [N], and d mean_i loss_i / dw of these layers, float64; clean or frozen."""
        total = {name: torch.zeros_like(layer, dtype=torch.float64) for name, layer in layers.items()}
        losses = []
        with attacked(model), differentiable(list(layers.values())):
            for part, count in padded_batches(self.points(examples), CHUNK):
                loss = self.cross_entropy(model, part)[:count]
                gradients = torch.autograd.grad(loss.sum(), list(layers.values()), materialize_grads=True)
                losses.append(loss.detach().double())
                for name, gradient in zip(layers, gradients, strict=True):
                    total[name] += gradient / len(examples)
        return torch.cat(losses), total

    def _read(
        self,
        model: nn.Module,
        examples: Examples,
        workspace: Workspace,
        name: str,
        read: Callable[[nn.Module, Examples], Tensor],
    ) -> Tensor:
        """`read` at the images of the coupling, float64 [N]."""
        if self.coupling == "reattack":
            x = self._each(model, examples, workspace, "x_adv-reattack", lambda found: found.x)
        else:
            x = self.points(examples).x

        def compute(part: Examples) -> Tensor:
            with attacked(model), folded(model, part.x), torch.no_grad():
                return read(model, part)

        here = Examples(x, examples.y, examples.index)
        return in_batches(here, workspace, compute, f"{name}-{self.coupling}").double()

    def _each(
        self,
        model: nn.Module,
        examples: Examples,
        workspace: Workspace,
        name: str,
        keep: Callable[[Ascent], Tensor],
    ) -> Tensor:
        """What to `keep` of a fresh attack on each example."""
        channels = examples.x.shape[1]
        begin = [examples.x, self._kept()] if self.warm else [examples.x]
        both = Examples(torch.cat(begin, 1), examples.y, examples.index)  # so that each batch brings its own x'

        def compute(part: Examples) -> Tensor:
            x, *warm = part.x.split(channels, 1)
            here = Examples(x, part.y, part.index)
            return keep(self.pgd.maximise(model, here, workspace.seed, *warm))

        return in_batches(both, workspace, compute, name)

    def _kept(self) -> Tensor:
        if self.images is None:
            raise ValueError(f"the coupling {self.coupling} has no fixed images; call freeze first, at w")
        return self.images


@contextmanager
def differentiable(layers: list[nn.Parameter]) -> Iterator[None]:
    """Let these layers receive gradients within an attack, where parameters are frozen."""
    try:
        for layer in layers:
            layer.requires_grad_(True)
        yield
    finally:
        for layer in layers:
            layer.requires_grad_(False)
