"""Workers: processes that compute units of an evaluation ahead of the one that makes its record.

The numbers are those of one process. It evaluates in the usual order, and reads the units that workers have written
into its journal as it reads those of an interrupted evaluation. A worker makes the same evaluation in another order,
skips the units that another process computes (`records.unit_claims`), and keeps nothing but units. So a worker may end
at any moment, and an error in a worker is met by the reading process itself. A worker writes under the lease of that
process, and ends when the lease is lost.

A worker is a new Python process, which gets examples and networks through a pipe, and ends when the pipe does. It
prints nothing, and leaves Ctrl-C to the process that started it.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robflat_bench.config.cost import passes_of
from robflat_bench.config.protocol import Protocol
from robflat_bench.core import Observer, one_line
from robflat_bench.data.splits import Splits
from robflat_bench.evaluation.current_code import changed_file
from robflat_bench.evaluation.evaluate import EvaluatedModel, Evaluation
from robflat_bench.evaluation.own_code import beside
from robflat_bench.evaluation.plan import EvaluationStage, Plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.numerics.capacity import cores, free_memory_bytes, peak_memory_bytes
from robflat_bench.records import lease
from robflat_bench.records.holders import Holder
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store
from robflat_bench.records.unit_claims import Elsewhere, Filling, Reading
from robflat_bench.registry.components import resolve
from robflat_bench.registry.files import load_file, loaded_files
from robflat_bench.registry.registry import Registry, discover

KEPT_FREE = 0.25
"""Share of the free memory that workers leave, where their number is not given."""
PATIENCE_SECONDS = 1.0
"""Workers start after so long where their number is not given: none does for an evaluation that ends sooner."""
LAST_LOOKS = 500
"""Hundredths of a second in which a worker that is killed must have ended, with what it had started."""
PAUSE_SECONDS = 0.1
"""Pause of a worker that finds every unit that it could compute claimed by others."""
COMMAND = (sys.executable, "-P", "-c", f"from {__name__} import main; main()")

Subjects = Sequence[tuple[Plan, EvaluatedModel]]


@dataclass(frozen=True)
class Work:
    """What a worker evaluates; fields as those of `Session`, `StoredJournal`, `Filling` and `lease.share`."""

    protocol: Protocol
    splits: Splits
    device: str
    folder: Path
    claims: Path
    subjects: Subjects
    leases: Sequence[tuple[Path, Holder]] = ()


# ---------------------------------------------------------------------------------------------------------
# In the process that makes the record
# ---------------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """Why workers cannot take part in an evaluation."""


@contextlib.contextmanager
def ahead(session: Session, subjects: Subjects, journal: StoredJournal) -> Iterator[None]:
    """A block that evaluates these networks with this journal, while workers fill it: one less than `processes`.

    This process evaluates alone where no other can have the network, and where code has changed since it was loaded. A
    note says so where `session.jobs` was given.
    """
    observer, count, payload, problems = session.observer, processes(session), b"", [""]
    passes = [_passes(session.registry, stage) for plan, _ in subjects for stage in (None, *plan.stages)]
    workers: list[_Worker] = []
    with _claims() if count > 1 else contextlib.nullcontext("") as claims:
        try:
            payload = _payload(session, subjects, journal, Path(claims)) if count > 1 else b""
        except _Unfit as error:
            count, problems = 1, [str(error)]
        try:
            if count > 1:
                journal.claims = Reading(Path(claims))
            while len(workers) < count - 1:
                workers.append(_Worker(payload, 0 if session.jobs else PATIENCE_SECONDS, observer))
            observer.work_starts(passes, count, lambda: journal.spent)
            yield
        finally:
            problems += [worker.end() for worker in workers]
    if session.jobs and any(problems):
        said = next(filter(None, problems))
        observer.note(f"fewer processes than --jobs {session.jobs} made this evaluation: {said}")


def _claims() -> contextlib.AbstractContextManager[str]:
    """A folder of this machine for the claims on units."""
    return tempfile.TemporaryDirectory(prefix="robflat-bench-", ignore_cleanup_errors=True)


def processes(session: Session) -> int:
    """How many processes evaluate: `session.jobs`; where that is None, one on a GPU or under `--compile`, else as many
    as there are cores for, with the protocol's threads each, and memory for, as much as this process has used each."""
    if session.jobs is not None:
        return session.jobs
    if session.device != "cpu" or session.compile:
        return 1
    free = free_memory_bytes()
    room = math.inf if free is None else (1 - KEPT_FREE) * free // peak_memory_bytes()
    return int(max(1, min(cores() // session.fixed.threads, 1 + room)))


def _payload(session: Session, subjects: Subjects, journal: StoredJournal, claims: Path) -> bytes:
    """What a worker reads: the files of one-file plugins, all files that are loaded by their paths, and its `Work`."""
    classes = {type(module) for _, subject in subjects for module in subject.model.modules()}
    if here := sorted(found.__name__ for found in classes if found.__module__ == "__main__"):
        raise _Unfit(f"no other process can import the class {here[0]}; move it to a file of its own, and import it")
    providers = session.registry.plugins.providers.items()
    plugins = [Path(str(module.__file__)) for module, provider in providers if provider.version == "file"]
    folder = journal.folder.absolute()
    work = Work(session.protocol, session.splits, session.device, folder, claims, subjects, lease.held())
    try:
        payload = pickle.dumps(work)
    except Exception as error:
        raise _Unfit(f"the network cannot be sent to another process ({one_line(error):.200})") from error
    if file := changed_file(session.registry.plugins, payload):
        raise _Unfit(
            f"{file} was written after this process began, and others would import it anew; start Python again"
        )
    return pickle.dumps((plugins, loaded_files())) + payload


class _Worker(threading.Thread):
    """Starts a worker process after `patience` seconds, gives it the payload, and reports what it has done."""

    def __init__(self, payload: bytes, patience: float, observer: Observer) -> None:
        super().__init__(daemon=True)
        self.payload, self.patience, self.observer = payload, patience, observer
        self.unwanted, self.problem = threading.Event(), ""
        self.process: subprocess.Popen[bytes] | None = None
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (`end` closes it)
        self.start()

    def run(self) -> None:
        if self.unwanted.wait(self.patience):
            return
        try:
            self._serve()
        except OSError as error:  # the process could not start, or has ended
            self.problem = "" if self.unwanted.is_set() else one_line(error)

    def _serve(self) -> None:
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        environment, pipe = {**os.environ, "PYTHONPATH": path}, subprocess.PIPE
        self.process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=self.errors, env=environment)
        assert self.process.stdin
        assert self.process.stdout
        with self.process.stdout as reports:
            self.process.stdin.write(self.payload)
            self.process.stdin.flush()
            self.payload = b""
            for line in reports:
                stage, passes, ended = map(int, line.split())
                self.observer.work_ends_elsewhere(stage, passes, bool(ended))

    def end(self) -> str:
        """End the process; returns why it had failed, "" if it had not."""
        self.unwanted.set()
        code = self.process.poll() if self.process else None
        for _ in range(LAST_LOOKS):
            if self.process:
                self.process.kill()
            self.join(0.01)
            if not self.is_alive():
                break
        if self.process:
            self.process.wait()
            with contextlib.suppress(OSError):  # what is still in the buffer has no reader
                self.process.stdin.close()  # type: ignore[union-attr]
        self.errors.seek(0)
        said = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        self.errors.close()
        return ": ".join([f"one ended with code {code}", *said])[:300] if code else self.problem


# ---------------------------------------------------------------------------------------------------------
# In a worker
# ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Do the work that stdin holds; end when it is done, or when the process at the other end of the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code of others prints
    stream = sys.stdin.buffer
    plugins, files = pickle.load(stream)
    registry = discover(tuple(plugins))
    for file in files:
        if file not in plugins:
            with beside(file.parent, Path.cwd()):
                load_file(file)
    with beside(Path.cwd()):
        work = pickle.load(stream)
    threading.Thread(target=_end_with, args=(stream.fileno(),), daemon=True).start()
    fill(registry, work, lambda *report: print(*map(int, report), file=reports, flush=True))
    os._exit(0)


def _end_with(pipe: int) -> None:
    """End this process when the pipe ends; by the descriptor, for a buffer's lock would outlive the interpreter."""
    while os.read(pipe, 1):
        pass
    os._exit(1)


def fill(registry: Registry, work: Work, report: Callable[[int, int, bool], None]) -> None:
    """Compute all units of the work that no other process computes.

    After each unit and each stage, `report` gets the stage's number, the image passes since the last report, and
    whether the stage has ended.

    Raises
    ------
    Lost
        The process that reads has lost its run to another one, so nothing is written any more.
    """
    lease.share(work.leases)
    session = Session(registry, work.protocol, work.splits, Store(work.folder), work.device)
    configure(session.fixed)
    claims = Filling(work.claims)
    tasks: list[_Task] = []
    number = 0
    for plan, subject in work.subjects:
        journal = StoredJournal(work.folder, claims=claims)
        evaluation = Evaluation(session, plan, subject, journal)
        with evaluation.keyed("clean"):
            evaluation.clean()
        tasks += [_Task(evaluation, stage, number + place, report) for place, stage in enumerate(plan.stages, 1)]
        number += 1 + len([*plan.stages])
    # Searches first, for they may be long; then backwards, because the process that reads begins with the first stage.
    tasks.sort(key=lambda task: (_passes(registry, task.stage) is None, task.number), reverse=True)
    while tasks:
        left = [task for task in tasks if not task.ends(claims)]
        if len(left) == len(tasks):
            time.sleep(PAUSE_SECONDS)
        tasks = left


def _passes(registry: Registry, stage: EvaluationStage | None) -> int | None:
    """Image passes of a stage, 0 without an attack or a measure; None where its component declares none."""
    if stage is None:
        return 0
    passes = passes_of(resolve(registry, stage.kind, stage.text))  # type: ignore[arg-type]  # no other kind is a stage
    return None if passes is None else stage.examples * sum(passes)


@dataclass
class _Task:
    """A stage of an evaluation, and its number in the whole work."""

    evaluation: Evaluation
    stage: EvaluationStage
    number: int
    report: Callable[[int, int, bool], None]
    told: int = 0
    """Passes of the evaluation's network that were reported, or made for other stages."""

    def ends(self, claims: Filling) -> bool:
        """Compute what is free of the stage; whether nothing is left for this process to do.

        A stage that raises is left to the process that reads.
        """
        claims.leaving = ended = False
        self.told = self._made
        self.evaluation.journal.on_unit = partial(self._tell, False)
        try:
            with self.evaluation.keyed(*self.stage):
                self.evaluation.fill(self.stage)
            ended = True
            self._tell(True)
        except Elsewhere:
            pass
        except lease.Lost:
            raise
        except BaseException:
            ended = True
        if not self.evaluation.unchanged():
            sys.exit(f"{self.stage.text} did not restore the network when it was interrupted")
        return ended

    @property
    def _made(self) -> int:
        return self.evaluation.counter.forward + self.evaluation.counter.backward

    def _tell(self, ended: bool) -> None:
        made = self._made
        self.report(self.number, made - self.told, ended)
        self.told = made
