"""A trained model ready to be read: which it is, its weights, the examples, the threat and the protocol."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robflat_bench.config.protocol import Fixed, Protocol, SplitName
from robflat_bench.core import Examples, Journal, Threat, UsageError, Workspace
from robflat_bench.core.batching import MEMORY_BATCH
from robflat_bench.data.splits import Splits
from robflat_bench.evaluation.model import FoundModel, find_model, initial_weights, load_model
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments.document import About
from robflat_bench.numerics.weights import digest
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import RunRecord
from robflat_bench.results.store import RunFolder
from robflat_bench.runs.run import CHECKPOINTS


@dataclass(frozen=True)
class Subject:
    """One set of weights of one model. `record` and `home`: of its run, None for a weights file."""

    session: Session
    found: FoundModel
    weights: str
    home: RunFolder | None
    record: RunRecord | None

    @property
    def registry(self) -> Registry:
        return self.session.registry

    @property
    def splits(self) -> Splits:
        return self.session.splits

    @property
    def device(self) -> str:
        return self.session.device

    @property
    def protocol(self) -> Protocol:
        return self.found.protocol

    @property
    def fixed(self) -> Fixed:
        return self.found.protocol.fixed

    @property
    def threat(self) -> Threat:
        return self.session.threat

    @property
    def about(self) -> About:
        run = self.record
        return About(
            label=run.spec.label if run else self.found.name,
            seed=run.seed if run else None,
            checkpoint=self.found.name,
            epoch=self.found.epoch,
            best_epoch=run.results["best"].epoch if run else None,
            run=run.key if run else None,
            weights=self.weights,
        )

    def load(self) -> nn.Module:
        """The network in eval mode, made afresh: keep no more of them than you need."""
        return load_model(self.session, self.found).eval()

    def examples(self, split: SplitName, count: int) -> Examples:
        """The first `count` of a split; 0: as many as the protocol's measures, or else its first attack, have."""
        available = len(self.splits.pools[split].y)
        if count > available:
            raise UsageError(f"examples={count}: {self.protocol.name} has {available} {split} examples; ask for fewer")
        return self.session.examples(split, count or self.usual_count)

    @property
    def initial(self) -> dict[str, Tensor] | None:
        """The weights that training began with, where they were kept."""
        return initial_weights(self.found.initial)

    @property
    def dtype(self) -> torch.dtype:
        return self.session.dtype

    @property
    def usual_count(self) -> int:
        return max((row.test for row in self.fixed.measures), default=self.fixed.attacks[0].test)

    def workspace(self, journal: Journal) -> Workspace:
        """Memory batch and evaluation seed as `evaluate` has them."""
        return Workspace(MEMORY_BATCH, self.fixed.seed, journal)


def find_subjects(
    session: Session,
    models: Sequence[str],
    reads: Literal["chosen", "both", "kept"],
    backbone: str | None,
    checkpoint: str,
) -> list[FoundModel]:
    """The weights an experiment reads, model by model; all are of one protocol, for a figure compares them."""
    found: list[FoundModel] = []
    for name in models:
        first = find_model(session, name, backbone, checkpoint if reads == "chosen" else "last")
        if reads == "chosen":
            found.append(first)
            continue
        if first.home is None:
            raise UsageError(f"{name} is no run, and this experiment reads several checkpoints of one; name runs")
        checkpoints = CHECKPOINTS if reads == "both" else kept(session.registry, first.protocol, first.home)
        found += [find_model(session, name, backbone, each) for each in checkpoints]
    boards = {model.protocol.hash: f"{model.protocol.name} {model.protocol.version}" for model in found}
    if len(boards) > 1:
        raise UsageError(f"these models belong to {' and '.join(boards.values())}; draw one figure for each protocol")
    return found


def kept(registry: Registry, protocol: Protocol, home: Path) -> Sequence[str]:
    """The kept epochs of a run; UsageError with the command that keeps some where there is none."""
    checkpoints = [*RunFolder(home).kept()]
    if not checkpoints:
        command = rerun(registry, protocol, home)
        raise UsageError(f"{home} kept no checkpoints to follow its training by; type: {command}")
    return checkpoints


def rerun(registry: Registry, protocol: Protocol, home: Path) -> str:
    """The command that makes a run again and keeps checkpoints."""
    record = RunFolder(home).record()
    defaults = protocol.defaults.model_dump(mode="json")
    recipe = record.spec.recipe.model_dump(mode="json")
    words = ["run", "--method", compose(registry, record.method).brief]
    words += [
        "--protocol",
        protocol.name if protocol.name in registry.protocols else "FILE.toml",
        "--seed",
        str(record.seed),
    ]
    for key, value in recipe.items():
        words += ["--set", f"recipe.{key}={value}"] if value != defaults[key] else []
    # <store>/<protocol>/<label>/seed-<n>-<key>
    return shlex.join(["robflat-bench", *words, "--store", str(home.parents[2]), "--keep-every", "5", "--fresh"])


def ready(session: Session, found: FoundModel) -> Subject:
    """The model read once, for the digest of its weights."""
    home = RunFolder(found.home) if found.home else None
    weights = digest(load_model(session, found).state_dict())
    return Subject(session, found, weights, home, home.record() if home else None)
