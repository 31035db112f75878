"""The adapters: one call of the library's own attack per batch, within the harness's promises.

The libraries draw from torch's global generators. So these are seeded by content (seed, attack, indices of the batch)
and restored afterwards.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robflat_attacks import AdvlibParams, FoolboxParams, LibraryParams, TorchattacksParams, version
from robflat_bench.api import NORMS, Attack, Examples, ThreatNorm, UsageError, Workspace, attacked, generator

CLASSES = range(4, 11)
"""Class counts that APGDT accepts. Its loss reads four logits; ten are the label and nine targets, as in AutoAttack.
Its default of ten would fail on fewer."""


class LibraryAttack(Attack):
    """An attack of either library; its result is projected into the ball and onto images."""

    params: LibraryParams
    norms: ClassVar[Mapping[ThreatNorm, Any]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    """Norm of the threat -> the library's name of it."""

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        return super().run(model, examples, replace(workspace, batch=self.params.batch))

    def admit(self, examples: Examples) -> None:
        """UsageError for a precision or a number of channels that the library's attack does not take."""
        x, title = examples.x, f"{self.params.name} of {self.params.library}"
        if x.dtype != torch.float32:
            raise UsageError(f"{title} computes in float32 only; use pgd under this precision")
        if (channels := self.params.entry.channels) not in (None, x.shape[1]):
            raise UsageError(f"{title} takes images of {channels} channels only, these have {x.shape[1]}")

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        self.admit(examples)
        x, params = examples.x, self.params
        key = generator(seed, params.library, params.name, *examples.index.tolist()).initial_seed()
        with attacked(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(key)
            found = self.call(model, x.clone(), examples.y.clone(), self.arguments(model, x, key)).detach()
        return NORMS[self.threat.norm].project(found, x, self.threat.epsilon)

    def arguments(self, model: nn.Module, x: Tensor, key: int) -> dict[str, Any]:
        """Parameters, threat and seed, under the names of the library's constructor."""
        params, epsilon, takes = self.params, self.threat.epsilon, self.params.entry.takes
        values = {
            "epsilon": epsilon,
            "steps": params.steps,
            "step": params.entry.step * epsilon if params.step is None else params.step,
            "restarts": params.restarts,
            "seed": key,
            "norm": self.norms[self.threat.norm],
        }
        if "classes" in takes:
            with torch.no_grad():
                classes = model(x[:1]).shape[1]
            if classes < CLASSES.start:
                raise UsageError(f"{params.name} of {params.library} needs four classes; this model has {classes}")
            values["classes"] = min(classes, CLASSES.stop - 1)
        return {argument: values[name] for name, argument in takes.items()}

    @abstractmethod
    def call(self, model: nn.Module, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The library's x_adv [B,C,H,W]."""


class Torchattacks(LibraryAttack):
    r"""`torchattacks.NAME(model, eps=\epsilon, ...)(x, y)`. Kim, arXiv 2010.01950."""

    params: TorchattacksParams

    def call(self, model: nn.Module, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> Tensor:
        import torchattacks

        x_adv: Tensor = getattr(torchattacks, self.params.name)(model, **arguments)(x, y)
        return x_adv


class Foolbox(LibraryAttack):
    r"""`foolbox.attacks.NAME(...)(model, x, y, epsilons=\epsilon)`, clipped by foolbox. Rauber et al., JOSS 2020."""

    params: FoolboxParams

    def call(self, model: nn.Module, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> Tensor:
        import foolbox
        from foolbox.models.pytorch import PyTorchModel

        times = arguments.pop("times", 1)
        attack = getattr(foolbox.attacks, self.params.name)(**arguments).repeat(times)
        images = PyTorchModel(model, bounds=(0, 1), device=x.device)  # else it moves the model to a GPU
        x_adv: Tensor
        _, x_adv, _ = attack(images, x, foolbox.criteria.Misclassification(y), epsilons=self.threat.epsilon)
        return x_adv


class Advlib(LibraryAttack):
    r"""`adv_lib.attacks.NAME(model, x, y, ...)`: the nearest adversarial image. Rony, Ben Ayed, Zenodo 2023."""

    params: AdvlibParams
    norms = {"linf": math.inf, "l2": 2, "l1": 1}  # noqa: RUF012  # declared in the base class

    def admit(self, examples: Examples) -> None:
        """UsageError for what no attack of a library takes, and where adv-lib is not installed."""
        super().admit(examples)
        if not version("adv-lib"):
            raise UsageError("adv-lib is not installed; `uv pip install --no-deps adv-lib` (or pip) adds it")

    def call(self, model: nn.Module, x: Tensor, y: Tensor, arguments: dict[str, Any]) -> Tensor:
        x_adv: Tensor = getattr(advlib(), self.params.name)(model, x, y, **arguments)
        return x_adv


def advlib() -> ModuleType:
    """The attacks of adv-lib.

    adv-lib 0.2.8 imports visdom to draw what nobody here asks it to draw, and visdom 0.2.4 has no wheel and does not
    build with setuptools of 2026. So where there is no visdom, an empty module takes its place during the import.
    """
    absent = "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None
    if absent:
        sys.modules["visdom"] = ModuleType("visdom")
    try:
        with warnings.catch_warnings(action="ignore"):  # of its spelling
            attacks: ModuleType = importlib.import_module("adv_lib.attacks")
    finally:
        if absent:
            del sys.modules["visdom"]
    return attacks
