"""What launchers promise, with processes that end at once."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from robflat_bench.core import Job, Launcher, Resources
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import CheckFailure, Skipped, expect

EXITS = {
    "good": ("pass", (0,)),
    "bad": ("raise SystemExit(3)", (3,)),
    "killed": ("import os; os.kill(os.getpid(), 9)", (-9, 128 + 9)),
}
"""Name -> a program, and the exit codes that may be reported for it."""

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).touch()
time.sleep(20)
"""
"""Creates a file when it is ready for SIGINT, and answers SIGINT with the exit code 7."""

PATIENCE, POLL = 60.0, 0.02
"""Seconds until the kit gives up on a silent launcher; then between two calls of `wait`, which may be short."""


def _run(component: Component, folder: str, *programs: tuple[str, str]) -> tuple[dict[str, int], list[str]]:
    """Run named programs one after the other: the exit code that was reported for each, and the text of each log."""
    launcher: Launcher = component.build(Resources())
    ended: dict[str, int] = {}
    logs = [Path(folder) / f"{name}.txt" for name, _ in programs]
    for (name, program), log in zip(programs, logs, strict=True):
        launcher.start(Job(name, (sys.executable, "-c", program), log))
        ended |= _awaited(launcher)
    return ended, [log.read_text() if log.exists() else "" for log in logs]


def _waits(launcher: Launcher, seconds: float) -> Iterator[Mapping[str, int]]:
    """What each wait of at most so many seconds reports; CheckFailure after `PATIENCE` seconds."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        yield launcher.wait(seconds)
        time.sleep(POLL)
    raise CheckFailure(f"for {PATIENCE:g} s, a process has not begun, or the exit of a process is not reported")


def _awaited(launcher: Launcher) -> Mapping[str, int]:
    """The next report that is not empty."""
    return next(ended for ended in _waits(launcher, 1.0) if ended)


def check_exit_codes(component: Component) -> None:
    """It reports 0 for a process that ends well, the exit code of one that fails, the signal of one that is killed."""
    with tempfile.TemporaryDirectory() as folder:
        ended, _ = _run(component, folder, *((name, program) for name, (program, _) in EXITS.items()))
    for name, (_, allowed) in EXITS.items():
        expect(ended.get(name) in allowed, f"the exit code of '{name}' is {ended.get(name)}, not in {allowed}")


def check_log(component: Component) -> None:
    """A process's stderr is in its log, unless the launcher runs in the foreground."""
    launcher: Launcher = component.build(Resources())
    if launcher.foreground:
        raise Skipped("it runs in the foreground, where processes write to this terminal")
    with tempfile.TemporaryDirectory() as folder:
        _, (log,) = _run(component, folder, ("writer", "import sys; sys.stderr.write('hello')"))
    expect(log == "hello", f"the log of a process that wrote 'hello' holds '{log[:80]}'")


def check_interrupt(component: Component) -> None:
    """Interrupted, it sends SIGINT to its processes and reports their exit."""
    launcher: Launcher = component.build(Resources())
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        launcher.start(Job("sleeper", (sys.executable, "-c", WAITS, str(ready)), Path(folder) / "log.txt"))
        for ended in _waits(launcher, 0.05):
            expect(not ended, "it reports the exit of a process that still runs")
            if ready.exists():
                break
        launcher.interrupt()
        ended = _awaited(launcher)
    expect(ended == {"sleeper": 7}, f"after an interrupt that the process answers with exit code 7, it reports {ended}")
