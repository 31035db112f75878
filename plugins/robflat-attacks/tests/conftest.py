"""A tiny protocol, this plugin's registry, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from robflat_bench.testing.tiny import tiny_protocol


@pytest.fixture(scope="session")
def registry():
    """The built-in components and this package's."""
    from robflat_bench.registry.registry import discover

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-attacks")
        return discover()


@pytest.fixture(scope="session")
def command(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("evaluate", ...)` in a folder of its own, as a user types it."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "tiny.toml").write_text(tiny_protocol())
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
