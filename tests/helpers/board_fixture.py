"""A synthetic leaderboard: rows, seeds and intervals from a seeded generator, built through the real models.

The site's tests render `make()`; `make(hostile=TEXT)` puts TEXT into every free text.
"""

from __future__ import annotations

import json
import math
import random
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

from robflat_bench.analysis.statistics import Comparison, Place
from robflat_bench.config.protocol import Protocol, load
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.leaderboard.comparison import Comparisons, compared_columns
from robflat_bench.leaderboard.model import (
    Board,
    BoardColumn,
    BoardRow,
    BoardRun,
    Change,
    Claim,
    ClaimPart,
    Correlation,
    CorrelationValue,
    Leaderboard,
    Reference,
    RowValue,
    Withdrawn,
)
from robflat_bench.leaderboard.site.cards import method_card
from robflat_bench.leaderboard.site.curves import TrainingDocument
from robflat_bench.leaderboard.site.pages import Sources
from robflat_bench.leaderboard.site.thumbnails import Thumbnails, thumbnails
from robflat_bench.records.quantities import QuantityValue
from robflat_bench.records.record import Budget, Epoch, Flags, Gap, MeasureResult, Result, RunRecord, TestTrain
from robflat_bench.registry.components import compose, slug
from robflat_bench.registry.registry import Registry, discover

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
METHODS = {  # label: robust error, clean error, average-case flatness
    "trades+awp": (0.338, 0.079, 0.62),
    "trades(beta=9)": (0.357, 0.082, 0.83),
    "at+awp": (0.362, 0.061, 0.71),
    "trades": (0.371, 0.070, 0.98),
    "mart": (0.379, 0.066, 0.91),
    "at+ema+label-smoothing": (0.384, 0.058, 1.12),
    "hat": (0.391, 0.049, 1.21),
    "at": (0.402, 0.054, 1.36),
    "at [schedule=cyclic]": (0.409, 0.052, 1.18),
    "free-at": (0.437, 0.060, 1.52),
    "fgsm-rs": (0.461, 0.047, 1.71),
    "at+unlabeled": (0.349, 0.063, 0.94),
    "gairat": (0.448, 0.051, 1.44),
    "score": (0.383, 0.094, 0.88),
}
SINGLE = ("gairat", "score")
PGD = 'pgd(init="uniform", loss="ce", restarts=3, steps=20)'
APGD = 'autoattack(batch=250, fast=true, seed=0, version="apgd")'
PAGE = """# {}

What is *allowed*, and what is not. See [the paper](https://arxiv.org/abs/2104.04448).

| one | two |
|---|---|
| a | b |
"""
DATASET = DatasetRef(
    name="digits", checksum="e0" * 32, spare="e2" * 32, canonical=True, origin="scikit-learn digits (1,797 images)"
)


@cache
def registry() -> Registry:
    return discover()


def make(hostile: str = "", methods: int = len(METHODS), seeds: int = 3) -> tuple[Leaderboard, Sources]:
    """The leaderboard and its sources. methods: number of rows; rows beyond the named ones are variants of TRADES."""
    protocol = load(registry())
    labels = dict(METHODS)
    chance = random.Random(5)
    for k in range(len(METHODS), methods):
        labels[f"trades(beta={k / 100})"] = (
            chance.uniform(0.3, 0.5),
            chance.uniform(0.04, 0.1),
            chance.uniform(0.5, 2),
        )
    records: dict[str, RunRecord] = {}
    rows = [_row(protocol, label, labels[label], seeds, records, hostile) for label in list(labels)[:methods]]
    ids = ["robust_error", *(f"measure:{row.measure}" for row in protocol.fixed.measures)]
    rows = _ranked(rows, ids)
    gone = _record(protocol, "at", 9, (0.4, 0.05, 1.3), random.Random(9))
    records[gone.key] = gone
    board = Board(
        id="digits-linf-1.0",
        protocol=hostile or protocol.name,
        version=protocol.version,
        hash=protocol.hash,
        summary=hostile or protocol.summary,
        dataset=hostile or "digits",
        canonical=True,
        epsilon=protocol.fixed.threat.epsilon,
        backbone=hostile or protocol.fixed.backbone,
        checkpoint="last",
        quantities=_quantities(protocol, hostile),
        rankings=tuple(ids),
        rows=tuple(rows),
        correlations=_correlations(ids[1:], hostile),
        claims=_claims(hostile),
        references=(
            Reference(
                label=hostile or "TRADES, WRN-34-10",
                clean_error=0.151,
                robust_error=0.475,
                attack=hostile or "AutoAttack",
                source=hostile or "https://arxiv.org/abs/2003.01690",
                note=hostile or "CIFAR-10, 8/255: another dataset, for orientation only",
            ),
            Reference(
                label="AT, PreActResNet-18",
                clean_error=None,
                robust_error=0.483,
                attack="PGD-10",
                source="Rice et al., ICML 2020",
            ),
        ),
    )
    leaderboard = Leaderboard(
        boards=(board,),
        withdrawn=(
            Withdrawn(
                board=board.id,
                label=hostile or "at",
                seed=9,
                key=gone.key,
                folder=f"{board.id}/at/seed-9-{gone.key}",
                status="retracted",
                reason=hostile or "trained on held-out images by mistake; reported by its authors",
            ),
        ),
        changes=(
            Change(
                date="2026-11-23",
                title=hostile or "TRADES-AWP added",
                text=hostile or "Three seeds, re-evaluated from their weights.",
            ),
            Change(date="2026-11-20", title="First board", text="digits-linf 1.0 opens with eleven methods."),
        ),
    )
    cards = {row.method: method_card(registry(), row.method) for row in rows}
    page = hostile or PAGE
    training = TrainingDocument.model_validate_json((FIGURES / "training.json").read_bytes())
    if hostile:
        raw = json.loads(training.model_dump_json())
        for reading in raw["readings"]:
            reading["model"]["label"] = hostile
            reading["values"]["titles"] = dict.fromkeys(reading["values"]["titles"], hostile)
        training = TrainingDocument.model_validate(raw)
    return leaderboard, Sources(
        records=records,
        values={
            key: {name: _network_values(found) for name, found in one.results.items()} for key, one in records.items()
        },
        cards=cards,
        protocols={board.id: protocol},
        pages={name: page.replace("{}", name.capitalize()) for name in ("rules", "submit")},
        trainings=(training,),
        comparisons={board.id: _comparisons(board)} if len(board.rows) > 1 else {},
        images={board.id: _images()},
    )


def _comparisons(board: Board) -> Comparisons:
    """Every pair, of made-up outcomes on 250 images and of the runs' numbers, with made-up tests."""
    chance, columns = np.random.default_rng(4), compared_columns(board)
    wrong = {
        row.id: chance.random((len(row.runs), 250)) < row.values["last"]["robust_error"].mean for row in board.rows
    }

    def mean(row: BoardRow, name: str) -> float:
        return float(wrong[row.id].mean()) if name == "robust_error" else row.values["last"][name].mean

    def compared(a: BoardRow, b: BoardRow, name: str) -> Comparison:
        difference, p = mean(a, name) - mean(b, name), float(chance.random())
        if min(len(a.runs), len(b.runs)) == 1:
            return Comparison(difference, None, None, None, None, ())
        reach = abs(difference) * 2 * p
        return Comparison(difference, difference - reach, difference + reach, p, 1.4 * reach, ())

    return Comparisons(
        {
            (a.id, b.id): {column.id: compared(a, b, column.id) for column in columns}
            for a, b in combinations(board.rows, 2)
        },
        wrong,
    )


def _images() -> Thumbnails:
    """250 grey images, 8x8."""
    grey = np.random.default_rng(1).integers(0, 256, (250, 8, 8, 1), np.uint8)
    return thumbnails(grey, np.arange(250) % 10, "digits")


def _quantities(protocol: Protocol, hostile: str) -> tuple[BoardColumn, ...]:
    plain = [
        ("robust_error", "Robust error", "fraction", 250, True),
        ("clean_error", "Clean error", "fraction", 500, True),
        (f"attack:{PGD}", "PGD-20 x 3", "fraction", 500, True),
        (f"attack:{APGD}", "apgd tier of AutoAttack", "fraction", 250, True),
        ("robust_loss", "Robust loss", "nats", 500, True),
        ("gap_robust_error", "Gap in robust error", "fraction", 500, True),
        ("gap_robust_loss", "Gap in robust loss", "nats", 500, True),
        (f"measure:{protocol.fixed.measures[0].measure}", "Average-case flatness, xi=0.5", "nats", 250, True),
        (f"measure:{protocol.fixed.measures[1].measure}", "Worst-case flatness, xi=0.03", "nats", 250, True),
        ("measure:hessian-lambda-max(iterations=20)", "Largest Hessian eigenvalue", "", 250, False),
    ]  # fmt: skip
    return tuple(
        BoardColumn(id=key, title=hostile or title, unit=unit, n=n, protocol=asked)
        for key, title, unit, n, asked in plain
    )


def _row(protocol, label, truth, seeds, records, hostile) -> BoardRow:
    chance = random.Random(label)
    runs, method = [], label.partition(" [")[0]
    for seed in range(1, 2 if label in SINGLE else seeds + 1):
        record = _record(protocol, label, seed, truth, chance, hostile)
        records[record.key] = record
        values = {point: _values(protocol, result, chance) for point, result in record.results.items()}
        runs.append(
            BoardRun(
                key=record.key,
                seed=seed,
                folder=f"digits-linf-1.0/{slug(label)}/seed-{seed}-{record.key}",
                tier=("reproduced", "re-evaluated", "self-reported")[len(label) % 3],
                submitted="2026-11-20",
                weights={point: result.weights for point, result in record.results.items()},
                values=values,
                flags=(hostile or "Square broke 3 images that no white-box attack broke",)
                if label == "fgsm-rs"
                else (),
                forward=record.budget.forward,
                backward=record.budget.backward,
                seconds=record.budget.seconds,
                evaluation_seconds=record.budget.evaluation_seconds,
            )
        )
    return BoardRow(
        id=slug(label),
        label=hostile or label,
        method=compose(registry(), method).canonical,
        changes={"schedule": hostile or "cyclic(cycles=1)"} if "cyclic" in label else {},
        tier=runs[0].tier,
        extra_data="unlabeled" in label,
        plugins={hostile or "robflat-mart 0.2": "ab" * 32} if label == "mart" else {},
        values={point: _summary([run.values[point] for run in runs]) for point in ("best", "last")},
        unranked=(hostile or "one seed only: a rank needs three") if label in SINGLE else "",
        forward=runs[0].forward,
        backward=runs[0].backward,
        seconds=sum(run.seconds for run in runs) / len(runs),
        evaluation_seconds=runs[0].evaluation_seconds,
        runs=tuple(runs),
    )


def _values(protocol, result: Result, chance: random.Random) -> dict[str, float]:
    found = {
        "robust_error": max(pair.test for pair in result.robust_error.values()),
        "clean_error": result.clean_error,
        "robust_loss": result.robust_loss.test,
        "gap_robust_error": result.gap.robust_error,
        "gap_robust_loss": result.gap.robust_loss,
        **{f"attack:{name}": pair.test for name, pair in result.robust_error.items()},
        **{
            f"measure:{name}": measured.value
            for name, measured in result.measures.items()
            if measured.value is not None
        },
    }
    if chance.random() < 0.9:
        found["measure:hessian-lambda-max(iterations=20)"] = chance.uniform(20, 900)
    return found


def _network_values(result: Result) -> list[QuantityValue]:
    """The numbers of a result, with made-up standard errors."""
    found = [QuantityValue("clean_error", "", "test", result.clean_error, 0.01, 500)]
    found += [
        QuantityValue("robust_error", name, "test", pair.test, 0.02, 250) for name, pair in result.robust_error.items()
    ]
    found += [QuantityValue("robust_loss", PGD, "test", result.robust_loss.test, 0.03, 500)]
    return found + [
        QuantityValue("measure", name, "test", one.value, one.standard_error, one.n)
        for name, one in result.measures.items()
    ]


def _summary(seeds: list[dict[str, float]]) -> dict[str, RowValue]:
    made = {}
    for name in seeds[0]:
        found = [values[name] for values in seeds if name in values]
        mean = sum(found) / len(found)
        if len(found) == 1:
            made[name] = RowValue(mean=mean, standard_error=0.03 * abs(mean), seeds=1)
            continue
        sd = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
        wide = 2 * sd + 0.01 * abs(mean)
        made[name] = RowValue(mean=mean, sd=sd, low=mean - wide, high=mean + 1.2 * wide, seeds=len(found))
    return made


def _ranked(rows: list[BoardRow], ids: list[str]) -> list[BoardRow]:
    def mean(row: BoardRow, name: str) -> float:
        return row.values["last"][name].mean

    ranked = [row for row in rows if not row.unranked]
    places: dict[str, dict[str, Place]] = {row.id: {} for row in ranked}
    for name in ids:
        order = sorted(ranked, key=lambda row: mean(row, name))
        for k, row in enumerate(order):
            letters = "abcdefgh"[min(k // 3, 7)] + ("bcdefgh"[min(k // 3, 6)] if k % 3 == 2 else "")
            low, high = max(1, k - 1), min(len(order), k + 4)
            places[row.id][name] = Place(rank=k + 1, low=low, high=high, letters=letters, lead=k < 3)
    done = [row.model_copy(update={"places": places.get(row.id, {})}) for row in rows]
    return sorted(done, key=lambda row: (bool(row.unranked), mean(row, "robust_error")))


def _claims(hostile: str) -> tuple[Claim, ...]:
    found = ClaimPart(measured="difference", threshold=0.0, value=0.4, low=0.1, high=0.7, n=hostile or "3 seeds")
    lacking = ClaimPart(measured="ratio", threshold=1.0, reason=hostile or "AT has 1 of 3 seeds")
    return tuple(
        Claim(
            id=id,
            claim=hostile or f"Claim {id} of the paper.",
            source=hostile or "the paper",
            rule=hostile or f"Rule of {id}.",
            verdict=part.verdict,
            sentence=hostile or f"{part.verdict.capitalize()}: numbers of {id}.",
            parts=(part,),
        )
        for id, part in (("C1", found), ("C2", lacking))
    )


def _correlations(measures: list[str], hostile: str) -> tuple[Correlation, ...]:
    made, chance = [], random.Random(3)
    for quantity in (*measures, "measure:hessian-lambda-max(iterations=20)"):
        for target in ("robust_error", "robust_loss", "gap_robust_loss"):
            for checkpoint in ("best", "last"):
                value = chance.uniform(-0.3, 0.95)
                lacking = quantity.startswith("measure:hess") and target == "gap_robust_loss"
                made.append(
                    Correlation(
                        quantity=quantity,
                        target=target,
                        checkpoint=checkpoint,
                        models=4 if lacking else 12,
                        statistics=tuple(
                            CorrelationValue(name=name, value=None, reason=hostile or "only 4 models have both")
                            if lacking
                            else CorrelationValue(name=name, value=value, low=value - 0.3, high=min(1, value + 0.2))
                            for name in ("spearman", "kendall", "pearson")
                        ),
                    )
                )
    return tuple(made)


def _record(protocol, label, seed, truth, chance, hostile="") -> RunRecord:
    method, _, changed = label.partition(" [")
    settings = (f"recipe.{changed.removesuffix(']')}",) if changed else ()
    spec = make_spec(registry(), load(registry(), settings=settings), compose(registry(), method), DATASET, seed)
    if hostile:
        spec = spec.model_copy(update={"label": hostile, "dataset": DATASET.model_copy(update={"origin": hostile})})
    epochs = spec.recipe.epochs
    budget = Budget(
        forward=int(chance.uniform(2e5, 9e5)),
        backward=int(chance.uniform(1e5, 8e5)),
        seconds=chance.uniform(50, 190),
        evaluation_seconds=46.4,
        peak_memory_bytes=794_341_376,
    )
    history = tuple(
        Epoch(
            epoch=k,
            learning_rate=0.1 if k < epochs / 2 else 0.01,
            train_loss=0.8 + 1.6 * math.exp(-k / 6),
            heldout_clean_error=truth[1] + 0.3 * math.exp(-k / 4) + chance.gauss(0, 0.004),
            heldout_robust_error=min(1.0, truth[0] + 0.5 * math.exp(-k / 6) + chance.gauss(0, 0.01)),
            heldout_robust_loss=1.1 + 1.2 * math.exp(-k / 6) + chance.gauss(0, 0.02),
            seconds=1.5,
        )
        for k in range(epochs)
    )
    best = min(history, key=lambda row: (row.heldout_robust_error, row.heldout_robust_loss)).epoch
    results = {
        point: _result(protocol, epoch, truth, chance, hostile)
        for point, epoch in (("best", best), ("last", epochs - 1))
    }
    return RunRecord(
        key=spec.key,
        spec=spec,
        protocol=spec.protocol,
        method=spec.method,
        seed=seed,
        dataset=spec.dataset,
        results=results,
        budget=budget,
        extra_data="unlabeled" in label,
        history=history,
        outcomes="7c" * 32,
        environment={
            "python": "3.11.7",
            "cpu": hostile or "AMD EPYC",
            "packages": {hostile or "torch": hostile or "2.15.0"},
        },
        provenance={"robflat_bench": "0.1.0", "source": "aa" * 32, "host": hostile or "5bce98f7"},
    )


def _result(protocol, epoch, truth, chance, hostile) -> Result:
    robust, clean, flat = truth
    robust, clean, flat = (
        max(0.0, value + chance.gauss(0, size)) for value, size in ((robust, 0.006), (clean, 0.003), (flat, 0.05))
    )
    measures = {
        row.measure: MeasureResult(
            value=flat * factor, standard_error=0.05 * flat, n=250, seconds=2.4, details={hostile or "loss": 1.08}
        )
        for row, factor in zip(protocol.fixed.measures, (1.0, 1.6), strict=True)
    }
    return Result(
        epoch=epoch,
        weights="5d" * 32,
        clean_error=clean,
        clean_error_train=clean / 2,
        robust_error={PGD: TestTrain(test=robust - 0.04, train=robust - 0.12), APGD: TestTrain(test=robust)},
        robust_loss=TestTrain(test=2.2 * robust + 0.3, train=2.2 * robust + 0.2),
        gap=Gap(robust_error=0.08, robust_loss=0.1),
        measures=measures,
        flags=Flags(zero_gradients=0.0, random_forward=False, pgd_beats_autoattack=0),
        seconds={"clean": 0.01, PGD: 1.1},
    )
