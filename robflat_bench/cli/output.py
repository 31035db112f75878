"""Output of commands (a report as JSON or tables, notes on stderr), and the options that commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import streams
from robflat_bench.cli.streams import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from robflat_bench.config.protocol import Protocol
    from robflat_bench.leaderboard.entries import Submission
    from robflat_bench.records.quantities import Outcomes, QuantityValue
    from robflat_bench.records.record import Result
    from robflat_bench.records.store import RunFolder
    from robflat_bench.registry.plugins import Plugins
    from robflat_bench.registry.registry import Registry

# ---------------------------------------------------------------------------------------------------------
# Options that several commands share
# ---------------------------------------------------------------------------------------------------------


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep an option's value for `report` and `registry`, so that no command passes it on."""
    context.meta[f"robflat_bench.{option.name}"] = value


def _reserve(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Keep stdout for the document of `--json`, before any plugin runs."""
    context.meta["robflat_bench.json"] = streams.reserve() if value else None


json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_reserve, help="Print one JSON document on stdout."
)
plugin_option = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_remember,
    help="Load a one-file plugin (FILE.py); repeatable.",
)
store_option = click.option(
    "--store", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
data_option = click.option("--data", envvar="ROBFLAT_BENCH_DATA", help="Folder of the data sets.", show_envvar=True)
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
compile_option = click.option("--compile", is_flag=True, help="Use torch.compile; on CUDA, attacks as CUDA graphs.")
protocol_option = click.option(
    "--protocol", default="digits-linf", show_default=True, help="Name of a protocol, or a TOML file."
)
protocols_option = click.option(
    "--protocol", "protocols", multiple=True, help="Only this board: a protocol's name, or a TOML file; repeatable."
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change the recipe (recipe.epochs=10), which shows in the run's name. A run with changed fixed.* is not "
    "ranked.",
)


def _remembered(option: str, default: Any) -> Any:
    context = click.get_current_context()
    return context.meta.get(f"robflat_bench.{option}", default) if context else default


def plugin_files() -> tuple[Path, ...]:
    """The files of this command's `--plugin` options."""
    return _remembered("plugins", ())  # type: ignore[no-any-return]


def plugin_options() -> list[str]:
    """The `--plugin FILE.py` options of this command, for a command that starts another."""
    return [part for file in plugin_files() for part in ("--plugin", str(file))]


def registry() -> Registry:
    """The registry with the plugin files of `--plugin`; every broken plugin is a line on stderr."""
    from robflat_bench.registry.registry import discover

    found = discover(plugin_files())
    note_broken(found.plugins)
    return found


def note_broken(plugins: Plugins) -> None:
    """One line on stderr for every broken plugin."""
    for broken in plugins.broken:
        note(f"{broken}; `robflat-bench plugin list` shows all")


def protocol(registry: Registry, name: str) -> Protocol:
    """Load a protocol by name or file; a file's protocol is known by its name afterwards."""
    from robflat_bench.config.protocol import load

    found = load(registry, name)
    if name not in registry.protocols:
        registry.admit_protocol(found.name, Path(name))
    return found


def own_runs(store: Path, registry: Registry, names: Sequence[str]) -> list[Submission]:
    """The finished runs of a store under these protocols (names or files; none: all that are known here).

    Runs under unknown protocols are named in a line on stderr, unless protocols were chosen and have runs.
    """
    from robflat_bench.leaderboard.entries import store_submissions

    hashes = {protocol(registry, name).hash for name in names}
    found, others = store_submissions(store, registry)
    chosen = [run for run in found if not names or run.record.protocol.hash in hashes]
    if others and (not names or not chosen):
        listed = ", ".join(f"{count} under {name}" for name, count in sorted(others.items()))
        note(f"left out, since their protocol is not known here: in {store} {listed}; add --protocol FILE.toml")
    return chosen


# ---------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------


def console(stderr: bool = False) -> Console:
    """A console on stdout (or stderr); piped output is 200 columns wide."""
    from robflat_bench.cli.console import CleanConsole

    stream = streams.unfiltered(sys.stderr if stderr else sys.stdout)
    return CleanConsole(file=stream, stderr=stderr, width=None if stream.isatty() else 200, highlight=False)


def note(text: str) -> None:
    """One line for the person, on stderr."""
    say(f"robflat-bench: {text}")


def say(line: str) -> None:
    """Write a line on stderr."""
    click.echo(visible(line), file=sys.stderr)


def show(line: object) -> None:
    """Write a line on stdout."""
    click.echo(visible(str(line)), file=sys.stdout)


def report(document: Any, shown: Iterable[Table | str], stored: bool = False) -> None:
    """Print one JSON document with `--json`, otherwise tables and lines.

    Parameters
    ----------
    document
        Anything that pydantic can write as JSON; numbers must be finite.
    shown
        Tables and lines. A generator does no work under `--json`.
    stored
        The result is in a file too, so the command succeeds where stdout cannot be written.
    """
    if stdout := _remembered("json", None):
        from pydantic_core import to_jsonable_python

        stdout.write(json.dumps(to_jsonable_python(document), indent=2, allow_nan=False) + "\n")  # ASCII
        stdout.flush()
    else:
        out = console()
        stdout = out.file
        for part in shown:
            show(part) if isinstance(part, str) else out.print(part)
    _raise_if_lost(getattr(stdout, "error", None), stored)


def _raise_if_lost(error: OSError | None, stored: bool) -> None:
    """RunFailed where stdout could not be written, unless its reader had seen enough."""
    if error is None or isinstance(error, BrokenPipeError):
        return
    from robflat_bench.core import RunFailed

    reason = f"cannot write to stdout: {error.strerror}"
    if not stored:
        raise RunFailed(f"{reason}; type the command again with another place, e.g. `> FILE`")
    note(f"{reason}; the result is stored, and the same command shows it")


def table(heading: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], right: int | None = None) -> Table:
    """A table in which nothing is read as markup.

    Parameters
    ----------
    rows
        Cells: text, or a float, an integer or None (a dash).
    right
        Columns from this one on are right-aligned.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def text(cell: Any) -> Text:  # clean before rich measures it
        return Text(visible(number(cell) if cell is None or isinstance(cell, float) else str(cell)))

    made = Table(title=text(heading), box=box.SIMPLE_HEAD, title_justify="left")
    for place, name in enumerate(columns):
        made.add_column(text(name), justify="right" if right is not None and place >= right else "left")
    for row in rows:
        made.add_row(*map(text, row))
    return made


def percent(value: float | None, error: float | None = None) -> str:
    """`35.0 %` or `35.0 ± 2.1 %`; None is a dash."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"


def number(value: float | None, error: float | None = None) -> str:
    """`0.530` or `0.530 ± 0.021`; below 0.01 and from 10,000 on with four significant digits; None is a dash."""
    if value is None:
        return "-"
    style = ".3f" if value == 0 or 0.01 <= abs(value) < 10_000 else ".3e"
    return f"{value:{style}}" if error is None else f"{value:{style}} ± {error:{style}}"


def measure_table(registry: Registry, results: Sequence[Result]) -> Table | None:
    """The table of measures with their cost; None where nothing was measured."""
    from robflat_bench.registry.components import title

    rows: list[list[Any]] = []
    for result in results:
        for split, measures in (("test", result.measures), ("train", result.measures_train)):
            for name, found in measures.items():
                residual = found.details.get("residual")
                value = "none" if found.value is None else number(found.value, found.standard_error)
                if found.value is not None and found.standard_error is None and residual is not None:
                    value += f" (residual {residual:.1e})"
                passes = f"{found.forward:,} + {found.backward:,}"
                row = [title(registry, "measure", name), split, value, found.n, f"{found.seconds:.1f}", passes]
                rows += [row, *([[f"  none: {found.reason}"]] if found.reason else [])]
    columns = ["measure", "split", "value ± standard error", "n", "s", "image passes"]
    return table("measures; image passes: forward + backward", columns, rows, right=2) if rows else None


def quantity_text(found: QuantityValue) -> str:
    """A value with its standard error: errors in percent, losses and measures as numbers."""
    from robflat_bench.records.quantities import quantity_unit

    form = percent if quantity_unit(found.quantity) == "fraction" else number
    return form(found.value, found.standard_error)


def result_table(
    heading: str, registry: Registry, results: Mapping[Any, Result], outcomes: Outcomes, measures: bool = True
) -> Table:
    """The table of results, a column for each checkpoint: values ± standard errors over examples."""
    from robflat_bench.records.quantities import quantity_label, quantity_values

    rows: dict[str, dict[str, str]] = {}
    for checkpoint, result in results.items():
        for found in quantity_values(checkpoint, result, outcomes):
            if measures or found.quantity != "measure":
                rows.setdefault(quantity_label(registry, found), {})[checkpoint] = quantity_text(found)
    epochs = ["epoch", *("-" if result.epoch is None else str(result.epoch + 1) for result in results.values())]
    shown = [[name, *(cells.get(checkpoint, "-") for checkpoint in results)] for name, cells in rows.items()]
    flags = ["flags", *(", ".join(result.flags.reasons()) or "none" for result in results.values())]
    filled = [row for row in (epochs, *shown, flags) if set(row[1:]) != {"-"}]
    return table(heading, ["", *results], filled, right=1)


def run_parts(registry: Registry, folder: RunFolder) -> Iterator[Table | str]:
    """The result of a finished run, for `report`."""
    record, outcomes = folder.evidence()
    spec, budget = record.spec, record.budget
    heading = f"{spec.label}  |  {spec.protocol.name} {spec.protocol.version}, seed {spec.seed}"
    yield result_table(heading, registry, record.results, outcomes)
    if not spec.dataset.canonical:
        yield f"data: {spec.dataset.origin} is not the canonical copy; runs on it are ranked separately"
    yield (
        f"{budget.seconds:.0f} s ({budget.evaluation_seconds:.0f} s evaluation), "
        f"{budget.peak_memory_bytes / 1e9:.2f} GB peak, training {budget.forward:,} forward and "
        f"{budget.backward:,} backward image passes"
    )
    yield (
        "values ± standard error over examples, of this one network; another seed may differ by more: "
        "no ranking follows from one run"
    )
    yield f"record: {folder.record_file}"
