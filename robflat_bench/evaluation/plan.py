"""The plan of an evaluation: which attacks and measures one checkpoint goes through, on how many examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from robflat_bench.config.protocol import Attacked, Fixed, Measured, SplitName
from robflat_bench.config.threat import check_norm
from robflat_bench.core import Kind, MeasureInfo, UsageError
from robflat_bench.registry.components import resolve, title
from robflat_bench.registry.registry import Registry

Row = TypeVar("Row", Attacked, Measured)


class EvaluationStage(NamedTuple):
    """One attack or one measure on the first `examples` examples of a split."""

    kind: Kind
    text: str
    split: Literal["test", "train"]
    examples: int

    def name(self, component: str) -> str:
        """The stage's name: the component's, with the split unless a measure reads test examples."""
        return component if self.kind == "measure" and self.split == "test" else f"{component}, {self.split}"


@dataclass(frozen=True)
class Plan:
    """Attacks and measures that one checkpoint goes through.

    Parameters
    ----------
    attacks : tuple of Attacked
        Attacks and their numbers of examples. The first one is the reference: robust loss and gap are measured with it.
    measures : tuple of Measured
        Measures and their numbers of examples.
    """

    attacks: tuple[Attacked, ...]
    measures: tuple[Measured, ...]

    @classmethod
    def of(cls, fixed: Fixed, checkpoint: str) -> Plan:
        """The protocol's attacks and measures of the checkpoint "best" or "last"."""
        return cls(
            tuple(row for row in fixed.attacks if checkpoint in row.checkpoints),
            tuple(row for row in fixed.measures if checkpoint in row.checkpoints),
        )

    def limited(self, examples: int | None, train: int | None) -> Plan:
        """The plan on at most so many test and training examples (`train` None: as many as `examples`)."""
        most = {"test": examples, "train": examples if train is None else train}

        def few(row: Row) -> Row:
            counts = {split: min(getattr(row, split), limit) for split, limit in most.items() if limit is not None}
            return row.model_copy(update=counts)

        return Plan(tuple(map(few, self.attacks)), tuple(map(few, self.measures)))

    @property
    def stages(self) -> Iterator[EvaluationStage]:
        """Every attack, then every measure; each on test examples, then on training examples if it has some."""
        rows: tuple[Attacked | Measured, ...] = (*self.attacks, *self.measures)
        for row in rows:
            kind: Kind = "attack" if isinstance(row, Attacked) else "measure"
            text = getattr(row, kind)
            yield EvaluationStage(kind, text, "test", row.test)
            if row.train:
                yield EvaluationStage(kind, text, "train", row.train)

    @property
    def clean(self) -> dict[SplitName, int]:
        """The number of examples by split that are evaluated clean: all test examples, attacked training examples."""
        counts: dict[SplitName, int] = {}
        for stage in self.stages:
            if stage.split == "test" or stage.kind == "attack":
                counts[stage.split] = max(stage.examples, counts.get(stage.split, 0))
        return counts

    def stage_names(self, registry: Registry, checkpoint: str) -> list[str]:
        """The names of the plan's stages, in their order."""
        names = [stage.name(title(registry, stage.kind, stage.text)) for stage in self.stages]
        return [f"{checkpoint}: {name}" for name in ("clean", *names)]


def choose_plan(
    registry: Registry,
    fixed: Fixed,
    checkpoint: str,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    examples: int | None = None,
    train: int | None = None,
) -> Plan:
    """The protocol's plan of a checkpoint, or a plan of the attacks and measures that are named.

    Parameters
    ----------
    registry : Registry
        Finds the components.
    fixed : Fixed
        The protocol's fixed part.
    checkpoint : str
        "best" has the protocol's plan of the best checkpoint, any other name that of the last.
    attacks, measures : tuple of str
        Component texts. A measure may be a pattern such as "*" or "flat*": every matching measure, under every
        coupling. Without any, the protocol's plan is returned, each row on at most `examples` and `train` examples.
    examples : int or None
        Number of test examples (None: as many as the protocol's plan uses).
    train : int or None
        Number of training examples (None: for named components 0, for the protocol's rows `examples`).

    Raises
    ------
    UsageError
        If a component is unknown or not defined under the threat's norm, no measure matches a pattern, a number is
        below 2, or there are fewer examples.
    """
    for option, count, split in (("--examples", examples, "test"), ("--train", train, "train")):
        available = getattr(fixed.data, split).count
        if count is not None and not 2 <= count <= available:
            advice = f"leave {option} out" if not available else "ask for " + ("2 at least" if count < 2 else "fewer")
            raise UsageError(f"{option} {count}: there are {available} {split} examples; {advice}")
    own = Plan.of(fixed, "best" if checkpoint == "best" else "last")
    if not attacks and not measures:
        return own.limited(examples, train)
    test = examples or own.clean["test"]
    attacked = [resolve(registry, "attack", text) for text in attacks]
    measured = [resolve(registry, "measure", text) for text in _matching(registry, measures)]
    for component in (*attacked, *measured):
        check_norm(component, fixed.threat.norm)
    return Plan(
        tuple(Attacked(attack=one.canonical, test=test, train=train or 0) for one in attacked),
        tuple(Measured(measure=one.canonical, test=test, train=train or 0) for one in measured),
    )


def _matching(registry: Registry, texts: tuple[str, ...]) -> Iterator[str]:
    """The texts, each pattern replaced by the measures whose names match it, under every coupling."""
    for text in texts:
        if "*" not in text.partition("(")[0]:
            yield text
            continue
        names = registry.names("measure", text)
        if not names:
            raise UsageError(f"no measure matches '{text}'; see `robflat-bench list measures`")
        for name in names:
            info: MeasureInfo = registry.get("measure", name).info
            couplings = info.couplings if "coupling" in info.params.model_fields else ()
            yield from [f"{name}(coupling={coupling})" for coupling in couplings] or [name]
