"""Contain what the code of plugins raises, and let signals through; recognise errors of a process without memory."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator

from robflat_bench.core.errors import RunFailed
from robflat_bench.core.signals import Interrupted, interruptible

_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|not enough) (allocate )?memory|_ALLOC_FAILED", re.IGNORECASE)


@contextlib.contextmanager
def contained(failed: Callable[[BaseException], None]) -> Iterator[None]:
    """Run a plugin's code: what it prints goes to stderr, and what it raises, SystemExit included, goes to `failed`.

    Only `Interrupted` leaves the block.
    """
    with interruptible():  # around all: in the block, every signal is `Interrupted`
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
