"""The clock of a run: seconds of work. It stands still while a network is compiled, which is no part of any budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_still = 0.0


def now() -> float:
    """Seconds from an arbitrary moment, less those that the clock stood still."""
    return time.perf_counter() - _still


@contextmanager
def standing_still() -> Iterator[None]:
    """What is done within takes no time."""
    global _still
    began = time.perf_counter()
    try:
        yield
    finally:
        _still += time.perf_counter() - began
