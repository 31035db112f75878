"""Ctrl-C at any line of a write of arrays is a KeyboardInterrupt, and nothing of Python's own fails on its way out."""

import signal
import sys
import zipfile

import numpy as np
import pytest

from robflat_bench.core.archives import arrays_bytes
from robflat_bench.data import cache

ARRAYS = {"a": np.arange(5.0), "b": np.ones((2, 3), np.float32)}


class _AtLine:
    """Sends SIGINT at the n-th line of zipfile; `sent` says whether it came to that."""

    def __init__(self, lines: int) -> None:
        self.left, self.sent = lines, False

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename == zipfile.__file__ and event == "line":
            self.left -= 1
            if self.left == 0:
                self.sent = True
                signal.raise_signal(signal.SIGINT)
        return self


def _cached():
    cache.cached("name", lambda: ARRAYS, lambda arrays: None)


@pytest.mark.parametrize("write", [lambda: arrays_bytes(ARRAYS), _cached], ids=["arrays_bytes", "cached"])
def test_an_interruption_at_any_line_stays_one(write, tmp_path, monkeypatch):
    write()
    usual = sys.gettrace()
    for lines in range(1, 1000, 3):
        monkeypatch.setattr(cache, "cache_folder", lambda lines=lines: tmp_path / str(lines))
        at = _AtLine(lines)
        sys.settrace(at)
        try:
            write()
        except KeyboardInterrupt:
            assert at.sent
        finally:
            sys.settrace(usual)
        if not at.sent:
            break
    assert not at.sent
    assert lines > 100
