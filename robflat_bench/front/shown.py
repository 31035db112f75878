"""Results of runs and evaluations as grids: every number with its standard error and n."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.text import next_line, number, options, percent

if TYPE_CHECKING:
    from robflat_bench.front.measurements import Measurement
    from robflat_bench.records.quantities import Name, Outcomes, QuantityValue
    from robflat_bench.records.record import MeasureResult, Result, RunRecord
    from robflat_bench.records.store import RunFolder, Store
    from robflat_bench.registry.registry import Registry


MEASURE_COLUMNS = ("measure", "split", "value ± standard error", "n", "s", "image passes")
MEASURE_HEADING = "measures; image passes: forward + backward"


def measure_grid(registry: Registry, results: Sequence[Result]) -> Grid | None:
    """The measures of results with their cost; None where nothing was measured."""
    rows = [
        row
        for result in results
        for split, measures in (("test", result.measures), ("train", result.measures_train))
        for name, found in measures.items()
        for row in _measure_rows(registry, name, split, found)
    ]
    return grid(MEASURE_HEADING, MEASURE_COLUMNS, rows, right=2) if rows else None


def measured_grid(registry: Registry, found: Measurement) -> Grid:
    """One measurement with its cost."""
    return grid(MEASURE_HEADING, MEASURE_COLUMNS, _measure_rows(registry, found.measure, "test", found), right=2)


def _measure_rows(registry: Registry, name: str, split: str, found: MeasureResult | Measurement) -> Iterator[list[Any]]:
    from robflat_bench.registry.components import title

    residual = found.details.get("residual")
    value = "none" if found.value is None else number(found.value, found.standard_error)
    if found.value is not None and found.standard_error is None and residual is not None:
        value += f" (residual {residual:.1e})"
    passes = f"{found.forward:,} + {found.backward:,}"
    yield [title(registry, "measure", name), split, value, found.n, f"{found.seconds:.1f}", passes]
    if found.reason:
        yield [f"  none: {found.reason}"]


def quantity_text(found: QuantityValue) -> str:
    """A value with its standard error: errors in percent, losses and measures as numbers."""
    from robflat_bench.records.quantities import quantity_unit

    form = percent if quantity_unit(found.quantity) == "fraction" else number
    return form(found.value, found.standard_error)


def result_grid(
    heading: str, registry: Registry, results: Mapping[Any, Result], outcomes: Outcomes, measures: bool = True
) -> Grid:
    """The results, a column for each checkpoint: values ± standard errors over examples."""
    from robflat_bench.records.quantities import quantity_label, quantity_values

    rows: dict[str, dict[str, str]] = {}
    for checkpoint, result in results.items():
        for found in quantity_values(checkpoint, result, outcomes):
            if measures or found.quantity != "measure":
                rows.setdefault(quantity_label(registry, found), {})[checkpoint] = quantity_text(found)
    epochs = ["epoch", *("-" if result.epoch is None else str(result.epoch + 1) for result in results.values())]
    shown = [[name, *(cells.get(checkpoint, "-") for checkpoint in results)] for name, cells in rows.items()]
    flags = ["flags", *(", ".join(result.flags.reasons()) or "none" for result in results.values())]
    filled = [row for row in (*shown, epochs, flags) if set(row[1:]) != {"-"}]
    return grid(heading, ["", *results], filled, right=1)


def store_parts(registry: Registry, store: Store, rows: Sequence[Mapping[str, Any]]) -> Iterator[Grid | str]:
    """The runs of a store, a table for each protocol: rows of `records.overview.overview`."""
    columns, keys = ("key", "run", "seed", "state"), {row["key"] for row in rows}
    letters = next(count for count in range(8, 65) if len({key[:count] for key in keys}) == len(keys))
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        runs = [row for row in rows if row["protocol"] == protocol]
        counts = [_by_quantity(row["n"]) for row in runs]
        names = list(dict.fromkeys(name for each in counts for name, n in each.items() if n is not None))
        titles = [_column(registry, name, [each[name] for each in counts if each.get(name)]) for name in names]
        cells = [[row["key"][:letters], row["run"], row["seed"], row["state"], *_numbers(row, names)] for row in runs]
        heading = f"{store.root}: runs under {protocol}; last checkpoint, test images"
        yield grid(heading, [*columns, *titles], cells, right=4, keep=2)
    if rows:
        yield "robust error: worst case over all attacks, which boards rank. Lower is better, and flatter"
    else:
        yield grid(f"no runs in {store.root}", columns, [])
    done = [row["key"][:letters] for row in rows if row["state"] == "done"]
    line = ["results", "show", done[0]] if done else ["run", "--method", "at"]
    yield next_line(*line, *options(store.root))


def _by_quantity(row: Mapping[str, Any]) -> dict[tuple[Name, str], Any]:
    """Quantity and its attack or measure -> a number of an overview's row, or of its `n`."""
    found: dict[tuple[Name, str], Any] = {
        ("worst_case", ""): row["worst_case"],
        ("clean_error", ""): row["clean_error"],
    }
    found |= {("measure", measure): value for measure, value in row["measures"].items()}
    return found | {("robust_error", attack): value for attack, value in row["robust_error"].items()}


def _numbers(row: Mapping[str, Any], names: Sequence[tuple[Name, str]]) -> Iterator[str]:
    """The row's cells under these names, without their units."""
    from robflat_bench.records.quantities import quantity_unit

    found = _by_quantity(row)
    for name in names:
        form = percent if quantity_unit(*name) == "fraction" else number
        yield form(found.get(name)).removesuffix(" %")


def _column(registry: Registry, name: tuple[Name, str], counts: Sequence[int]) -> str:
    """`clean error, %, n=500`: the heading of a quantity's column, with its unit and number of examples."""
    from robflat_bench.records.quantities import heading, quantity_unit

    unit = quantity_unit(*name).replace("fraction", "%")
    least, most = min(counts), max(counts)
    n = f"n={least:,}" if least == most else f"n={least:,}-{most:,}"
    return ", ".join(filter(None, (heading(registry, *name), unit, n)))


def run_parts(registry: Registry, folder: RunFolder) -> Iterator[Grid | str]:
    """The result of a finished run, for `report`."""
    record, outcomes = folder.evidence()
    spec, budget = record.spec, record.budget
    heading = f"{spec.label}  |  {spec.protocol.name} {spec.protocol.version}, seed {spec.seed}"
    yield result_grid(heading, registry, record.results, outcomes)
    if not spec.dataset.canonical:
        yield f"data: {spec.dataset.origin} is not the canonical copy; runs on it are ranked separately"
    yield (
        f"{budget.seconds:.0f} s ({budget.evaluation_seconds:.0f} s evaluation), "
        f"{budget.peak_memory_bytes / 1e9:.2f} GB peak, training {budget.forward:,} forward and "
        f"{budget.backward:,} backward image passes"
    )
    yield "values ± standard error over examples, of this one network; another seed may differ by more"
    yield f"record: {folder.record_file}"
    yield from _next_lines(registry, folder, record)


def _next_lines(registry: Registry, folder: RunFolder, record: RunRecord) -> Iterator[str]:
    """Whether a board ranks a run, and the lines to type next."""
    from robflat_bench.config.protocol import recorded

    spec, store = record.spec, folder.store
    protocol = recorded(registry, spec.protocol.name, spec.protocol.version)
    if not protocol:
        yield f"not ranked: {spec.protocol.name} is no protocol of `robflat-bench list protocols`; next"
        lines = [["results", "show", record.key[:8]]]
    else:
        yield "no ranking follows from one run: boards rank three seeds; next, the same command with another --seed, or"
        other = "trades" if spec.label == "at" else "at"
        lines = [
            ["evaluate", record.key[:8], "--measure", "average-case(xi=0.25)"],
            ["results", "compare", spec.label, other],
            ["leaderboard", "show"],
        ]
    yield from (f"    {shlex.join(['robflat-bench', *line, *options(store, protocol)])}" for line in lines)
