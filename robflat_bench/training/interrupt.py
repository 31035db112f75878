"""Ctrl-C takes effect between two updates: a half-applied update must not be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from robflat_bench.core import Interrupted


class Interrupt:
    """A context in which the first Ctrl-C only sets `requested`. A second Ctrl-C interrupts at once.

    Outside the main thread, where Python delivers no signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Interrupted
        self.requested = True
