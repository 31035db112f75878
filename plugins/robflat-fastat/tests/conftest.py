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
from robflat_bench.registry.registry import Registry, discover
from robflat_bench.testing.tiny import tiny_protocol


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
    path.write_text(tiny_protocol("tiny-fastat", epochs=3))
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
