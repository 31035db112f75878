"""Everything a person or a script reads: the console, tables, JSON, progress, and options commands share."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from robflat_bench.config.protocol import Protocol
    from robflat_bench.leaderboard.entries import Submission
    from robflat_bench.registry.plugins import Plugins
    from robflat_bench.registry.registry import Registry
    from robflat_bench.results.quantities import Outcomes, QuantityValue
    from robflat_bench.results.record import Result
    from robflat_bench.results.store import RunFolder

Function = TypeVar("Function", bound=Callable[..., Any])


# ---------------------------------------------------------------------------------------------------------
# Options that several commands share
# ---------------------------------------------------------------------------------------------------------

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs lie.",
)
data_option = click.option(
    "--data", envvar="ROBFLAT_BENCH_DATA", help="Folder below which data sets lie [env: ROBFLAT_BENCH_DATA]."
)
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
compile_option = click.option("--compile", is_flag=True, help="Use torch.compile; on CUDA, attacks as CUDA graphs.")
protocol_option = click.option(
    "--protocol", default="digits-linf", show_default=True, help="A protocol's name, or a TOML file."
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipe (recipe.epochs=10): shows in the row's name. fixed.* leaves the board.",
)
plugin_option = click.option(
    "--plugin", "files", multiple=True, type=click.Path(path_type=Path), help="A one-file plugin (FILE.py)."
)


def registry(files: Sequence[Path] = ()) -> Registry:
    """The registry, after one line on stderr for every broken plugin."""
    from robflat_bench.registry.registry import discover

    found = discover(tuple(files))
    note_broken(found.plugins)
    return found


def note_broken(plugins: Plugins) -> None:
    """One line on stderr for every broken plugin."""
    for broken in plugins.broken:
        note(f"{broken}; `robflat-bench plugin list` shows all")


def protocol(registry: Registry, name: str) -> Protocol:
    """A protocol by name or file; a file's is known under its name from then on."""
    from robflat_bench.config.protocol import load

    found = load(registry, name)
    if name not in registry.protocols:
        registry.admit_protocol(found.name, Path(name))
    return found


def own_runs(store: Path, registry: Registry, names: Sequence[str]) -> list[Submission]:
    """The finished runs of a store under these protocols (names or files; none: all that are known here), after a line
    on stderr about those under others that nobody asked to leave out."""
    from robflat_bench.leaderboard.entries import store_submissions

    hashes = {protocol(registry, name).hash for name in names}
    found, others = store_submissions(store, registry)
    chosen = [run for run in found if not names or run.record.protocol.hash in hashes]
    if others and (not names or not chosen):
        listed = ", ".join(f"{count} under {name}" for name, count in sorted(others.items()))
        note(f"left out, since no such protocol is known here: in {store} {listed}; --protocol FILE.toml names one")
    return chosen


# ---------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A console on stdout (or stderr); piped output is not wrapped to 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200, highlight=False)


def note(text: str) -> None:
    """One line for the person, on stderr."""
    say(f"robflat-bench: {text}")


def say(line: str) -> None:
    """On stderr, if anybody still reads it: a closed pipe is no reason to end a run."""
    with contextlib.suppress(BrokenPipeError):
        click.echo(line, err=True)


def emit_json(value: Any) -> None:
    """One document on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


def table(heading: str, columns: Iterable[str], rows: Iterable[Iterable[str]], right: int | None = None) -> Table:
    """A table of plain text (nothing in it is read as markup); columns from `right` on are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(heading), box=box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if right is not None and number >= right else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def percent(value: float | None, error: float | None = None) -> str:
    """`35.0 %` or `35.0 ± 2.1 %`."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"


def number(value: float | None, error: float | None = None) -> str:
    """`0.53` or `0.53 ± 0.02`; what is as small as its third decimal, or large, with four significant digits."""
    if value is None:
        return "-"
    style = ".3f" if value == 0 or 0.01 <= abs(value) < 10_000 else ".3e"
    return f"{value:{style}}" if error is None else f"{value:{style}} ± {error:{style}}"


def duration(seconds: float) -> str:
    """`45 s`, `14 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def measure_rows(registry: Registry, results: Sequence[Result]) -> list[list[str]]:
    """Rows of the table of measures: value with its standard error or residual, n, seconds and image passes."""
    from robflat_bench.registry.components import title

    rows = []
    for result in results:
        for split, measures in (("test", result.measures), ("train", result.measures_train)):
            for name, found in measures.items():
                residual = found.details.get("residual")
                value = number(found.value, found.standard_error)
                if found.value is None:
                    value = "none"
                elif found.standard_error is None and residual is not None:
                    value += f" (residual {residual:.1e})"
                passes = f"{found.forward:,} + {found.backward:,}"
                rows.append(
                    [title(registry, "measure", name), split, value, str(found.n), f"{found.seconds:.1f}", passes]
                )
                if found.reason:
                    rows.append([f"  none: {found.reason}", "", "", "", "", ""])
    return rows


def written(found: QuantityValue) -> str:
    """A value with its standard error: errors in percent, losses and measures as numbers."""
    from robflat_bench.results.quantities import quantity_unit

    form = percent if quantity_unit(found.quantity) == "fraction" else number
    return form(found.value, found.standard_error)


def result_rows(registry: Registry, results: Mapping[Any, Result], outcomes: Outcomes) -> list[list[str]]:
    """Rows of the result table, one column per checkpoint: values with their standard errors over examples."""
    from robflat_bench.results.quantities import quantity_label, quantity_values

    rows: dict[str, dict[str, str]] = {}
    for checkpoint, result in results.items():
        for found in quantity_values(checkpoint, result, outcomes):
            rows.setdefault(quantity_label(registry, found), {})[checkpoint] = written(found)
    epochs = ["epoch", *("-" if result.epoch is None else str(result.epoch + 1) for result in results.values())]
    shown = [[name, *(cells.get(checkpoint, "-") for checkpoint in results)] for name, cells in rows.items()]
    flags = ["flags", *(", ".join(result.flags.reasons()) or "none" for result in results.values())]
    return [row for row in (epochs, *shown, flags) if set(row[1:]) != {"-"}]


def show_run(registry: Registry, folder: RunFolder) -> None:
    """The result of a finished run as a person reads it."""
    record, outcomes = folder.evidence()
    spec, budget = record.spec, record.budget
    out = console()
    heading = f"{spec.label}  |  {spec.protocol.name} {spec.protocol.version}, seed {spec.seed}"
    rows = result_rows(registry, record.results, outcomes)
    out.print(table(heading, ["", *record.results], rows, right=1))
    if not spec.dataset.canonical:
        out.print(f"data: {spec.dataset.origin} is not the canonical copy; such rows are ranked apart", markup=False)
    out.print(
        f"{budget.seconds:.0f} s ({budget.evaluation_seconds:.0f} s evaluation), "
        f"{budget.peak_memory_bytes / 1e9:.2f} GB peak, training {budget.forward:,} forward and "
        f"{budget.backward:,} backward image passes",
        markup=False,
    )
    out.print(
        "values ± standard error over examples, of this one network; another seed may differ by more: "
        "no ranking follows from one run",
        markup=False,
    )
    out.print(f"record: {folder.record_file}", markup=False, soft_wrap=True)
