"""A tiny protocol, and the command line: in this process, and in one of its own that is watched."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from robflat_bench.testing.tiny import tiny_protocol

MORE = """
[[fixed.attacks]]
attack = "fgsm"
test = 20
checkpoints = ["last"]

[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30
"""


@pytest.fixture(autouse=True, scope="session")
def _surroundings() -> Iterator[None]:
    """This plugin and no other, with both trackers, beside the store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-trackers")
        for name in ("ROBFLAT_TRACKERS", "MLFLOW_TRACKING_URI", "ROBFLAT_BENCH_DATA"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A protocol file under which a run takes about a second."""
    path = tmp_path_factory.mktemp("protocol") / "tiny-trackers.toml"
    path.write_text(tiny_protocol("tiny-trackers", epochs=4, every=2, train=20, more=MORE))
    return path


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code and what it wrote."""

    code: int
    out: str
    err: str


def run_here(*arguments: object) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["robflat-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("robflat_bench", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def command() -> Callable[..., Done]:
    """`command("list", "methods")` -> Done, in this process."""
    return run_here


WATCHED = """
import runpy, sys
log = open(sys.argv.pop(1), "a")
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") or (event == "import" and arguments[0] == "tensorflow"):
        print(event, arguments, file=log, flush=True)
sys.addaudithook(watch)
runpy.run_module("robflat_bench", run_name="__main__", alter_sys=True)
"""


def run_watched(log: Path, *arguments: object) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_CURRENT_TEST", "CI")}
    del environment["MLFLOW_DISABLE_TELEMETRY"]  # ours, which this process has set on its import
    line = [sys.executable, "-c", WATCHED, *map(str, (log, *arguments))]
    return subprocess.run(line, env=environment, capture_output=True, timeout=500).returncode


@pytest.fixture(scope="session")
def watched() -> Callable[..., int]:
    """`watched(log, "list", "methods")` -> return code of a process in which every attempt to reach the network or to
    import TensorFlow is a line of the log, and that does not look like CI, where MLflow sends nothing anyway."""
    return run_watched
