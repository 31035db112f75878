"""AutoAttack by its authors (pyautoattack), seeded and resumable. Croce & Hein, ICML 2020.

Each stage runs on batches of the examples that all earlier stages left standing, exactly as the original does
with the same seed and batch; each (stage, batch) is one unit of the journal. The original seeds torch's global
generator, so that state is put back. Only the stages are called: the original's own bookkeeping sets a trace
function and cannot resume.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from robflat_bench.core import Attack, AttackInfo, Examples, Params, UsageError, Workspace, lazy_imports

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.numerics.folding import folded


class AutoAttackParams(Params):
    """version: "standard" = APGD-CE, APGD-T, FAB-T, Square; "apgd" = the first two only, and not "AutoAttack".

    batch and seed are part of the definition: AutoAttack draws per batch of the examples that still stand. fast: the
    network's normalisation is folded into its convolutions, which rounds differently: a flag in hundreds may differ.
    """

    version: Literal["standard", "apgd"] = "standard"
    batch: PositiveInt = 250
    seed: NonNegativeInt = 0
    fast: bool = True


INFO = AttackInfo(
    name="autoattack",
    summary="parameter-free ensemble by its authors; version=apgd is its APGD tier",
    factory=f"{__name__}:AutoAttack",
    params=AutoAttackParams,
    citation=(
        "Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse "
        "parameter-free attacks. ICML 2020"
    ),
    title="{version} tier of AutoAttack",
    example={"version": "apgd"},
)


VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "apgd": ("apgd-ce", "apgd-t")}


def _apgd_ce(suite: Any) -> Any:
    suite.apgd.loss = "ce"
    return suite.apgd


def _fab_t(suite: Any) -> Any:
    suite.fab.targeted = True
    return suite.fab


STAGES: dict[str, Callable[[Any], Any]] = {
    "apgd-ce": _apgd_ce,
    "apgd-t": lambda suite: suite.apgd_targeted,
    "fab-t": _fab_t,
    "square": lambda suite: suite.square,
}


class AutoAttack(Attack):
    """x_adv differs from x exactly where a stage fooled the model."""

    params: AutoAttackParams

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self.run(model, examples, Workspace())

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        if examples.x.dtype != torch.float32:
            raise UsageError("autoattack computes in float32 only; use pgd under this precision")
        batch = self.params.batch
        x_adv = examples.x.clone()
        with attacked(model), folded(model, examples.x) if self.params.fast else nullcontext(), torch.no_grad():
            logits = torch.cat([model(part) for part in examples.x.split(batch)])
            classes = logits.shape[1]
            if classes < 10:
                raise UsageError(f"autoattack targets 9 classes; this model has {classes}: use pgd instead")
            standing = (logits.argmax(1) == examples.y).cpu()  # where examples.index is
            for stage in VERSIONS[self.params.version]:
                for number, rows in enumerate(standing.nonzero()[:, 0].split(batch)):

                    def unit(stage: str = stage, rows: Tensor = rows) -> Mapping[str, np.ndarray]:
                        return self._attack(model, examples[rows], stage)

                    arrays = workspace.journal.unit(f"{stage}-{number}", unit)
                    broken = rows[torch.from_numpy(arrays["broken"])]
                    x_adv[broken] = torch.from_numpy(arrays["x_adv"]).to(x_adv)
                    standing[broken] = False
                    if stage == "square":
                        self.notes["only_square"] = self.notes.get("only_square", 0) + len(broken)
        return x_adv

    def _attack(self, model: nn.Module, part: Examples, stage: str) -> Mapping[str, np.ndarray]:
        """broken bool [b], and the adversarial images of those."""
        from pyautoattack import AutoAttack as Original

        quiet = logging.getLogger("robflat_bench.autoattack")
        quiet.setLevel(logging.CRITICAL)
        with torch.random.fork_rng():
            suite = Original(model, norm="Linf", eps=self.threat.epsilon, seed=self.params.seed, device=part.x.device)
            for attack in (suite.apgd, suite.apgd_targeted):
                attack.logger = quiet
            stage_attack = STAGES[stage](suite)
            stage_attack.seed = self.params.seed
            x_adv = stage_attack.perturb(part.x.clone(), part.y.clone())
        broken = model(x_adv).argmax(1) != part.y
        return {"broken": broken.cpu().numpy(), "x_adv": x_adv[broken].detach().cpu().numpy()}
