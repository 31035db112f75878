"""A tiny protocol, this plugin's registry, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """
name = "tiny"
version = "1.0"
summary = "One epoch on digits."

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

[[fixed.attacks]]
attack = "pgd(steps=2)"
test = 30

[recipe]
epochs = 1
batch_size = 20
learning_rate = 0.05
epsilon = 0.2
attack_steps = 2
attack_step = 0.1
"""


@pytest.fixture(scope="session")
def registry():
    """The built-in components and this package's."""
    from robflat_bench.registry import discover

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-attacks")
        return discover()


@pytest.fixture(scope="session")
def command(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("evaluate", ...)` in a folder of its own, as a user types it."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "tiny.toml").write_text(TINY)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "ROBFLAT_BENCH_PLUGINS": "robflat-attacks", "PYTHONPATH": path}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "robflat_bench", *arguments]
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def trained(command) -> str:
    """The key of a finished run."""
    done = command("run", "--method", "at", "--protocol", "tiny.toml", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["key"])
