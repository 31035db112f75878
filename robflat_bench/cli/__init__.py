"""The command line: one file per group of commands. A command parses, calls one function, and reports by `output`.

At the top, modules import only click, so `--help` takes a fraction of a second; each command imports what it needs
when it runs.
"""

from __future__ import annotations

import errno
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import rich_click as click

from robflat_bench import __version__
from robflat_bench.cli import (
    advice,
    catalogue,
    doctor,
    evaluate,
    experiment,
    leaderboard,
    output,
    plugin,
    results,
    run,
    streams,
    sweep,
)

if TYPE_CHECKING:
    from robflat_bench.core import UsageError

click.rich_click.TEXT_MARKUP = None  # [brackets] are text
click.rich_click.SHOW_ARGUMENTS = True


class _WithPlugins(click.RichGroup):
    """This package's commands, then those of plugins, which are loaded only when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(self._offered())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return super().get_command(ctx, name) or self._offered().get(name)

    @functools.cache  # noqa: B019  (there is one group)
    def _offered(self) -> dict[str, click.Command]:
        if not metadata.entry_points(group="robflat_bench"):
            return {}  # the common case: `--help` stays fast

        from robflat_bench.front.sessions import note_broken
        from robflat_bench.registry.registry import discover

        plugins, found = discover().plugins, dict[str, click.Command]()

        def check(command: object) -> None:
            if not isinstance(command, click.Command):
                raise TypeError(f"robflat_bench_commands must return commands, got {command!r}")
            if command.name in self.commands or command.name in found:
                raise ValueError(f"the command '{command.name}' is taken")

        for _, commands in plugins.rows("robflat_bench_commands", check):
            found |= {command.name: command for command in commands}
        note_broken(plugins)
        return found


@click.group(cls=_WithPlugins, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robflat-bench")
def cli() -> None:
    """Measure adversarially robust generalization and flat minima side by side.

    \b
    robflat-bench run --method trades     train, attack and measure, offline
    robflat-bench run --method at --protocol cifar10-mini --data DIR
    robflat-bench sweep paper-digits      every variant of the paper
    robflat-bench landscape RUN RUN       the loss around trained models; `list experiments`
    robflat-bench list methods            the catalogue; `info` describes one entry
    robflat-bench results ls              your runs
    robflat-bench leaderboard show        the ranking, your runs beside the committed ones
    """


for command in (
    *(run.run, sweep.sweep, evaluate.evaluate_checkpoint, experiment.experiment, experiment.landscape),
    *(catalogue.list_components, catalogue.info, results.results_group),
    *(leaderboard.leaderboard, plugin.plugin, doctor.doctor),
):
    cli.add_command(command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL, to be sourced in its start-up file."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.ClickException(f"no completion for {shell}")
    output.show(found(cli, {}, "robflat-bench", "_ROBFLAT_BENCH_COMPLETE").source())


def _require_folder() -> None:
    """UsageError in a folder that was deleted: a library of torch would end the process, and no relative path works."""
    try:
        os.getcwd()
    except FileNotFoundError:
        from robflat_bench.core import UsageError

        raise UsageError("the folder in which you are does not exist any more; `cd` to another one") from None


def _lead_alone(words: Sequence[str]) -> None:
    """Of the processes that `torchrun` started, let the first one do what cannot be divided: all but a `run`.

    The others end well at once. If they failed, torchrun would end the first one and print a traceback of its own.
    """
    from robflat_bench.core.processes import in_torchrun

    if not in_torchrun() or (words[:1] == ["run"] and {"--plan", "-h", "--help"}.isdisjoint(words)):
        return
    if os.environ.get("RANK") != "0":
        sys.exit(0)
    del os.environ["TORCHELASTIC_RUN_ID"]  # what this process starts is alone, too
    typed = shlex.join(["robflat-bench", *words])
    output.note(f"torchrun divides a `run` only, so one process does this; without torchrun, type {typed}")


def _unusable_name(error: BaseException) -> UsageError | None:
    """The error of a name that no file can have, or that may not be looked at; None for any other error."""
    from robflat_bench.core import UsageError

    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
        return UsageError(f"{error.filename!s:.100}: {error.strerror}; name another file or folder")
    return None


def main() -> None:
    """Run the command line; an expected error is one line on stderr and its exit code, and so is a signal."""
    from robflat_bench.core.processes import first_here
    from robflat_bench.core.signals import ending_of, interruptible_command

    streams.prepare(coloured=not {"-h", "--help"}.isdisjoint(sys.argv))  # click's help has colours of its own
    try:
        with interruptible_command():
            _require_folder()
            _lead_alone(sys.argv[1:])
            code = cli.main(prog_name="robflat-bench", standalone_mode=False)
    except click.ClickException as error:
        if len(sys.argv) == 1:
            error.show(sys.stderr)  # the help; named, since click writes to the bytes below where the encoding is ASCII
        elif first_here():
            output.note(advice.answer(error, sys.argv[1:]))
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        said, code = ending_of(error if isinstance(error, KeyboardInterrupt) else error.__context__)  # click's Abort
        if first_here():
            output.note(f"{said}; run the same command again, it resumes")
    except Exception as error:
        from robflat_bench.core import RobflatError, UsageError, out_of_memory

        expected = error if isinstance(error, RobflatError) else out_of_memory(error) or _unusable_name(error)
        if expected is None:
            raise
        if first_here() or not isinstance(expected, UsageError):  # a mistake in what was typed is that of all processes
            output.note(str(expected))
        code = expected.exit_code
    sys.exit(code if isinstance(code, int) else 0)
