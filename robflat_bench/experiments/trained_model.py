"""A trained model that an experiment reads: its weights, examples, threat model and protocol."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from robflat_bench.config.protocol import Fixed, Protocol, SplitName, named
from robflat_bench.config.spec import run_options
from robflat_bench.config.threat import check_norm
from robflat_bench.core import Examples, Journal, NoValue, Threat, UsageError, Workspace
from robflat_bench.core.batching import MEMORY_BATCH
from robflat_bench.evaluation.model import FoundModel, find_model, initial_weights, load_model
from robflat_bench.evaluation.network import behaviour, check_network
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.experiments.document import MeasuredValue, ModelRef
from robflat_bench.numerics.weights import digest
from robflat_bench.records.record import RunRecord
from robflat_bench.records.store import RunFolder
from robflat_bench.registry.components import Component, compose, resolve, write
from robflat_bench.registry.registry import Registry
from robflat_bench.runs.run import CHECKPOINTS


@dataclass(frozen=True)
class TrainedModel:
    """One set of weights of one model.

    Attributes
    ----------
    weights
        Digest of the weights.
    network
        What else decides the function: backbone and activation, or the behaviour of a live module.
    home, record
        Folder and record of the model's run; None for a weights file.
    among
        All models of an experiment that compares them, this one too, by their names in the figure.
    """

    session: Session
    found: FoundModel
    weights: str
    network: tuple[str, str]
    home: RunFolder | None
    record: RunRecord | None
    among: Mapping[str, TrainedModel] = field(default_factory=dict, compare=False)

    @property
    def registry(self) -> Registry:
        return self.session.registry

    @property
    def fixed(self) -> Fixed:
        return self.session.fixed

    @property
    def threat(self) -> Threat:
        return self.session.threat

    @property
    def ref(self) -> ModelRef:
        run = self.record
        return ModelRef(
            label=run.spec.label if run else self.found.name,
            seed=run.seed if run else None,
            checkpoint=self.found.name,
            epoch=self.found.epoch,
            best_epoch=run.results["best"].epoch if run else None,
            run=run.key if run else None,
            weights=self.weights,
        )

    def load(self) -> nn.Module:
        """A new copy of the network, in eval mode."""
        return load_model(self.session, self.found).eval()

    def examples(self, split: SplitName, count: int) -> Examples:
        """The first `count` examples of a split; 0 means `usual_count`."""
        available = self.session.splits.available(split)
        if count > available:
            raise UsageError(
                f"examples={count}: {self.found.protocol.name} has {available} {split} examples; ask for fewer"
            )
        return self.session.examples(split, count or self.usual_count)

    @property
    def initial(self) -> dict[str, Tensor] | None:
        """The weights before training, where the run kept them."""
        return initial_weights(self.found.initial)

    @property
    def usual_count(self) -> int:
        """Examples of the protocol's measures, or of its first attack where it has no measures."""
        return max((row.test for row in self.fixed.measures), default=self.fixed.attacks[0].test)

    def variant(self, measure: Component, **values: Any) -> Component:
        """The measure with other values of some parameters."""
        return resolve(self.registry, "measure", write(measure.name, {**measure.params.model_dump(), **values}))

    def measure(
        self, measure: Component, network: nn.Module, examples: Examples, journal: Journal
    ) -> tuple[MeasuredValue, Mapping[str, np.ndarray]]:
        """Measure `network`, the model's own or a changed copy; records do not hold these values.

        Returns
        -------
        tuple
            The finite numbers of the measurement, or the reason why there is no value; and the measurement's arrays.
        """
        check_norm(measure, self.threat.norm)
        place = replace(self.workspace(journal), initial=self.initial)
        try:
            found = measure.build(self.threat).measure(network, examples, place)
        except NoValue as reason:
            return MeasuredValue(value=None, standard_error=None, n=len(examples), reason=str(reason)[:300]), {}
        finite, error = math.isfinite(found.value), found.standard_error
        kept = MeasuredValue(
            value=found.value if finite else None,
            standard_error=error if error is not None and finite and math.isfinite(error) else None,
            n=found.n,
            details={name: value for name, value in found.details.items() if math.isfinite(value)},
            reason="" if finite else f"it is {found.value} here",
        )
        return kept, found.arrays

    def workspace(self, journal: Journal) -> Workspace:
        """A workspace with the memory batch and the evaluation seed of `evaluate`."""
        return Workspace(MEMORY_BATCH, self.fixed.seed, journal)


def find_models(
    session: Session,
    models: Sequence[str],
    reads: Literal["chosen", "both", "kept"],
    options: ModelOptions,
) -> list[FoundModel]:
    """The weights that an experiment reads, in the order of `models`; UsageError unless all have one protocol."""
    found: list[FoundModel] = []
    for name in models:
        first = find_model(session, name, options if reads == "chosen" else replace(options, checkpoint="last"))
        if reads == "chosen":
            found.append(first)
            continue
        if first.home is None:
            raise UsageError(f"{name} is not a run; this experiment reads several checkpoints of a run: name runs")
        checkpoints = CHECKPOINTS if reads == "both" else kept_epochs(session.registry, first.protocol, first.home)
        found += [find_model(session, name, replace(options, checkpoint=each)) for each in checkpoints]
    protocols = {model.protocol.hash: f"{model.protocol.name} {model.protocol.version}" for model in found}
    if len(protocols) > 1:
        both = " and ".join(protocols.values())
        raise UsageError(f"these models were trained under {both}; draw one figure for each protocol")
    return found


def kept_epochs(registry: Registry, protocol: Protocol, home: Path) -> list[str]:
    """The kept epochs of a run; where there is none, UsageError with the command that trains again and keeps some."""
    if checkpoints := list(RunFolder(home).kept()):
        return checkpoints
    raise UsageError(f"{home} kept no checkpoints during training; type: {_rerun(registry, protocol, home)}")


def _rerun(registry: Registry, protocol: Protocol, home: Path) -> str:
    """The command that trains a run again and keeps checkpoints."""
    file = named(registry, protocol.name, protocol.version) or "FILE.toml"
    folder = RunFolder(home)
    spec = folder.record().spec
    brief = spec.model_copy(update={"method": compose(registry, spec.method).brief})
    words = ["robflat-bench", "run", *run_options(brief, protocol, file)]
    return shlex.join([*words, "--store", str(folder.store), "--keep-every", "5", "--fresh"])


def open_model(session: Session, found: FoundModel) -> TrainedModel:
    """The model as experiments read it; its network is loaded once, tried on images and identified.

    Raises
    ------
    UsageError
        `check_network` refuses it.
    """
    configure(session.fixed)
    home, network = RunFolder(found.home) if found.home else None, load_model(session, found).eval()
    check_network(session, network, found.name, found.classes)
    weights = digest(network.state_dict())
    code = found.activation if found.module is None else behaviour(session, network)
    return TrainedModel(session, found, weights, (found.backbone, code), home, home.record() if home else None)


def short_title(component: Component, **instead: str) -> str:
    """The component's title, or where it has none, its text; `instead` replaces parameter values by words."""
    return component.info.title.format(**{**component.params.model_dump(), **instead}) or component.brief
