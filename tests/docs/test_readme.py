"""The README tells the truth: its commands are understood, its plugin passes the kit, it names every component."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from robflat_bench.registry.registry import discover
from robflat_bench.testing import run_checks

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line.partition("#")[0])
    for line in re.findall(r"^    (?:.*&& )?uv run robflat-bench (.*)$", README, re.MULTILINE)
]
PLUGIN = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)  # type: ignore[union-attr]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the README's plugin and a study in it."""
    monkeypatch.chdir(tmp_path)
    Path("my_at.py").write_text(PLUGIN)
    Path("my-study.toml").write_text(
        'name="my"\nversion="1.0"\nsummary="-"\nprotocol="digits-linf"\n[[groups]]\ntitle="one"\nmethods=["at"]\n'
    )
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_are_understood(command, place, arguments):
    """Runs and sweeps are planned only; the leaderboard is a copy of the committed one, as large as it is."""
    if arguments[0] == "leaderboard":
        shutil.copytree(REPOSITORY / "leaderboard", place / "leaderboard")
    if arguments[0] in ("run", "sweep"):
        arguments = [*arguments, "--plan"]
    done = command(*arguments)
    if "../shared/data" in arguments:
        assert "CIFAR-10 not found" in done.err, "no data lies beside this folder, and nothing is downloaded here"
    elif "RUN" in arguments:
        assert "'RUN' is no run" in done.err
    else:
        assert done.code == 0, done.err


def test_there_are_commands_of_every_kind():
    assert {arguments[0] for arguments in COMMANDS} >= {
        *("run", "sweep", "evaluate", "list", "info", "results", "doctor", "experiment", "landscape", "leaderboard")
    }


def test_the_first_result_shown_is_a_committed_one(command):
    shown = command("results", "show", "349043bd", "--store", REPOSITORY / "leaderboard" / "records").out.splitlines()
    table = README[README.index("    trades  |  digits-linf") :].split("\n\n")[0].splitlines()
    assert [line.removeprefix("    ") for line in table] == [line.rstrip() for line in shown[: len(table)]]


def test_the_plugin_passes_the_kit(place):
    registry = discover((Path("my_at.py"),))
    assert not registry.plugins.broken
    outcomes = {result.check: result.outcome for result in run_checks(registry, "method", "half-at")}
    assert set(outcomes.values()) == {"passed"}, outcomes


@pytest.mark.parametrize("kind", ["method", "modifier"])
def test_every_method_and_modifier_is_named(registry, kind):
    assert not [name for name in registry.names(kind) if f"`{name}`" not in README]
