"""AutoAttack, the parameter-free ensemble, as its authors wrote it (pyautoattack), with a seed and resumable.

The stages run one after the other, each on batches of the examples that all earlier stages left correctly classified.
With the same seed and batch the result is that of the original, pixel for pixel (unless `fast`). The original seeds
torch's global generator, so its state is restored. The original's own bookkeeping is not used, because it sets a trace
function and cannot resume.

Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks. ICML
2020, arXiv 2003.01690.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import Attack, AttackInfo, Examples, Params, Seed, UsageError, Workspace, lazy_imports

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.numerics.folding import folded


class AutoAttackParams(Params):
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
        description="Fold normalisation into convolutions. Rounding differs, so a flag in hundreds may differ.",
    )


INFO = AttackInfo(
    name="autoattack",
    summary="parameter-free ensemble by its authors; version=apgd is its APGD tier",
    factory=f"{__name__}:AutoAttack",
    params=AutoAttackParams,
    citation=(
        "Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free "
        "attacks. ICML 2020, arXiv 2003.01690"
    ),
    title="{version} tier of AutoAttack",
    example={"version": "apgd"},
)


VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "apgd": ("apgd-ce", "apgd-t")}
STAGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "apgd-ce": ("apgd", {"loss": "ce"}),
    "apgd-t": ("apgd_targeted", {}),
    "fab-t": ("fab", {"targeted": True}),
    "square": ("square", {}),
}
"""Stage -> the attribute of the original that runs it, and the options that the original sets before."""


class AutoAttack(Attack):
    """x_adv differs from x exactly where a stage fooled the model."""

    params: AutoAttackParams

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self.run(model, examples, Workspace())

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        if examples.x.dtype != torch.float32:
            raise UsageError("autoattack computes in float32 only; use pgd, or a protocol with precision float32")
        batch = self.params.batch
        x_adv = examples.x.clone()
        with attacked(model), folded(model, examples.x) if self.params.fast else nullcontext(), torch.no_grad():
            logits = torch.cat([model(part) for part in examples.x.split(batch)])
            if (classes := logits.shape[1]) < 10:
                raise UsageError(f"autoattack needs ten classes, for nine targets; this model has {classes}: use pgd")
            unbroken = (logits.argmax(1) == examples.y).cpu()  # indices lie on the CPU
            for stage in VERSIONS[self.params.version]:
                for number, rows in enumerate(unbroken.nonzero()[:, 0].split(batch)):
                    unit = partial(self._attack, model, examples[rows], stage)
                    arrays = workspace.journal.unit(f"{stage}-{number}", unit)
                    broken = rows[torch.from_numpy(arrays["broken"])]
                    x_adv[broken] = torch.from_numpy(arrays["x_adv"]).to(x_adv)
                    unbroken[broken] = False
                    if stage == "square":
                        self.notes["only_square"] = self.notes.get("only_square", 0) + len(broken)
        return x_adv

    def _attack(self, model: nn.Module, part: Examples, stage: str) -> Mapping[str, np.ndarray]:
        """broken bool [b]: the examples that the stage fooled; x_adv: their adversarial images."""
        from pyautoattack import AutoAttack as Original

        quiet = logging.getLogger("robflat_bench.autoattack")
        quiet.setLevel(logging.CRITICAL)
        with torch.random.fork_rng():
            suite = Original(model, norm="Linf", eps=self.threat.epsilon, seed=self.params.seed, device=part.x.device)
            suite.apgd.logger = suite.apgd_targeted.logger = quiet
            name, options = STAGES[stage]
            attack = getattr(suite, name)
            for option, value in {**options, "seed": self.params.seed}.items():
                setattr(attack, option, value)
            x_adv = attack.perturb(part.x.clone(), part.y.clone())
        broken = model(x_adv).argmax(1) != part.y
        return {"broken": broken.cpu().numpy(), "x_adv": x_adv[broken].detach().cpu().numpy()}
