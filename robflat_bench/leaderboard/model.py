"""The board as data: the content of `board.json`, and everything that the site and the terminal show.

Errors are fractions in [0,1], losses are in nats; lower ranks first in every ranking. Every number is derived from
committed records. `build.py` computes it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from robflat_bench.analysis.statistics import Place
from robflat_bench.config.protocol import Checkpoint
from robflat_bench.core import Strict, ThreatNorm
from robflat_bench.records.quantities import Unit
from robflat_bench.records.record import Fraction

Tier = Literal["self-reported", "re-evaluated", "reproduced"]
TIERS: tuple[Tier, ...] = get_args(Tier)
"""Lowest first."""
RANKED_AT: Checkpoint = "last"
"""The checkpoint that is ranked."""
Status = Literal["active", "superseded", "retracted"]
Derived = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""A computed number, rounded to six digits, so that machines with different rounding agree."""


class BoardColumn(Strict):
    """A column of the board.

    Attributes
    ----------
    id : unique on its board: `results.quantities.column_id`, or "robust_error" for the per-example worst case over
        clean images and all attacks, on the examples that every attack met.
    title : short heading.
    n : number of test examples.
    protocol : False for a measure that only an added evaluation has.
    """

    id: str
    title: str
    unit: Unit
    n: int
    protocol: bool = True


class RowValue(Strict):
    """One quantity of one row.

    Attributes
    ----------
    mean : over seeds.
    sd : standard deviation over seeds; None with one seed.
    low, high : 95 % confidence interval of the method; None with one seed, which says nothing of the method.
    standard_error : over examples, of the single network; None with several seeds.
    seeds : number of seeds.
    """

    mean: Derived
    sd: Derived | None = None
    low: Derived | None = None
    high: Derived | None = None
    standard_error: Derived | None = None
    seeds: int

    @property
    def side(self) -> float | None:
        """The longer side of the interval, which text writes behind \u00b1; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return max(self.mean - self.low, self.high - self.mean)


class BoardRun(Strict):
    """One active record.

    Attributes
    ----------
    folder : below `leaderboard/records`.
    weights : checkpoint -> SHA-256.
    values : checkpoint -> column -> value of this network.
    flags : reasons to distrust an attack on more than 1 % of the examples, in words; empty is good.
    forward, backward : image passes of training.
    seconds, evaluation_seconds : wall-clock time of the whole run, and of its evaluation.
    """

    key: str
    seed: int
    folder: str
    tier: Tier
    submitted: str
    weights: dict[str, str]
    values: dict[Checkpoint, dict[str, Derived]]
    flags: tuple[str, ...]
    forward: int
    backward: int
    seconds: Derived
    evaluation_seconds: Derived


class BoardRow(Strict):
    """A method under one recipe, with all its seeds.

    Attributes
    ----------
    id : slug of the label, unique on its board.
    changes : recipe entries that differ from the protocol.
    tier : the lowest tier of its runs.
    values : checkpoint -> column -> value over seeds.
    places : ranking (a column) -> rank at the board's checkpoint; empty where `unranked` gives the reason.
    forward, backward, seconds, evaluation_seconds : as in `BoardRun`, means over seeds.
    runs : active runs, by seed.
    """

    id: str
    label: str
    method: str
    changes: dict[str, Any]
    tier: Tier
    extra_data: bool
    plugins: dict[str, str]
    values: dict[Checkpoint, dict[str, RowValue]]
    places: dict[str, Place] = Field(default_factory=dict)
    unranked: str = ""
    forward: Derived
    backward: Derived
    seconds: Derived
    evaluation_seconds: Derived
    runs: tuple[BoardRun, ...]

    def value(self, checkpoint: str, column: str) -> RowValue | None:
        """The row's value in a column at a checkpoint ("best" or "last"); None where it has none."""
        found: RowValue | None = self.values.get(checkpoint, {}).get(column)  # type: ignore[call-overload]
        return found


class CorrelationValue(Strict):
    """One statistic of a measure with a target over methods.

    Attributes
    ----------
    value : None where it is undefined; `reason` says why.
    low, high : 95 % interval from resampling methods with their seeds; None below 10 methods.
    """

    name: str
    value: Derived | None
    low: Derived | None = None
    high: Derived | None = None
    reason: str = ""


class Correlation(Strict):
    """A measure (`quantity`) against a robustness target, over the `models` rows that have both."""

    quantity: str
    target: str
    checkpoint: Checkpoint
    models: int
    statistics: tuple[CorrelationValue, ...]


Verdict = Literal["supported", "contradicted", "undecided", "not testable"]


class ClaimPart(Strict):
    """One number of a claim, against the threshold that the claim puts below it.

    Attributes
    ----------
    measured : the quantity, in words.
    threshold : the claim says that the quantity is above it.
    low, high : 95 % interval.
    n : what the estimate counts, in words.
    reason : why there is no interval; "" where there is.
    decides : False for a number that is reported and does not enter the verdict of the claim.
    """

    measured: str
    threshold: Derived
    value: Derived | None = None
    low: Derived | None = None
    high: Derived | None = None
    n: str = ""
    reason: str = ""
    decides: bool = True

    @property
    def verdict(self) -> Verdict:
        """By the interval: entirely above the threshold, entirely below, or neither."""
        if self.low is None or self.high is None:
            return "not testable"
        if self.low > self.threshold:
            return "supported"
        return "contradicted" if self.high < self.threshold else "undecided"


class Claim(Strict):
    """A claim of the paper, or an objection to it, decided on one board.

    Attributes
    ----------
    claim : the claim in a sentence.
    source : where it is made.
    rule : how its numbers and their intervals are made, the same on every board.
    sentence : the verdict with numbers and n.
    """

    id: str
    claim: str
    source: str
    rule: str
    verdict: Verdict
    sentence: str
    parts: tuple[ClaimPart, ...]

    @property
    def evidence(self) -> str:
        """The sentence without its verdict."""
        return self.sentence.removeprefix(f"{self.verdict.capitalize()}: ")


class Reference(Strict):
    """A number published elsewhere; never ranked."""

    label: str
    clean_error: Fraction | None = None
    robust_error: Fraction | None = None
    attack: str
    source: str
    note: str = ""


class Board(Strict):
    """One protocol on one dataset.

    Attributes
    ----------
    checkpoint : the checkpoint that is ranked.
    quantities : the columns.
    norm : the threat's; board.json leaves the default out.
    rankings : ranked columns; the first orders the board.
    """

    id: str
    protocol: str
    version: str
    hash: str
    summary: str
    dataset: str
    canonical: bool
    epsilon: float
    norm: ThreatNorm = "linf"
    backbone: str
    checkpoint: Checkpoint
    quantities: tuple[BoardColumn, ...]
    rankings: tuple[str, ...]
    rows: tuple[BoardRow, ...]
    correlations: tuple[Correlation, ...] = ()
    claims: tuple[Claim, ...] = ()
    references: tuple[Reference, ...] = ()

    @property
    def titles(self) -> dict[str, str]:
        """Column -> title."""
        return {column.id: column.title for column in self.quantities}

    @property
    def primary(self) -> list[str]:
        """The ranked measures that lead: the first of each name, at most two."""
        first: dict[str, str] = {}
        for id in self.rankings[1:]:
            first.setdefault(id.partition("(")[0], id)
        return [*first.values()][:2]

    @model_serializer(mode="wrap")
    def _as_before_norms(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = content(self)
        return {key: value for key, value in found.items() if (key, value) != ("norm", "linf")}

    def column(self, id: str) -> BoardColumn:
        """The column with this identifier; ValueError where the board has none."""
        found = next((column for column in self.quantities if column.id == id), None)
        if found is None:
            raise ValueError(f"board {self.id} has no quantity {id!r:.120}")
        return found


class Withdrawn(Strict):
    """A superseded or retracted run: its record stays, with the reason."""

    board: str
    label: str
    seed: int
    key: str
    folder: str
    status: Status
    reason: str


class Change(Strict):
    """One event of the board. date: YYYY-MM-DD."""

    date: str
    title: str
    text: str


class Leaderboard(Strict):
    """All boards; changes newest first."""

    schema_version: Literal[1] = 1
    boards: tuple[Board, ...]
    withdrawn: tuple[Withdrawn, ...] = ()
    changes: tuple[Change, ...] = ()
