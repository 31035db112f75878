"""What launchers promise, of processes that end at once."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from robflat_bench.core import Job, Launcher, Resources
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.world import Broken, Skipped, expect

EXITS = {
    "good": ("pass", (0,)),
    "bad": ("raise SystemExit(3)", (3,)),
    "killed": ("import os; os.kill(os.getpid(), 9)", (-9, 128 + 9)),
}
"""Name -> a program, and the exit codes that may be reported of it."""

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).touch()
time.sleep(20)
"""
"""Tells by a file that it is ready for SIGINT, and answers that with the exit code 7."""

PATIENCE, POLL = 60.0, 0.02
"""Seconds until a launcher that says nothing is given up, and between two waits: one may end at once."""


def _run(component: Component, folder: str, *programs: tuple[str, str]) -> tuple[dict[str, int], list[str]]:
    """Programs one after the other, named: what was reported of each, and what each wrote into its log."""
    launcher: Launcher = component.build(Resources())
    ended: dict[str, int] = {}
    logs = [Path(folder) / f"{name}.txt" for name, _ in programs]
    for (name, program), log in zip(programs, logs, strict=True):
        launcher.start(Job(name, (sys.executable, "-c", program), log))
        ended |= _awaited(launcher)
    return ended, [log.read_text() if log.exists() else "" for log in logs]


def _waits(launcher: Launcher, seconds: float) -> Iterator[Mapping[str, int]]:
    """What each wait of at most so many seconds tells, until it is given up."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        yield launcher.wait(seconds)
        time.sleep(POLL)
    raise Broken(f"in {PATIENCE:g} s, a process has not begun, or nothing is reported of one that has ended")


def _awaited(launcher: Launcher) -> Mapping[str, int]:
    """What ends next."""
    return next(ended for ended in _waits(launcher, 1.0) if ended)


def check_exit_codes(component: Component, registry: Registry) -> None:
    """It reports 0 of what ends well, the code of what fails, the signal of what is killed."""
    with tempfile.TemporaryDirectory() as folder:
        ended, _ = _run(component, folder, *((name, program) for name, (program, _) in EXITS.items()))
    for name, (_, allowed) in EXITS.items():
        expect(ended.get(name) in allowed, f"the exit of '{name}' is {ended.get(name)}, not one of {allowed}")


def check_log(component: Component, registry: Registry) -> None:
    """What a process writes on stderr lies in its log, if not in this terminal."""
    launcher: Launcher = component.build(Resources())
    if launcher.foreground:
        raise Skipped("in the foreground, processes write to this terminal")
    with tempfile.TemporaryDirectory() as folder:
        _, (log,) = _run(component, folder, ("writer", "import sys; sys.stderr.write('hello')"))
    expect(log == "hello", f"the log of what wrote 'hello' reads '{log[:80]}'")


def check_interrupt(component: Component, registry: Registry) -> None:
    """Interrupted, what runs gets SIGINT, ends, and is reported."""
    launcher: Launcher = component.build(Resources())
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        launcher.start(Job("sleeper", (sys.executable, "-c", WAITS, str(ready)), Path(folder) / "log.txt"))
        for ended in _waits(launcher, 0.05):
            expect(not ended, "a process that waits is reported as ended")
            if ready.exists():
                break
        launcher.interrupt()
        ended = _awaited(launcher)
    expect(ended == {"sleeper": 7}, f"after an interrupt that the process answers with 7, it reports {ended}")


CHECKS = (check_exit_codes, check_log, check_interrupt)
