"""Keep freed memory in the process, so that the next step of an attack or of training finds its pages mapped.

By default glibc returns the top of the heap once twice the largest freed block lies free there, a few MB here, and the
kernel clears each page again in the next step: several hundred page faults a step for a network whose activations are
1.5 MB each. At most `KEPT` bytes stay. No number changes. The peak of a run of AT on digits was 953 instead of 951 MB.
"""

from __future__ import annotations

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of two parameters in glibc's malloc.h."""
KEPT = 128 << 20
LARGEST = 32 << 20
"""Blocks up to this size come from the heap; the most that glibc accepts, and where its own rule ends."""


@cache
def keep_freed_memory() -> None:
    """Set the C library's allocator, once in a process; nothing happens where it is not glibc's."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; no library of the process itself; Windows
        return
    mallopt(TRIM_THRESHOLD, KEPT)
    mallopt(MMAP_THRESHOLD, LARGEST)
