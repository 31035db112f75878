"""Every hook a plugin may implement, grouped by life cycle.

A plugin is a module named in the entry-point group `robflat_bench` of its distribution:

    [project.entry-points.robflat_bench]
    my-methods = "my_package.plugin"

It decorates functions of the names below with `robflat_bench.api.hookimpl`. Implementations may take fewer
arguments than the specification, so later versions can add some. What is on its way out is marked with pluggy's
`warn_on_impl` or `warn_on_impl_args` for a minor version first: `plugin check` shows who still uses it.

A hook that raises is one line on stderr, and the rest works. What it prints goes to stderr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import pluggy

from robflat_bench.core import (
    PROJECT,
    AttackInfo,
    BackboneInfo,
    DatasetInfo,
    LauncherInfo,
    LeaderboardColumn,
    MeasureInfo,
    MethodInfo,
    ModifierInfo,
    RunView,
)

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker(PROJECT)


# ---------------------------------------------------------------------------------------------------------
# Registration: what a plugin offers. Called once per process; a plugin must not import torch to answer, and returns
# descriptions only: the class behind a row is imported when it is first used.
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_methods() -> list[MethodInfo]:
    """Training methods: how one batch becomes a loss.

    Example::

        @hookimpl
        def robflat_bench_methods():
            return [MethodInfo("my-at", "AT with a twist", "my_package.my_at:MyAT", MyParams)]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """Modifiers: what can be added to any method with `+`, each at its declared joints.

    Example::

        return [ModifierInfo("my-ema", "an average", "my_package.ema:MyEMA", joints=("after_step", "model"))]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_attacks() -> list[AttackInfo]:
    """Attacks: from a model and images to images inside the threat model's ball and the image box.

    Example::

        return [AttackInfo("noise", "uniform noise", "my_package.noise:Noise")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_measures() -> list[MeasureInfo]:
    """Measures: a number about a trained model, with its standard error.

    Example::

        return [MeasureInfo("weight-norm", "l2 norm of the weights", "my_package.norms:WeightNorm")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_backbones() -> list[BackboneInfo]:
    """Backbones: `factory(params, shape, activation) -> nn.Module`, images in [0,1] in, logits out.

    Example::

        return [BackboneInfo("my-net", "a small net", "my_package.net:my_net", MyNetParams)]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_datasets() -> list[DatasetInfo]:
    """Datasets: where labelled images come from.

    Example::

        return [DatasetInfo("svhn", "street view house numbers", "my_package.svhn:SVHN")]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_launchers() -> list[LauncherInfo]:
    """Launchers: where the runs of a sweep are processes; `factory(params, resources)` is a `Launcher`.

    Example::

        return [LauncherInfo("slurm", "a job of its queue each", "my_package.slurm:Slurm", SlurmParams)]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_protocols() -> list[Traversable]:
    """Protocols: TOML files, each called NAME.toml after the `name` in it.

    Example::

        return [importlib.resources.files("my_package") / "svhn-linf.toml"]
    """
    raise NotImplementedError


@hookspec
def robflat_bench_commands() -> list[click.Command]:
    """Commands (or groups of commands) of `robflat-bench`. Called for `--help` and for names that are not the core's;
    a name that is taken makes the plugin broken. What a command needs, it imports when it runs.

    Example::

        @click.command()
        def greet(): ...

        @hookimpl
        def robflat_bench_commands():
            return [greet]
    """
    raise NotImplementedError


# ---------------------------------------------------------------------------------------------------------
# Observers of a run. They see JSON documents of their own and change nothing: the state of random numbers, threads,
# gradients and the working directory is put back after each call, and their time is not the run's. One that raises is
# reported once, called no more during this run, and noted in its record (provenance.observers), as is its time.
# Networks that a method has trained first (its helpers) are not observed. Ctrl-C and a killed process end a run without
# a hook; the run that goes on begins with `robflat_bench_run_starts`, and may repeat its last epoch with equal numbers.
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_run_starts(run: RunView) -> None:
    """A run that has no record yet starts, or goes on where an earlier process stopped.

    Example::

        @hookimpl
        def robflat_bench_run_starts(run):
            (run.folder / "observers").mkdir(exist_ok=True)
    """


@hookspec
def robflat_bench_epoch_ends(run: RunView, epoch: Mapping[str, Any]) -> None:
    """An epoch of training is done; `epoch` is its line of history.jsonl: epoch (from 0), learning_rate, train_loss,
    heldout_clean_error, heldout_robust_error, heldout_robust_loss (None between checks), seconds.

    Example::

        @hookimpl
        def robflat_bench_epoch_ends(epoch):
            print(epoch["epoch"], epoch["train_loss"])
    """


@hookspec
def robflat_bench_evaluation_ends(run: RunView, checkpoint: str, result: Mapping[str, Any]) -> None:
    """A checkpoint ("best" or "last") has been attacked and measured; `result` is its part of the record.

    Example::

        @hookimpl
        def robflat_bench_evaluation_ends(run, checkpoint, result):
            print(run.label, checkpoint, result["clean_error"])
    """


@hookspec
def robflat_bench_run_ends(run: RunView, record: Mapping[str, Any]) -> None:
    """Everything is done, and the record is about to be written.

    Example::

        @hookimpl
        def robflat_bench_run_ends(run, record):
            print(run.key, record["budget"]["seconds"])
    """


@hookspec
def robflat_bench_run_fails(run: RunView, error: Exception) -> None:
    """The run has stopped with an error, which is about to be shown; failed.json keeps it.

    Example::

        @hookimpl
        def robflat_bench_run_fails(run, error):
            print(run.key, error)
    """


# ---------------------------------------------------------------------------------------------------------
# Evidence: what is said of a record
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_environment() -> Mapping[str, str]:
    """What a record should keep of this machine beside what the core notes (record.environment.plugins, by
    distribution), e.g. the version of a library whose numbers depend on it. `doctor` shows it.

    Example::

        return {"torchattacks": importlib.metadata.version("torchattacks")}
    """
    raise NotImplementedError


@hookspec
def robflat_bench_validate_record(record: Mapping[str, Any]) -> Sequence[str]:
    """Problems with a record, in words; none is good. `record` is the JSON document of a run's record or of an
    evaluation's. Called by `evaluate` (which tells them) and wherever a board reads an entry (which refuses it).

    Example::

        return [] if "torchattacks" in record["environment"] else ["it does not say by which torchattacks"]
    """
    raise NotImplementedError


# ---------------------------------------------------------------------------------------------------------
# Leaderboard
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_leaderboard_columns(board: Mapping[str, Any]) -> list[LeaderboardColumn]:
    """Columns to add to a board's page, in a group of their own that is off at first. `board` is its part of
    board.json, which no plugin changes: a column is a function of that alone.

    Example::

        return [LeaderboardColumn("seeds", "Seeds", {row["id"]: len(row["runs"]) for row in board["rows"]})]
    """
    raise NotImplementedError
