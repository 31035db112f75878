"""Sweeps: every run of a study, each in a process of its own; finished ones are skipped, a failed one stops nothing.

Who else sweeps the same store is no problem: a run that another process works on is left to it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from robflat_bench.base import RobflatError, RunFailed
from robflat_bench.components import Composed, compose
from robflat_bench.cost import passes_per_image, updates_per_batch
from robflat_bench.protocol import load
from robflat_bench.recipe import Recipe
from robflat_bench.registry import Registry
from robflat_bench.spec import DatasetRef, RunSpec, make_spec
from robflat_bench.store import Busy, RunFolder, Store, write_json
from robflat_bench.study import Study, Variant

Outcome = Literal["done", "failed", "busy", "interrupted", "new", "unfinished"]


@dataclass(frozen=True)
class Task:
    """One run of a study and where it lies."""

    variant: Variant
    spec: RunSpec
    folder: RunFolder
    passes: tuple[int, int]
    """Forward and backward image passes of its training, as its components declare them."""

    @property
    def title(self) -> str:
        return f"{self.spec.label}, seed {self.spec.seed}"

    def state(self) -> Outcome:
        """What lies in its folder."""
        if self.folder.record_file.is_file():
            return "done"
        if self.folder.failed_file.is_file():
            return "failed"
        return "unfinished" if self.folder.checkpoints.is_dir() else "new"

    def error(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        try:
            text = str(json.loads(self.folder.failed_file.read_text("utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return text.splitlines()[0][:500] if text else "failed without a word"


@dataclass(frozen=True)
class Refused:
    """A variant that cannot be run, and why, in one line."""

    variant: Variant
    reason: str


def tasks(
    registry: Registry, study: Study, seeds: int, dataset: DatasetRef, images: int, store: Store
) -> tuple[list[Task], list[Refused]]:
    """Every variant with seeds 1..N, the first seed of all variants first; a run that two variants share, once.
    And the variants that no run can be made of.

    images: training examples of the protocol.
    """
    made: dict[str, Task] = {}
    refused: list[Refused] = []
    sound: list[tuple[Variant, list[RunSpec], tuple[int, int]]] = []
    for variant in study.variants():
        try:
            protocol = load(registry, study.protocol, variant.settings)
            composed = compose(registry, variant.method)
            specs = [make_spec(registry, protocol, composed, dataset, seed) for seed in range(1, seeds + 1)]
            sound.append((variant, specs, _passes(registry, composed, protocol.recipe, images)))
        except RobflatError as error:
            refused.append(Refused(variant, str(error).splitlines()[0]))
    for number in range(seeds):
        for variant, specs, passes in sound:
            spec = specs[number]
            made.setdefault(spec.key, Task(variant, spec, store.folder(spec), passes))
    return list(made.values()), refused


def _passes(registry: Registry, composed: Composed, recipe: Recipe, images: int) -> tuple[int, int]:
    """Forward and backward passes of a run's training and of its helpers'."""
    count = images * recipe.epochs * updates_per_batch(composed)
    forward, backward = (count * passes for passes in passes_per_image(composed, recipe.attack_steps))
    for text in composed.helpers.values():
        more = _passes(registry, compose(registry, text), recipe, images)
        forward, backward = forward + more[0], backward + more[1]
    return forward, backward


@dataclass
class Sweep:
    """Runs tasks, `jobs` at a time. command: what comes after `robflat-bench run` for a task.

    started, ended: called with the task (and its outcome) from the thread that runs it.
    """

    command: Callable[[Task], Sequence[str]]
    jobs: int = 1
    retry_failed: bool = False
    started: Callable[[Task], None] = lambda task: None
    ended: Callable[[Task, Outcome], None] = lambda task, outcome: None
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _stopping: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """A signal may come while the handler of another holds it."""

    def run(self, wanted: Sequence[Task]) -> dict[str, Outcome]:
        """Key -> outcome. On Ctrl-C running tasks are told to save, and KeyboardInterrupt is raised when they have."""
        with _interrupting(self._stop), ThreadPoolExecutor(self.jobs) as pool:
            outcomes: dict[str, Outcome] = {}
            for _ in range(2):  # what another process worked on may be free or done by the end
                left = [task for task in wanted if outcomes.get(task.spec.key, "busy") == "busy"]
                outcomes |= zip((task.spec.key for task in left), pool.map(self._one, left), strict=True)
        if self._stopping:
            raise KeyboardInterrupt
        return outcomes

    def _one(self, task: Task) -> Outcome:
        outcome: Outcome = self._outcome(task)
        self.ended(task, outcome)
        return outcome

    def _outcome(self, task: Task) -> Outcome:
        if self._stopping:
            return "interrupted"
        state = task.state()
        if state == "done" or (state == "failed" and not self.retry_failed):
            return state
        try:
            with task.folder.locked():
                task.folder.failed_file.unlink(missing_ok=True)
        except Busy:
            return "busy"
        except RunFailed:
            return "failed"
        code = self._process(task)
        if task.folder.record_file.is_file():
            return "done"
        if self._stopping or code == 130:
            return "interrupted"
        try:
            with task.folder.locked():
                if not task.folder.failed_file.is_file():  # killed from outside, or refused before it began
                    last = _last_line(task.folder.path / "log.txt")
                    write_json(task.folder.failed_file, {"key": task.spec.key, "error": f"exit code {code}: {last}"})
        except Busy:  # taken by another process before ours
            return "busy"
        return "failed"

    def _process(self, task: Task) -> int:
        """The run in a process of its own (a session of its own, so that Ctrl-C reaches it only through us)."""
        arguments = [sys.executable, "-m", "robflat_bench", "run", *self.command(task)]
        with (task.folder.path / "log.txt").open("ab") as log:
            with self._lock:
                if self._stopping:
                    return 130
                process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
                self._running.add(process)
            self.started(task)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        return code

    def _stop(self) -> None:
        """Start nothing more and tell what runs to save and end."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


@contextmanager
def _interrupting(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call `stop` instead of ending this process, in the main thread."""

    def handler(number: int, frame: FrameType | None) -> None:
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1][:500] if lines else "no output"
