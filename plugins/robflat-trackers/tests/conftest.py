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

TINY = """
name = "tiny-trackers"
version = "1.0"
summary = "Everything a run does, in a second."

[fixed]
backbone = "resnet8(width=4, strides=[1, 1, 1], stem_stride=2)"
precision = "float32"
threads = 1

[fixed.data]
dataset = "digits"
train = { pool = "train", start = 0, stop = 60, count = 60 }
heldout = { pool = "train", start = 60, stop = 80, count = 20 }
test = { pool = "train", start = 80, stop = 110, count = 30 }

[fixed.threat]
epsilon = 0.2

[fixed.selection]
attack = "pgd(steps=2)"
every = 2

[[fixed.attacks]]
attack = "pgd(steps=2)"
test = 30
train = 20

[[fixed.attacks]]
attack = "fgsm"
test = 20
checkpoints = ["last"]

[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30

[recipe]
epochs = 4
batch_size = 20
learning_rate = 0.05
epsilon = 0.2
attack_steps = 2
attack_step = 0.1
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
    path.write_text(TINY)
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
