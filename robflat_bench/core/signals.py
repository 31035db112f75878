"""Signals that ask a process to end: of Ctrl-C, a shutdown, a closed terminal, a scheduler. Work saves its state first.

Only signals with their usual handler are answered. A handler of the user's own stays, and so does an ignored signal, as
`nohup` leaves SIGHUP.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

REPEATED_SECONDS = 0.1
"""Signals that follow each other so closely are one request: `timeout` signals a process and then its group."""

LEAVING_SECONDS = 5.0
"""Time of `stopping_after` that is kept for the end of the process itself, on a busy machine too."""

LEAST_SECONDS = 30.0
"""The shortest time of `stopping_after` that leaves some for work: torch alone takes seconds to import."""


class Ending(NamedTuple):
    """What a signal means to a command: what it says of it, and its exit code."""

    said: str
    exit_code: int


ENDINGS: Mapping[int, Ending] = {
    signal.SIGINT: Ending("interrupted", 130),
    signal.SIGTERM: Ending("interrupted by SIGTERM", 143),
    signal.SIGHUP: Ending("interrupted by SIGHUP", 129),
    signal.SIGUSR1: Ending("stopped by SIGUSR1", 0),
    signal.SIGALRM: Ending("stopped after the time of --stop-after", 0),
}
"""The signals that a command answers by saving its state and ending. The last two end a time slice: all is well."""

IN_CALLS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that a call from Python answers. Others are the process's: users dump tracebacks on SIGUSR1."""


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end. A KeyboardInterrupt of another class was raised by some code.

    Parameters
    ----------
    number : int
        The signal, of `ENDINGS`.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number


def ending_of(error: BaseException | None) -> Ending:
    """How a command ends after `Interrupted`; after any other error, as after Ctrl-C."""
    return ENDINGS[error.number if isinstance(error, Interrupted) else signal.SIGINT]


class _Answer:
    """A handler of this package: the first signal calls `answer`, and so does every later one that is no repetition."""

    def __init__(self, answer: Callable[[int], None]) -> None:
        self.answer, self.latest = answer, -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        before, self.latest = self.latest, time.monotonic()
        if self.latest - before > REPEATED_SECONDS:
            self.answer(number)


@contextlib.contextmanager
def _handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any], replaces: Callable[[Any], bool]
) -> Iterator[Mapping[int, Any]]:
    """In this block, `handler` stands for those handlers of the signals that it `replaces`; yields these by signal."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    known = {number: signal.getsignal(number) for number in numbers if main}
    before = {number: known[number] for number in known if replaces(known[number])}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number in reversed(before):
            signal.signal(number, before[number])


def _interrupt(number: int) -> None:
    raise Interrupted(number)


def _usual(handler: Any) -> bool:
    return handler in (signal.SIG_DFL, signal.default_int_handler)


def interruptible_command() -> contextlib.AbstractContextManager[Mapping[int, Any]]:
    """In this block, every signal of `ENDINGS` raises `Interrupted`. For a process that is this package's own."""
    return _handled(ENDINGS, _Answer(_interrupt), _usual)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In this block, the signals `IN_CALLS` raise `Interrupted`, unless this process handles them in a way of its own.

    One that would have ended the process without the block ends it now, once the block is left.
    """
    before: Mapping[int, Any] = {}
    try:
        with _handled(IN_CALLS, _Answer(_interrupt), _usual) as before:
            yield
    except Interrupted as interrupted:
        if before.get(interrupted.number) == signal.SIG_DFL:
            signal.raise_signal(interrupted.number)
        raise


def answered(answer: Callable[[int], None]) -> contextlib.AbstractContextManager[Mapping[int, Any]]:
    """In this block, every signal that would have raised `Interrupted` calls `answer` with its number instead."""
    ours = lambda handler: isinstance(handler, _Answer) or handler == signal.default_int_handler  # noqa: E731
    return _handled(ENDINGS, _Answer(answer), ours)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """In this block, signals that Python code handles wait until its end. For moments, such as restoring a state."""
    waiting: list[tuple[int, FrameType | None]] = []
    try:
        with _handled(ENDINGS, lambda *call: waiting.append(call), callable) as before:
            yield
    finally:
        for call in waiting[:1]:
            before[call[0]](*call)


# ---------------------------------------------------------------------------------------------------------
# The end of a time slice
# ---------------------------------------------------------------------------------------------------------

_BEGAN = time.monotonic()
_deadline = math.inf


@contextlib.contextmanager
def stopping_after(seconds: float) -> Iterator[None]:
    """In this block, SIGALRM comes so many seconds after this process began, less those that are reserved."""
    global _deadline
    _deadline = _BEGAN + seconds
    _set_alarm(LEAVING_SECONDS)
    try:
        yield
    finally:
        _deadline = math.inf
        signal.setitimer(signal.ITIMER_REAL, 0)


def reserve(seconds: float) -> None:
    """Reserve so many seconds of `stopping_after` for the next save; outside of it, nothing happens."""
    if _deadline < math.inf and signal.getitimer(signal.ITIMER_REAL)[0]:  # it has not come yet
        _set_alarm(LEAVING_SECONDS + seconds)


def _set_alarm(reserved: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, max(_deadline - reserved - time.monotonic(), 0.001))
