"""What the tests share: this plugin alone, the command line in this process, a protocol of seconds."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robflat_bench.cli import main
from robflat_bench.registry import Registry, discover

PROTOCOL = """
name = "tiny-fastat"
version = "1.0"
summary = "Three epochs of three updates on real digits."

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
epochs = 3
batch_size = 20
learning_rate = 0.05
epsilon = 0.2
attack_steps = 2
attack_step = 0.1
"""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin but this one; numerics on one thread, which a command may have changed."""
    monkeypatch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-fastat")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def registry() -> Registry:
    return discover()


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-fastat.toml"
    path.write_text(PROTOCOL)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any]]:
    """`command("list", "methods", "--json")` -> exit code and the document on stdout, or what stderr says."""

    def run(*arguments: object) -> tuple[int, Any]:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["robflat-bench", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, json.loads(out.getvalue()) if out.getvalue() else err.getvalue()

    return run
