# mypy: disable-error-code="empty-body"
"""Every hook that a plugin may implement, grouped by life cycle.

A plugin is a module that an entry point of its distribution names:

    [project.entry-points.robflat_bench]
    my-methods = "my_package.plugin"

The module decorates its hooks with `robflat_bench.api.hookimpl`. An implementation may take fewer arguments than its
specification, so later versions can add arguments. Before a hook or an argument is removed, pluggy's `warn_on_impl` or
`warn_on_impl_args` marks it for at least one minor version, and `plugin check` reports every use. A hook that raises
costs one line on stderr, and all else works. What a hook prints goes to stderr."""

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
# Registration: what a plugin offers. Each hook is called once per process and returns descriptions only. It must not
# import torch: the class or function behind a row is imported when it is first used.
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_methods() -> list[MethodInfo]:
    """Offer training methods. A method turns one batch into a loss.

    Returns
    -------
    list of MethodInfo
        One row for each method; `factory` names a `Method`.

    Example::

        @hookimpl
        def robflat_bench_methods():
            return [MethodInfo("my-at", "AT with a twist", "my_package.my_at:MyAT", MyParams)]
    """


@hookspec
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """Offer modifiers. A modifier is added to any method with `+` and changes the joints that its row declares.

    Returns
    -------
    list of ModifierInfo
        One row for each modifier; `factory` names a `Modifier`.

    Example::

        return [ModifierInfo("my-ema", "an average", "my_package.ema:MyEMA", joints=("after_step", "model"))]
    """


@hookspec
def robflat_bench_attacks() -> list[AttackInfo]:
    """Offer attacks. An attack finds adversarial images inside the threat model's ball and [0,1].

    Returns
    -------
    list of AttackInfo
        One row for each attack; `factory` names an `Attack`.

    Example::

        return [AttackInfo("noise", "uniform noise", "my_package.noise:Noise")]
    """


@hookspec
def robflat_bench_measures() -> list[MeasureInfo]:
    """Offer measures. A measure is a number about a trained model, with its standard error.

    Returns
    -------
    list of MeasureInfo
        One row for each measure; `factory` names a `Measure`.

    Example::

        return [MeasureInfo("weight-norm", "l2 norm of the weights", "my_package.norms:WeightNorm")]
    """


@hookspec
def robflat_bench_backbones() -> list[BackboneInfo]:
    """Offer backbones. A backbone is a network from images in [0,1] to logits.

    Returns
    -------
    list of BackboneInfo
        One row for each backbone; `factory` names a function `(params, shape, activation) -> nn.Module`.

    Example::

        return [BackboneInfo("my-net", "a small net", "my_package.net:my_net", MyNetParams)]
    """


@hookspec
def robflat_bench_datasets() -> list[DatasetInfo]:
    """Offer datasets. A dataset is a source of labelled images with a checksum.

    Returns
    -------
    list of DatasetInfo
        One row for each dataset; `factory` names a `Dataset`.

    Example::

        return [DatasetInfo("svhn", "street view house numbers", "my_package.svhn:SVHN")]
    """


@hookspec
def robflat_bench_launchers() -> list[LauncherInfo]:
    """Offer launchers. A launcher decides where the process of each run of a sweep starts.

    Returns
    -------
    list of LauncherInfo
        One row for each launcher; `factory` names a `Launcher`.

    Example::

        return [LauncherInfo("lsf", "each run as a job of an LSF cluster", "my_package.lsf:Lsf", LsfParams)]
    """


@hookspec
def robflat_bench_protocols() -> list[Traversable]:
    """Offer protocols.

    Returns
    -------
    list of Traversable
        TOML files, each called NAME.toml after its `name`, or NAME@VERSION.toml where it is an earlier version.

    Example::

        return [importlib.resources.files("my_package") / "svhn-linf.toml"]
    """


@hookspec
def robflat_bench_commands() -> list[click.Command]:
    """Add commands to `robflat-bench`. Called for `--help` and for command names that the core does not have.

    Returns
    -------
    list of click.Command
        Commands or groups. A command imports what it needs when it runs. A name that is taken breaks the plugin.

    Example::

        @click.command()
        def greet(): ...


        @hookimpl
        def robflat_bench_commands():
            return [greet]
    """


# ---------------------------------------------------------------------------------------------------------
# Observers of a run. An observer receives JSON documents of its own and changes no result: after each call the random
# state, threads, gradient mode and working directory are restored, and its time is not the run's. An observer that
# raises is reported once and not called again during this run; the record keeps its error and time
# (provenance.observers). The training of helpers is not observed. Ctrl-C or a killed process ends a run without a hook;
# the process that continues it calls `robflat_bench_run_starts` first and may repeat the last epoch with equal numbers.
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_run_starts(run: RunView) -> None:
    """A run without a record starts, or continues where an earlier process stopped.

    Parameters
    ----------
    run : RunView
        Its key, names and folder.

    Example::

        @hookimpl
        def robflat_bench_run_starts(run):
            (run.folder / "observers").mkdir(exist_ok=True)
    """


@hookspec
def robflat_bench_epoch_ends(run: RunView, epoch: Mapping[str, Any]) -> None:
    """An epoch of training ends.

    Parameters
    ----------
    run : RunView
        Its key, names and folder.
    epoch : Mapping
        Its line of history.jsonl: `epoch` (from 0), `learning_rate`, `train_loss`, `heldout_clean_error`,
        `heldout_robust_error`, `heldout_robust_loss` (None in epochs without a check), `seconds`.

    Example::

        @hookimpl
        def robflat_bench_epoch_ends(epoch):
            print(epoch["epoch"], epoch["train_loss"])
    """


@hookspec
def robflat_bench_evaluation_ends(run: RunView, checkpoint: str, result: Mapping[str, Any]) -> None:
    """A checkpoint has been attacked and measured.

    Parameters
    ----------
    run : RunView
        Its key, names and folder.
    checkpoint : str
        "best" or "last".
    result : Mapping
        The checkpoint's part of the record.

    Example::

        @hookimpl
        def robflat_bench_evaluation_ends(run, checkpoint, result):
            print(run.label, checkpoint, result["clean_error"])
    """


@hookspec
def robflat_bench_run_ends(run: RunView, record: Mapping[str, Any]) -> None:
    """A run is complete. Called just before its record is written.

    Parameters
    ----------
    run : RunView
        Its key, names and folder.
    record : Mapping
        The content of record.json.

    Example::

        @hookimpl
        def robflat_bench_run_ends(run, record):
            print(run.key, record["budget"]["seconds"])
    """


@hookspec
def robflat_bench_run_fails(run: RunView, error: Exception) -> None:
    """A run stops with an error. Called before the error is shown; failed.json keeps it.

    Parameters
    ----------
    run : RunView
    error : Exception

    Example::

        @hookimpl
        def robflat_bench_run_fails(run, error):
            print(run.key, error)
    """


# ---------------------------------------------------------------------------------------------------------
# Evidence: facts about a record
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_environment() -> Mapping[str, str]:
    """Add facts about this machine to each record (environment.plugins, by distribution). `doctor` shows them.

    Returns
    -------
    Mapping of str to str
        Name -> value, e.g. the version of a library whose numbers depend on it.

    Example::

        return {"torchattacks": importlib.metadata.version("torchattacks")}
    """


@hookspec
def robflat_bench_validate_record(record: Mapping[str, Any]) -> Sequence[str]:
    """Find problems in a record. `evaluate` shows them; a board refuses an entry that has any.

    Parameters
    ----------
    record : Mapping
        The JSON document of a run's record or of an evaluation's record.

    Returns
    -------
    sequence of str
        The problems in words; empty for a good record.

    Example::

        return [] if "torchattacks" in record["environment"] else ["it does not say by which torchattacks"]
    """


# ---------------------------------------------------------------------------------------------------------
# Leaderboard
# ---------------------------------------------------------------------------------------------------------


@hookspec
def robflat_bench_leaderboard_columns(board: Mapping[str, Any]) -> list[LeaderboardColumn]:
    """Add columns to a board's page, in a group of their own that is hidden at first.

    Parameters
    ----------
    board : Mapping
        The board's part of board.json, a copy. A column may depend on nothing else.

    Example::

        return [LeaderboardColumn("seeds", "Seeds", {row["id"]: len(row["runs"]) for row in board["rows"]})]
    """
