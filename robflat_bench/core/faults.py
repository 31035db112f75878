"""Contain what the code of plugins raises, and let Ctrl-C through; recognise errors of a process without memory."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from robflat_bench.core.errors import RunFailed

_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|not enough) (allocate )?memory|_ALLOC_FAILED", re.IGNORECASE)


class Interrupted(KeyboardInterrupt):
    """The user's Ctrl-C. A KeyboardInterrupt of another class was raised by some code."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In this block, Ctrl-C raises `Interrupted`, unless this process handles the signal in a way of its own."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    usual = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """In this block, Ctrl-C waits until its end. For moments, such as restoring a state."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    waiting: list[tuple[int, FrameType | None]] = []
    if callable(before):
        signal.signal(signal.SIGINT, lambda *call: waiting.append(call))
    try:
        yield
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)
            for call in waiting[:1]:
                before(*call)


@contextlib.contextmanager
def contained(failed: Callable[[BaseException], None]) -> Iterator[None]:
    """Run a plugin's code: what it prints goes to stderr, and what it raises, SystemExit included, goes to `failed`.

    Only the user's Ctrl-C leaves the block.
    """
    with interruptible():  # around all: in the block, every Ctrl-C is `Interrupted`
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Interrupted:
            raise
        except BaseException as error:
            failed(error)


def one_line(error: BaseException) -> str:
    """`Class: message` without line breaks."""
    return " ".join(f"{type(error).__name__}: {text_of(error)}".split()).removesuffix(":")


def text_of(error: BaseException) -> str:
    """`str(error)`; a plugin's class may raise there."""
    try:
        return str(error)
    except BaseException:
        return "(its text cannot be made)"


def out_of_memory(error: BaseException) -> RunFailed | None:
    """The error to show where a process ran out of memory, of its own or a GPU's; None for any other error."""
    said = isinstance(error, RuntimeError | OSError) and _NO_MEMORY.search(str(error))
    if not (said or isinstance(error, MemoryError)):  # torch's are RuntimeErrors
        return None
    return RunFailed(
        f"out of memory ({one_line(error):.300}); close other programs or run fewer jobs at a time, and type the same "
        "command again: a run resumes. Training needs less with a smaller --set recipe.batch_size=N"
    )
