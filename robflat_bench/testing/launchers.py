"""What launchers promise, with processes that end at once or when they are interrupted.

The files of the checks lie in Python's temporary folder (`$TMPDIR`), which the machines of a launcher must see.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robflat_bench.core import Exit, Job, Launcher, Resources, UsageError
from robflat_bench.registry.components import Component
from robflat_bench.runs.exits import exit_of
from robflat_bench.testing.expectations import Skipped, expect

PATIENCE, PACES = 60.0, 20.0
"""The kit gives up on a silent launcher after so many seconds, and so many times the launcher's pace."""

POLL, SLACK = 0.02, 5.0
"""Seconds between two calls of `wait`, which may be short; and by which a call may be late."""

EXITS = {
    "good": ("pass", (0,)),
    "bad": ("raise SystemExit(3)", (3,)),
    "killed": ("import os; os.kill(os.getpid(), 9)", (-9, 128 + 9)),
}
"""Name -> a program, and the exit codes that may be reported for it."""

COUNTED = """
import sys
open(sys.argv[1], "a").write("x")
"""
"""Adds a character to a file each time it is started."""

WAITS = """
import pathlib, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).touch()
time.sleep(20)
"""
"""Creates a file when it is ready for SIGINT or SIGTERM, and answers them with the exit code 7."""

MEETS = """
import pathlib, sys, time
own, other = map(pathlib.Path, sys.argv[1:3])
own.touch()
until = time.monotonic() + float(sys.argv[3])
while not other.exists():
    if time.monotonic() > until:
        sys.exit(4)
    time.sleep(0.05)
"""
"""Creates a file and waits for the other's: exit code 0 if it comes, 4 if it does not."""

EARLIER = (
    "it reports bare exit codes, as launchers of API 1.3 do, which cannot name a cause such as a time limit; "
    "Exit(code, cause) can"
)
"""The note on a launcher of an earlier minor version, which sweeps accept."""

INTERRUPTED = (7, None)
"""Exit codes that may be reported for an interrupted `WAITS`; None where nobody saw it."""


@dataclass(frozen=True)
class Place:
    """A launcher, a folder for the files of its jobs, the unended ones, and the ends that it reported as no Exit."""

    launcher: Launcher
    folder: Path
    unended: set[str] = field(default_factory=set)
    other: dict[str, Any] = field(default_factory=dict)

    def start(self, job: Job) -> str:
        """Start a job; its id, which a launcher of API 1.3 does not return."""
        self.unended.add(job.name)
        return self.launcher.start(job) or ""

    def wait(self, seconds: float) -> Mapping[str, Exit]:
        """How jobs ended, as the launcher reports it; a bare code, as of API 1.3, as an Exit."""
        found: Mapping[str, Any] = self.launcher.wait(seconds)
        self.unended.difference_update(found)
        self.other.update({name: exit for name, exit in found.items() if not isinstance(exit, Exit)})
        return {name: exit_of(exit) if isinstance(exit, int) else exit for name, exit in found.items()}

    def clear(self) -> None:
        """Interrupt what still runs, and wait for its end a while."""
        until = time.monotonic() + SLACK
        if self.unended:
            self.launcher.interrupt()
        while self.unended and time.monotonic() < until:
            self.wait(0.2)

    def job(self, name: str, program: str, *arguments: object) -> Job:
        """A job that runs a Python program."""
        return Job(name, (sys.executable, "-c", program, *map(str, arguments)), self.folder / f"{name}.txt")

    def waiting(self, name: str = "sleeper") -> tuple[Job, str]:
        """A job that is ready to be interrupted, and its id."""
        ready = self.folder / f"{name}-ready"
        job = self.job(name, WAITS, ready)
        known = self.start(job)
        self.until(ready.exists, f"the process of '{name}' does not begin")
        return job, known

    def until(self, condition: Callable[[], object], failure: str) -> None:
        """Wait for a condition; CheckFailure after the kit's patience."""
        patience = PATIENCE + PACES * self.launcher.pace
        until = time.monotonic() + patience
        while not condition():
            expect(time.monotonic() < until, f"for {patience:g} s, {failure}")
            time.sleep(POLL)

    def ended(self, *names: str, launcher: Launcher | None = None) -> dict[str, Exit]:
        """How jobs ended, as the launcher (or another one) reports it."""
        found: dict[str, Exit] = {}
        wait = Place(launcher, self.folder).wait if launcher else self.wait
        self.until(
            lambda: found.update(wait(1.0)) or found.keys() >= {*names},
            f"the end of {' and '.join(names)} is not reported",
        )
        return found


@contextmanager
def _place(component: Component, jobs: int = 1) -> Iterator[Place]:
    """A new launcher in a folder of its own; what it leaves running is interrupted."""
    launcher: Launcher = component.build(Resources(jobs))
    with tempfile.TemporaryDirectory() as folder:
        place = Place(launcher, Path(folder))
        try:
            yield place
        finally:
            place.clear()


def check_exit_codes(component: Component) -> str | None:
    """It reports 0 for a process that ends well, the exit code of one that fails, the signal of one that is killed."""
    with _place(component) as place:
        for name, (program, allowed) in EXITS.items():
            place.start(place.job(name, program))
            code, said = place.ended(name)[name].code, place.other.get(name, 0)
            expect(isinstance(said, int), f"it reports {said!r} for '{name}', which is no Exit")
            expect(code in allowed, f"the exit code of '{name}' is {code}, not in {allowed}")
        return EARLIER if place.other else None


def check_each_job_runs_once(component: Component) -> None:
    """It starts each job once, and reports its end once."""
    with _place(component) as place:
        counter = place.folder / "counter"
        place.start(place.job("counted", COUNTED, counter))
        place.ended("counted")
        again = place.wait(0.3)
        starts = len(counter.read_text())
    expect(not again, f"it reports an end that it has reported: {dict(again)}")
    expect(starts == 1, f"it starts a job {starts} times")


def check_log(component: Component) -> None:
    """A process's stderr is added to its log, unless the launcher runs in the foreground."""
    with _place(component) as place:
        if place.launcher.foreground:
            raise Skipped("it runs in the foreground, where processes write to this terminal")
        for word in ("hello", " again"):
            job = place.job("writer", f"import sys; sys.stderr.write({word!r})")
            place.start(job)
            place.ended("writer")
        log = job.log.read_text() if job.log.exists() else ""
    expect(log == "hello again", f"the log of a job that wrote 'hello', then ' again', holds '{log[:80]}'")


def check_interrupt(component: Component) -> None:
    """Interrupted, it sends SIGINT or SIGTERM to its processes and reports their exit."""
    with _place(component) as place:
        job, _ = place.waiting()
        place.launcher.interrupt()
        code = place.ended(job.name)[job.name].code
    expect(code in INTERRUPTED, f"a process answers an interrupt with exit code 7, and {code} is reported")


def check_wait_returns_in_time(component: Component) -> None:
    """While no job ends, its wait reports nothing and takes no longer than it may."""
    with _place(component) as place:
        place.waiting()
        began = time.monotonic()
        found = place.wait(0.5)
        took = time.monotonic() - began
    expect(not found, f"it reports the exit of a process that still runs: {dict(found)}")
    expect(took <= 0.5 + SLACK, f"a wait of 0.5 s takes {took:.1f} s")


def check_standings(component: Component) -> None:
    """It says of each unended job that it is queued or running, and nothing of others; or nothing at all."""
    with _place(component) as place:
        job, _ = place.waiting()
        place.wait(0.0)
        words = place.launcher.standings().get(job.name)
        if words is None:
            raise Skipped("it does not say where its jobs stand")
        expect(
            words.partition(" ")[0] in ("queued", "running"), f"it says '{words}', not 'queued ...' or 'running ...'"
        )
        place.until(
            lambda: place.wait(0.0) or place.launcher.standings()[job.name].startswith("running"),
            "a running job is not said to run",
        )
        place.launcher.interrupt()
        place.ended(job.name)
        expect(not place.launcher.standings(), "it says where a job stands that has ended")


def check_two_jobs_at_once(component: Component) -> None:
    """Two jobs run at once where its resources are two."""
    try:
        with _place(component, jobs=2) as place:
            patience = 10.0 + 5.0 * place.launcher.pace
            files = place.folder / "one", place.folder / "other"
            for own, other in (files, files[::-1]):
                place.start(place.job(own.name, MEETS, own, other, patience))
            found = place.ended("one", "other")
    except UsageError as error:
        raise Skipped(f"it refuses two jobs: {error}") from None
    met = [exit.code == 0 for exit in found.values()]
    expect(all(met), f"of two jobs, one does not start within {patience:g} s while the other runs")


def _adopted(component: Component, by_name: bool) -> None:
    """Start a job, adopt it by another launcher, interrupt it there, and expect its end there."""
    with _place(component) as place:
        if not place.launcher.outlives:
            raise Skipped("its jobs end with the process that starts them (outlives = False)")
        job, known = place.waiting()
        if not known:
            raise Skipped("it returns no id here")
        later: Launcher = component.build(Resources())
        expect(later.adopt(job, "" if by_name else known), "a later launcher does not adopt a job that runs")
        later.interrupt()
        code = place.ended(job.name, launcher=later)[job.name].code
        expect(code in INTERRUPTED, f"an adopted process answers an interrupt with exit code 7; {code} is reported")


def check_adopts_by_id(component: Component) -> None:
    """A later launcher finds a running job by its id, interrupts it and reports its end."""
    _adopted(component, by_name=False)


def check_adopts_by_name(component: Component) -> None:
    """A later launcher finds a running job without its id, interrupts it and reports its end."""
    _adopted(component, by_name=True)


def check_ended_jobs_are_not_adopted(component: Component) -> None:
    """A later launcher adopts no job that has ended, by its id or without."""
    with _place(component) as place:
        job = place.job("good", EXITS["good"][0])
        known = place.start(job)
        place.ended(job.name)
        for told in dict.fromkeys((known, "")):
            expect(not component.build(Resources()).adopt(job, told), "a job that has ended is adopted")
