"""Output of commands (a report as JSON or tables, notes on stderr), and the options that commands share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import streams
from robflat_bench.front.text import note as note
from robflat_bench.front.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from robflat_bench.front.grids import Grid
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
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 9999),
    help="Processes that evaluate at a time; it changes no number. By default as many as there are cores and memory "
    "for, 1 on a GPU; ROBFLAT_BENCH_JOBS sets another default.",
)
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
    help="Change the recipe (recipe.epochs=10), which shows in the run's name; repeatable. A run with changed fixed.* "
    "is not ranked.",
)


_PARTS = re.compile(r"(?=\d)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?|(\d{1,6})")


def _stop_after(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Set the alarm of `--stop-after`."""
    from robflat_bench.core.signals import LEAST_SECONDS, LEAVING_SECONDS, stopping_after

    if value is None:
        return
    found = _PARTS.fullmatch(value)
    parts = zip(found.groups("0"), (3600, 60, 1, 1), strict=True) if found else ()
    seconds = sum(int(part) * unit for part, unit in parts)
    if not seconds:
        raise click.BadParameter(f"{value!r} is no duration; write 90s, 55m, 2h, 1h30m or a number of seconds")
    if seconds < LEAST_SECONDS:
        raise click.BadParameter(
            f"{value!r} leaves no time for work: a process takes seconds to start, and {LEAVING_SECONDS:.0f} s are kept"
            f" for its end; give {LEAST_SECONDS:.0f}s or more"
        )
    context.with_resource(stopping_after(seconds))


stop_after_option = click.option(
    "--stop-after",
    metavar="TIME",
    expose_value=False,
    callback=_stop_after,
    help="Save and end, with exit code 0, before this time is over: 55m, 1h30m; the same command resumes.",
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
    from robflat_bench.front.sessions import open_registry

    return open_registry(plugin_files())


# ---------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------


def confirmed(question: str) -> bool:
    """Whether the user says yes, on stderr, or nothing: return is yes, and so is another Ctrl-C."""
    try:
        return click.confirm(visible(question), default=True, err=True)
    except click.Abort:
        return True


def show(line: object) -> None:
    """Write a line on stdout."""
    click.echo(visible(str(line)), file=sys.stdout)


def report(document: Any, shown: Iterable[Grid | str], stored: bool = False) -> None:
    """Print one JSON document with `--json`, otherwise tables and lines.

    Parameters
    ----------
    document
        Anything that pydantic can write as JSON; numbers must be finite.
    shown
        Grids, and text. One line wraps between words at the width of the terminal, or that COLUMNS names; commands in
        backticks and indented lines stay whole. Text of several lines, such as a CSV, is printed as it is. A generator
        does no work under `--json`.
    stored
        The result is in a file too, so the command succeeds where stdout cannot be written.
    """
    if stdout := _remembered("json", None):
        from pydantic_core import to_jsonable_python

        stdout.write(json.dumps(to_jsonable_python(document), indent=2, allow_nan=False) + "\n")  # ASCII
        stdout.flush()
    else:
        from robflat_bench.front.console import console

        out = console()
        stdout = out.file
        for part in shown:
            show(_wrapped(part, out)) if isinstance(part, str) else out.print(part)
    _raise_if_lost(getattr(stdout, "error", None), stored)


def _wrapped(text: str, out: Console) -> str:
    """The text as `report` prints it."""
    from robflat_bench.front.console import columns
    from robflat_bench.front.layout import wrap

    whole = "\n" in text or text.startswith("    ") or not (out.file.isatty() or columns())
    return text if whole else wrap(visible(text), out.width)


def _raise_if_lost(error: OSError | None, stored: bool) -> None:
    """RunFailed where stdout could not be written, unless its reader had seen enough."""
    if error is None or isinstance(error, BrokenPipeError):
        return
    from robflat_bench.core import RunFailed

    reason = f"cannot write to stdout: {error.strerror}"
    if not stored:
        raise RunFailed(f"{reason}; type the command again with another place, e.g. `> FILE`")
    note(f"{reason}; the result is stored, and the same command shows it")
