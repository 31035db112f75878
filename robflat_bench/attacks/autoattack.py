"""AutoAttack, the parameter-free ensemble, as its authors wrote it (pyautoattack), with a seed and resumable.

The stages run one after the other, each on batches of the examples that all earlier stages left correctly classified.
With the same seed and batch the result is that of the original, pixel for pixel (unless `fast`). Where only errors are
read, APGD makes no further pass of an image that it has fooled: it breaks the same images, at their first
misclassification. The original seeds torch's global generator, so its state is restored. The original's own bookkeeping
is not used, because it sets a trace function and cannot resume.

Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks. ICML
2020, arXiv 2003.01690.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import (
    Attack,
    AttackInfo,
    Examples,
    Journal,
    Params,
    Seed,
    ThreatNorm,
    UsageError,
    Workspace,
    lazy_imports,
)
from robflat_bench.core.works import cite

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.numerics.folding import folded


class AutoAttackParams(Params):
    norms = ("linf", "l2", "l1")

    version: Literal["standard", "apgd"] = Field(
        default="standard",
        description='"standard": APGD-CE, APGD-T, FAB-T and Square. "apgd": the first two, which is not "AutoAttack".',
    )
    batch: PositiveInt = Field(
        default=250,
        description="Images per batch; it changes the result, because AutoAttack draws per batch of unbroken examples. "
        "The default is the original's.",
    )
    seed: Seed = Field(default=0, description="Seed of the original's random draws.")
    fast: bool = Field(
        default=True,
        description="Fold normalisation into convolutions, and where only errors are read, let APGD leave the images "
        "that it has fooled. Rounding differs, so a flag in hundreds may differ.",
    )


INFO = AttackInfo(
    name="autoattack",
    summary="parameter-free ensemble by its authors; version=apgd is its APGD tier",
    factory=f"{__name__}:AutoAttack",
    params=AutoAttackParams,
    citation=cite("croce2020reliable"),
    title="{version} tier of AutoAttack",
    example={"version": "apgd"},
)


VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "apgd": ("apgd-ce", "apgd-t")}
THEIRS: Mapping[ThreatNorm, Any] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
"""Norm of the threat -> its name in the original."""
STAGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "apgd-ce": ("apgd", {"loss": "ce"}),
    "apgd-t": ("apgd_targeted", {}),
    "fab-t": ("fab", {"targeted": True}),
    "square": ("square", {}),
}
"""Stage -> the attribute of the original that runs it, and the options that the original sets before."""


class Standing:
    """The model for one run of APGD: after an image's first misclassification its logits stay, without another pass.

    APGD counts an image as broken if any iterate was misclassified, so the iterates that follow decide nothing; those
    of other images do not depend on it. `fooled` bool [B]; `x_adv` [B,C,H,W]: for these, the misclassified image.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.y, self.x_adv = model, y, x.detach().clone()
        self.fooled = torch.zeros_like(y, dtype=torch.bool)
        self.logits: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        rows = (~self.fooled).nonzero()[:, 0]
        if self.logits is None or len(rows) == len(x):
            logits: Tensor = self.model(x)
        else:
            logits = self.logits + 0 * x.flatten(1)[:, :1]  # APGD asks for a gradient even where all are fooled
            if len(rows):
                logits = logits.index_copy(0, rows, self.model(x[rows]))
        self.logits = logits.detach()
        new = ~self.fooled & (self.logits.max(1)[1] != self.y)
        self.x_adv[new] = x.detach()[new]
        self.fooled |= new
        return logits


def leave_fooled(attack: Any) -> None:
    """Let the original's APGD spend passes only on images that it has not fooled yet."""
    model, whole = attack.model, attack.attack_single_run

    def single(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        attack.model = standing = Standing(model, x, y)
        try:
            highest, correct, loss, _ = whole(x, y, x_init)
        finally:
            attack.model = model
        return highest, correct, loss, standing.x_adv

    attack.attack_single_run = single


class AutoAttack(Attack):
    """x_adv differs from x exactly where a stage fooled the model."""

    params: AutoAttackParams

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self.run(model, examples, Workspace())

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        if examples.x.dtype != torch.float32:
            raise UsageError("autoattack computes in float32 only; use pgd, or a protocol with precision float32")
        batch, quick = self.params.batch, self.params.fast and workspace.errors_only
        x_adv = examples.x.clone()
        with attacked(model), folded(model, examples.x) if self.params.fast else nullcontext(), torch.no_grad():
            logits = torch.cat([model(part) for part in examples.x.split(batch)])
            if (classes := logits.shape[1]) < 10:
                raise UsageError(f"autoattack needs ten classes, for nine targets; this model has {classes}: use pgd")
            unbroken = (logits.argmax(1) == examples.y).cpu()  # indices lie on the CPU
            for stage in VERSIONS[self.params.version]:
                batches = unbroken.nonzero()[:, 0].split(batch)
                part = partial(self._part, model, examples, workspace.journal, stage, quick, batches)
                for rows, arrays in zip(batches, workspace.journal.each(len(batches), part), strict=True):
                    broken = rows[torch.from_numpy(arrays["broken"])]
                    x_adv[broken] = torch.from_numpy(arrays["x_adv"]).to(x_adv)
                    unbroken[broken] = False
                    if stage == "square":
                        self.notes["only_square"] = self.notes.get("only_square", 0) + len(broken)
        return x_adv

    def _part(
        self,
        model: nn.Module,
        examples: Examples,
        journal: Journal,
        stage: str,
        quick: bool,
        batches: Sequence[Tensor],
        number: int,
    ) -> Mapping[str, np.ndarray]:
        """`_attack` on one of the batches, a unit of the journal."""
        attack = partial(self._attack, model, examples[batches[number]], stage, quick)
        return journal.unit(f"{stage}-{number}" + quick * "-errors", attack)

    def _attack(self, model: nn.Module, part: Examples, stage: str, quick: bool) -> Mapping[str, np.ndarray]:
        """broken bool [b]: the examples that the stage fooled; x_adv: their adversarial images."""
        from pyautoattack import AutoAttack as Original

        quiet = logging.getLogger("robflat_bench.autoattack")
        quiet.setLevel(logging.CRITICAL)
        with torch.random.fork_rng():
            norm, device = THEIRS[self.threat.norm], part.x.device
            suite = Original(model, norm=norm, eps=self.threat.epsilon, seed=self.params.seed, device=device)
            suite.apgd.logger = suite.apgd_targeted.logger = quiet
            name, options = STAGES[stage]
            attack = getattr(suite, name)
            for option, value in {**options, "seed": self.params.seed}.items():
                setattr(attack, option, value)
            if quick and stage.startswith("apgd") and not attack.use_largereps:  # l1 begins in larger balls
                leave_fooled(attack)
            x_adv = attack.perturb(part.x.clone(), part.y.clone())
        broken = model(x_adv).argmax(1) != part.y
        return {"broken": broken.cpu().numpy(), "x_adv": x_adv[broken].detach().cpu().numpy()}
