"""The clock of a run: seconds of work. It stops while a network is compiled: compilation counts to no budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_stopped = 0.0


def now() -> float:
    """Seconds since an arbitrary moment, without the time spent inside `standing_still`."""
    return time.perf_counter() - _stopped


@contextmanager
def standing_still() -> Iterator[None]:
    """Stop the clock inside the block."""
    global _stopped
    began = time.perf_counter()
    try:
        yield
    finally:
        _stopped += time.perf_counter() - began


def duration(seconds: float) -> str:
    """`45 s`, `14 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
