"""What the end of a job means for a run that is neither done nor failed."""

from __future__ import annotations

import signal
from pathlib import Path

from robflat_bench.core import Exit

OUTSIDE = {signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP}
"""Signals that end a run from outside: from a user, from a shutdown, or for lack of memory."""


def exit_of(found: Exit | int) -> Exit:
    """What a launcher reports, as an Exit: launchers of API 1.3 report the code alone."""
    return found if isinstance(found, Exit) else Exit(found)


def killer(exit: Exit) -> signal.Signals | None:
    """The signal that ended a process; None if it ended by itself, or nobody knows."""
    code = exit.code or 0
    number = -code if code < 0 else code - 128
    return next((known for known in signal.Signals if known == number), None)


def is_pause(exit: Exit) -> bool:
    """Whether a run that ended so can go on as often as it likes: nothing says that the run itself was at fault.

    Its time slice was over (exit code 0), its launcher names a cause from outside, or nobody saw how it ended.
    """
    return bool(exit.cause) or exit.code in (0, None)


def from_outside(exit: Exit) -> bool:
    """Whether something outside the run ended it, so that ending so again is no failure of the run."""
    return bool(exit.cause) or exit.code is None or killer(exit) in OUTSIDE


def reason(exit: Exit, log: Path) -> str:
    """Why a job ended, in one line: with the end of its log where it ended by itself."""
    if exit.cause:
        return exit.cause
    if found := killer(exit):
        return f"ended by {found.name}"
    code, line = "ended" if exit.code is None else f"exit code {exit.code}", last_line(log)
    return f"{code}: {line}" if line else code


def last_line(log: Path) -> str:
    """The last line of a run's log; "" without one. Only the end of the file is read."""
    if not log.is_file():  # opening a pipe would wait for its writer
        return ""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:500] if lines else ""
