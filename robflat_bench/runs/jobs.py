"""Jobs of runs: started through a launcher, and kept in the runs' folders until they have ended.

`job.json` names the launcher and the id of a run's job. It is written before the job starts, with an empty id, and
again when the id is known. So a sweep that was killed at any moment finds its jobs when it is typed again, also those
that still wait in a queue and hold no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from robflat_bench.core import CheckFailed, Exit, Job, Launcher, Resources, RobflatError, Strict, UsageError
from robflat_bench.records.store import Busy, RunFolder, regular_bytes, write_json
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.runs.exits import exit_of
from robflat_bench.runs.tasks import Task

CANCELLED = "cancelled by `sweep --cancel`"
"""The cause of an exit after `Jobs.cancel`, in this process or in another."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
"""A package, or a file without a folder."""

LARGEST = 10_000
"""Bytes of a job.json that is read."""


class Kept(Strict):
    """The content of job.json: a job that was started, and was not seen to end.

    Parameters
    ----------
    launcher : str
        Canonical text of its launcher.
    package : str
        What offers the launcher, an installed package or the file of a plugin; "" if it is built in.
    id : str
        What the launcher returned; "" before it did.
    cancelled : bool
        Whether `sweep --cancel` ended it: no sweep starts it again by itself.
    """

    launcher: str
    package: str = ""
    id: str = ""
    cancelled: bool = False


def _file(folder: RunFolder) -> Path:
    return folder.path / "job.json"


def kept(folder: RunFolder) -> Kept | None:
    """The job of a run; None without one, or if its file is damaged."""
    try:
        return Kept.model_validate_json(regular_bytes(_file(folder), LARGEST))
    except (CheckFailed, ValueError):
        return None


def job_of(task: Task, arguments: Sequence[str], seconds: float | None = None, memory: int | None = None) -> Job:
    """The job of a task, whichever process starts it.

    Parameters
    ----------
    task : Task
        The run.
    arguments : sequence of str
        What follows `robflat-bench run`.
    seconds, memory : float, int or None
        See `Job`.
    """
    place = hashlib.sha256(str(task.folder.path.resolve()).encode()).hexdigest()[:8]
    command = (sys.executable, "-m", "robflat_bench", "run", *arguments)
    return Job(f"{task.spec.key}-{place}", command, task.folder.log_file, seconds, memory)


class Jobs:
    """The jobs of tasks at one launcher.

    Parameters
    ----------
    launcher : Launcher
        It starts them.
    text : str
        Its canonical text.
    package : str
        What offers it, as `Kept` has it.
    """

    def __init__(self, launcher: Launcher, text: str, package: str = "") -> None:
        self.launcher, self.text, self.package = launcher, text, package
        self.unended: dict[str, Task] = {}
        """By the job's name."""
        self._ids: dict[str, str] = {}
        self._seen: dict[str, Kept | None] = {}

    def find(self, task: Task, job: Job) -> bool:
        """Adopt the job that an earlier sweep, or another one, has started; whether there is one that has not ended."""
        found = self._seen[job.name] = kept(task.folder)
        if found is None or found.launcher != self.text or not self.launcher.adopt(job, found.id):
            return False
        self.unended[job.name], self._ids[job.name] = task, found.id
        return True

    def adopt(self, task: Task, job: Job) -> bool:
        """As `find`, for a sweep that makes the run: what was cancelled and goes on is not cancelled any more."""
        found = self.find(task, job)
        if found:
            self._keep(task, job.name)
        return found

    def claim(self, task: Task, job: Job) -> None:
        """Before `start`, with the folder's lock: keep that the job is about to start.

        Raises
        ------
        Busy
            Another sweep has started one since `find`.
        """
        if self.launcher.outlives:
            if kept(task.folder) != self._seen.get(job.name):
                raise Busy(f"another sweep has just started this run ({task.folder.path})")
            self._keep(task, job.name)

    def start(self, task: Task, job: Job) -> None:
        """Start the job and keep its id; raises what the launcher raises."""
        self._ids[job.name] = self.launcher.start(job)
        self.unended[job.name] = task
        if self.launcher.outlives:
            with contextlib.suppress(RobflatError):  # on a full disk; the job runs, and is found by its name
                self._keep(task, job.name)

    def _keep(self, task: Task, name: str, cancelled: bool = False) -> None:
        known = Kept(launcher=self.text, package=self.package, id=self._ids.get(name, ""), cancelled=cancelled)
        write_json(_file(task.folder), known.model_dump())

    def wait(self, seconds: float) -> Iterator[tuple[Task, Exit]]:
        """The tasks whose jobs have ended, and how; waits at most so long for the first."""
        for name, found in self.launcher.wait(seconds).items():
            ended, task, ours = exit_of(found), self.unended.pop(name), self._ids.pop(name, "")
            known = kept(task.folder)
            if known and known.cancelled:
                ended = Exit(ended.code, CANCELLED)
            elif known and known.id == ours:
                _file(task.folder).unlink(missing_ok=True)
            yield task, ended

    def standings(self) -> dict[str, str]:
        """Run key -> where its job stands, as `Launcher.standings` has it."""
        found = self.launcher.standings()
        return {task.spec.key: found.get(name, "running") for name, task in self.unended.items()}

    def cancel(self) -> None:
        """Let running jobs save and end, and queued ones leave the queue. A sweep that waits for them stops."""
        for name, task in self.unended.items():
            self._keep(task, name, cancelled=True)
        self.launcher.interrupt()


def attach(
    registry: Registry,
    wanted: Iterable[Task],
    job: Callable[[Task], Job],
    resources: Resources,
    but: str = "",
    unknown: Callable[[Task, str], None] | None = None,
) -> list[Jobs]:
    """The unended jobs of tasks, each at the launcher that started it.

    Parameters
    ----------
    registry : Registry
        Knows the launchers.
    wanted : iterable of Task
        The runs.
    job : callable
        Task -> its job, as this process would start it.
    resources : Resources
        For the launchers.
    but : str
        Leave out the jobs of this launcher.
    unknown : callable or None
        Called with each task whose launcher cannot be used here, and the reason. None: that is a UsageError.
    """
    found: dict[str, Jobs] = {}
    for task in wanted:
        known = kept(task.folder)
        if known is None or known.launcher == but or task.state() == "done":
            continue
        if known.launcher not in found:
            try:
                launcher = resolve(registry, "launcher", known.launcher).build(resources)
            except RobflatError as error:
                why = _missing(registry, known) or f"launcher {known.launcher}: {str(error).splitlines()[0]}"
                if unknown is None:
                    raise UsageError(
                        f"a job of {task.title} may wait or run: {why}. If the job is gone, remove {_file(task.folder)}"
                    ) from error
                unknown(task, why)
                continue
            found[known.launcher] = Jobs(launcher, known.launcher, known.package)
        found[known.launcher].find(task, job(task))
    return [jobs for jobs in found.values() if jobs.unended]


def _missing(registry: Registry, known: Kept) -> str:
    """`launcher slurm is not installed (pip install robflat-cluster)`; "" where a launcher has this name."""
    name = known.launcher.partition("(")[0]
    if name in registry.names("launcher"):
        return ""
    # Anyone who writes to the store can name a package: it is a name, and nothing that a shell or pip takes apart.
    file = known.package.endswith(".py")
    way = f" ({'add --plugin' if file else 'pip install'} {known.package})" if _NAME.fullmatch(known.package) else ""
    return f"launcher {name:.50} is not installed{way}"


def cancel(attached: Sequence[Jobs]) -> Iterator[Task]:
    """Cancel jobs, and give each task when its job has ended."""
    for jobs in attached:
        jobs.cancel()
    while any(jobs.unended for jobs in attached):
        for jobs in attached:
            yield from (task for task, _ in jobs.wait(1.0))
