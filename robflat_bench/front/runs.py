"""`run` trains and evaluates a method; `load` reads a run's network and record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robflat_bench.core import UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import Grid, as_html, as_text, grid
from robflat_bench.front.sessions import chosen_observer, open_registry, open_session
from robflat_bench.front.shown import run_parts
from robflat_bench.front.tables import Rows, run_rows
from robflat_bench.records.record import RunRecord
from robflat_bench.records.store import RunFolder, Store
from robflat_bench.registry.components import Composed, compose

if TYPE_CHECKING:
    from torch import nn

    from robflat_bench.config.protocol import Protocol
    from robflat_bench.evaluation.session import Session
    from robflat_bench.registry.registry import Registry
    from robflat_bench.runs.run import PlannedRun


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Parameters
    ----------
    record : RunRecord
        What `record.json` holds: spec, results, budget, history, environment.
    folder : Path
        The run's folder, with its record, the outcome of every image and its checkpoints.
    registry : Registry
        Names its attacks and measures.
    protocol : Protocol
        The protocol it was made under, with the settings of the call.
    data : str, Path or None
        Folder of the data sets, as in the call.
    """

    record: RunRecord
    folder: Path
    registry: Registry
    protocol: Protocol
    data: str | Path | None = None

    @property
    def key(self) -> str:
        """The run key: equal runs have equal keys, on every machine."""
        return self.record.key

    @property
    def rows(self) -> Rows:
        """Every number of the run, one a row, as `results` gives them."""
        return run_rows(self._place, self.registry)

    @property
    def _place(self) -> RunFolder:
        return RunFolder(self.folder)

    def __repr__(self) -> str:
        return as_text(self._parts())

    def _repr_html_(self) -> str:
        return as_html(self._parts())

    def _parts(self) -> Iterator[Grid | str]:
        return run_parts(self.registry, self._place)


@checked
def run(
    method: str,
    *,
    protocol: str = "digits-linf",
    seed: int = 1,
    settings: Sequence[str] | Mapping[str, Any] = (),
    store: str | Path = "runs",
    data: str | Path | None = None,
    device: str = "auto",
    compile: bool = False,
    jobs: int | None = None,
    keep_every: int = 0,
    fresh: bool = False,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Run:
    """Train a method under a protocol, attack it and measure its flatness: the run of `robflat-bench run`.

    A finished run is read from its record. After an interruption (Ctrl-C, a stopped cell, a killed process), the same
    call resumes and ends with the same numbers. The process is left as it was: random state, threads, torch's flags.

    Parameters
    ----------
    method : str
        A method, with modifiers if you like: "at", "trades(beta=3)+awp".
    protocol : str
        Name of a protocol, or a TOML file.
    seed : int
        Seed of the initial weights and of training, 0 <= seed < 2**63.
    settings : sequence of str, or mapping
        Changes of the recipe: {"recipe.epochs": 3}. They show in the run's name.
    store : str or Path
        Folder of the runs.
    data : str, Path or None
        Folder of the data sets; None: the usual places.
    device : {"auto", "cpu", "cuda"}
        Where it runs; "auto" is CUDA where torch finds it.
    compile : bool
        Use torch.compile.
    jobs : int or None
        Processes that evaluate at a time, each with the protocol's threads; it changes no number. None: as many as
        there are cores and memory for, 1 on a GPU. Training is one process.
    keep_every : int
        Keep the weights of every such epoch; 0: only those of the first step, the best and the last epoch.
    fresh : bool
        Delete what an earlier run left, and start again.
    plugins : sequence of str or Path
        One-file plugins to load.
    progress : bool
        Show bars on stderr.

    Returns
    -------
    Run
        The run, with the same key and record as the command's.

    Raises
    ------
    UsageError
        A name or a value is wrong; the text says what to write.
    CheckFailed
        The record of the finished run is damaged.
    RunFailed
        Training diverged, or another process works on the run.
    """
    if not isinstance(data, str | Path | None):
        raise UsageError(f"data is a {type(data).__name__}; a run trains on its protocol's data: give their folder")
    registry = open_registry(plugins)
    composed = compose(registry, method)
    with chosen_observer(progress) as observer:
        session = open_session(
            registry,
            protocol,
            settings,
            data,
            store,
            device,
            compile,
            keep_every=keep_every,
            observer=observer,
            trains=f"{composed.brief}, seed {seed}",
            jobs=jobs,
        )
        planned = planned_run(session, composed, seed)

        from robflat_bench.front.guard import undisturbed
        from robflat_bench.runs.run import execute

        with undisturbed():
            record = execute(planned, fresh)
    return Run(record, planned.folder.path, registry, session.protocol, data)


def planned_run(session: Session, composed: Composed, seed: int) -> PlannedRun:
    """The run that `run` and the command of that name carry out; UsageError for a seed that is none."""
    from robflat_bench.runs.run import PlannedRun

    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UsageError(f"seed={seed!r} is no seed; give an integer from 0 to 2**63 - 1")
    if session.keep_every < 0:
        raise UsageError(f"keep_every={session.keep_every}: give a number of epochs, or 0")
    return PlannedRun(session, composed, seed)


def run_plan(planned: PlannedRun, fresh: bool) -> tuple[dict[str, Any], Grid]:
    """What a run would do, as a document and as a grid."""
    spec, folder, splits, fixed = planned.spec, planned.folder, planned.session.splits, planned.session.fixed
    done = folder.record_file.is_file() and not fresh
    state = "done" if done else "unfinished" if folder.checkpoints.is_dir() and not fresh else "new"
    images = splits.available("train")
    rows = [
        ["run", f"{spec.label} under {spec.protocol.name} {spec.protocol.version}, seed {spec.seed}"],
        ["key", spec.key],
        ["state", state],
        ["folder", str(folder.path)],
        ["data", f"{splits.ref.origin}, {'canonical' if splits.ref.canonical else 'not canonical'}"],
        ["training", f"{spec.recipe.epochs} epochs on {images:,} images, device {planned.session.device}"],
        *(["attack", f"{row.attack} on {row.test} test, {row.train} train"] for row in fixed.attacks),
        *(["measure", f"{row.measure} on {row.test} test"] for row in fixed.measures),
    ]
    return {"key": spec.key, "state": state, "folder": folder.path, "spec": spec}, grid("plan", ["", ""], rows)


@checked
def load(
    run: Run | str | Path,
    *,
    checkpoint: str = "last",
    protocol: str | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (),
    store: str | Path = "runs",
    data: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
) -> tuple[nn.Module, RunRecord]:
    """The trained network of a run and its record.

    Parameters
    ----------
    run : Run, str or Path
        A run, its folder, or its key or the beginning of its key.
    checkpoint : str
        best, last, initial or epoch-N.
    protocol, settings
        Of the run, where its protocol is no installed one; a `Run` knows them.
    store : str or Path
        Folder of the runs, where a key is looked up.
    data : str, Path or None
        Folder of the data sets: the network is built for the shape of their images.
    plugins
        As in `run`.

    Returns
    -------
    nn.Module
        The network on the CPU, in eval mode: images in [0,1], [N,C,H,W], in; logits [N,K] out. Its weights have the
        protocol's precision, which is float32 in the protocols of this package.
    RunRecord
        The record; its totals are computed again from the outcome of every image.

    Raises
    ------
    UsageError
        There is no such run or checkpoint.
    CheckFailed
        The record or the weights are damaged.
    """
    known = run if isinstance(run, Run) else None
    registry = known.registry if known else open_registry(plugins)
    folder = Store(Path(store)).find(str(known.folder if known else run))
    record = folder.record()
    name = record.protocol.name
    if protocol is None and known is None and name not in registry.protocols:
        raise UsageError(
            f"{folder.path.name} was made under {name}, which is no installed protocol; give its file and settings, "
            "protocol='FILE.toml', settings={...}"
        )
    chosen = protocol or (known.protocol if known else name)
    source = data if data is not None else known.data if known else None
    session = open_session(registry, chosen, settings, source, store, "cpu")

    from robflat_bench.evaluation.model import find_model, load_model
    from robflat_bench.evaluation.options import ModelOptions
    from robflat_bench.front.guard import undisturbed

    with undisturbed():
        found = find_model(session, str(folder.path), ModelOptions(checkpoint=checkpoint))
        return load_model(session.under(found.protocol), found).eval(), record
