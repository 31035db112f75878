"""The README tells the truth: its commands are understood, its code runs, its numbers are in committed records."""

from __future__ import annotations

import html
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY
from helpers.pages import FILES, trained

from robflat_bench.registry.registry import discover
from robflat_bench.testing import run_checks

README = (REPOSITORY / "README.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line.partition("#")[0])
    for line in re.findall(r"^    (?:.*&& )?uv run robflat-bench (.*)$", README, re.MULTILINE)
]
(PLUGIN,) = re.findall(r"```python\n(from robflat_bench.api.*?)```", README, re.DOTALL)
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
FIGURES = REPOSITORY / "docs" / "figures"


@pytest.fixture(scope="module")
def boards():
    """The committed boards, by id."""
    document = json.loads((REPOSITORY / "leaderboard" / "board.json").read_text("utf-8"))
    return {board["id"]: board for board in document["boards"]}


@pytest.fixture(scope="module")
def board(boards):
    """The board that the README shows."""
    return boards["cifar10-mini"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the README's plugin, and the network and weights of your-checkpoint.md."""
    monkeypatch.chdir(tmp_path)
    Path("my_at.py").write_text(PLUGIN)
    Path("net.py").write_text(FILES["net.py"])
    for name in ("net.pth", "resnet18.pth"):
        Path(name).write_bytes(trained())
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_are_understood(command, place, arguments):
    """Runs are planned only; the leaderboard is a copy of the committed one, as large as it is."""
    if arguments[0] == "leaderboard":
        shutil.copytree(REPOSITORY / "leaderboard", place / "leaderboard")
    if arguments[0] == "run":
        arguments = [*arguments, "--plan"]
    done = command(*arguments)
    if "DIR" in arguments:
        assert "CIFAR-10 not found" in done.err, "no data lies there, and nothing is downloaded here"
    elif "RUN" in arguments:
        assert "'RUN' is no run" in done.err
    else:
        assert done.code == 0, done.err


def test_there_are_commands_of_every_kind():
    """The other commands are on the pages of docs/, whose tests type them."""
    assert {arguments[0] for arguments in COMMANDS} >= {"run", "evaluate", "plugin", "leaderboard"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_the_test_command_is_the_one_that_ci_calls():
    for page in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        assert "uv run pytest -n 2 --dist loadfile" in (REPOSITORY / page).read_text("utf-8")


def test_the_first_result_shown_is_a_committed_one(command):
    shown = command("results", "show", "349043bd", "--store", REPOSITORY / "leaderboard" / "records").out.splitlines()
    table = README[README.index("    trades  |  digits-linf") :].split("\n\n")[0].splitlines()
    assert [line.removeprefix("    ") for line in table] == [line.rstrip() for line in shown[: len(table)]]


def test_the_plugin_passes_the_kit(place):
    registry = discover((Path("my_at.py"),))
    assert not registry.plugins.broken
    outcomes = {result.check: result.outcome for result in run_checks(registry, "method", "half-at")}
    assert set(outcomes.values()) == {"passed"}, outcomes


def test_the_top_five_are_those_of_the_board(board):
    flatness = next(q["id"] for q in board["quantities"] if q["protocol"] and q["title"].startswith("average-case"))

    def row(found):
        place = found["places"]["robust_error"]
        error, flat = (found["values"]["last"][quantity] for quantity in ("robust_error", flatness))
        halves = [max(value["high"] - value["mean"], value["mean"] - value["low"]) for value in (error, flat)]
        return (
            f"| {place['rank']} ({place['low']}-{place['high']}) {place['letters']} | `{found['label']}` "
            f"| {error['seeds']} | {100 * error['mean']:.1f} ± {100 * halves[0]:.1f} % "
            f"| {flat['mean']:.3f} ± {halves[1]:.3f} |\n"
        )

    ranked = [found for found in board["rows"] if found["places"]["robust_error"]["rank"] <= 5]
    ranked.sort(key=lambda found: found["places"]["robust_error"]["rank"])
    sizes = {q["id"]: q["n"] for q in board["quantities"]}
    head = (
        f"| rank (95 %) | method | seeds | robust error, n = {sizes['robust_error']} "
        f"| average-case flatness (nats), n = {sizes[flatness]} |\n|---|---|---|---|---|\n"
    )
    assert head + "".join(map(row, ranked)) + "\n" in README
    assert f"The five lowest robust errors of {len(board['rows'])} rows" in README


@pytest.mark.parametrize("target", ["gap_robust_loss", "robust_loss"])
def test_the_correlations_are_those_of_the_board(board, target):
    (statistic,) = (
        statistic
        for found in board["correlations"]
        if found["target"] == target and found["checkpoint"] == "last"
        if found["quantity"].startswith("measure:average-case(") and 'coupling="reattack"' in found["quantity"]
        for statistic in found["statistics"]
        if statistic["name"] == "spearman"
    )
    assert "{value:.2f} [{low:.2f}, {high:.2f}]".format(**statistic) in README


def verdicts(board) -> str:
    """The claims of the paper by verdict, as the README lists them."""

    def listed(verdict):
        found = [one["id"] for one in board["claims"] if one["verdict"] == verdict and one["id"][0] == "C"]
        return ", ".join(found) or "none"

    return (
        f"supports {listed('supported')}; contradicts {listed('contradicted')}; "
        f"leaves {listed('undecided')} undecided; cannot test {listed('not testable')}"
    )


def test_the_verdicts_are_those_of_the_boards(board, boards):
    said, digits = README.replace("\n", " "), boards["digits-linf"]
    assert f"this board {verdicts(board)} (`leaderboard claims`)." in said
    assert f"`digits-linf` ({len(digits['rows'])} methods) {verdicts(digits)}." in said


def test_the_badges_say_what_the_package_declares():
    declared = PYPROJECT["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(declared["classifiers"]))
    badges = {"licence": declared["license"], "python": " | ".join(pythons)}
    assert declared["requires-python"] == f">={pythons[0]}"
    for name, text in badges.items():
        assert re.search(rf"!\[\w+: {re.escape(text)}\]\(docs/figures/{name}.svg\)", README)
        assert f">{text}</text>" in (FIGURES / f"{name}.svg").read_text("utf-8")


# ---------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------


def test_the_picture_shows_the_committed_board(board):
    """Row by row: mean over seeds and 95 % interval of gap and flatness, kept in the SVG's description."""
    text = (FIGURES / "gap_against_flatness.svg").read_text("utf-8")
    shown = json.loads(html.unescape(re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)[1]))  # type: ignore[index]
    flatness = next(q["id"] for q in board["quantities"] if q["protocol"] and q["title"].startswith("average-case"))
    expected = {
        row["label"]: {
            name: [row["values"]["last"][quantity][key] for key in ("mean", "low", "high")]
            for name, quantity in {"flatness": flatness, "gap": "gap_robust_loss"}.items()
        }
        for row in board["rows"]
    }
    assert shown["points"] == expected
    assert "lower is flatter" in text
    assert "39 methods and variants, 3 to 5 training seeds each" in shown["caption"]


def test_the_picture_has_a_mark_for_every_row(monkeypatch):
    """Also for a method that no family names."""
    monkeypatch.syspath_prepend(FIGURES)
    made = importlib.import_module("gap_against_flatness")
    plotted = made.read()
    (axes,) = made.figure(plotted).axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    marks = [point for bars in axes.containers for point in bars.lines[0].get_xydata()]
    assert len(marks) == len(plotted.rows)
    assert all(left < x < right and low < y < high for x, y in marks)


def test_the_picture_is_the_same_bytes_each_time():
    """Drawn in two fresh processes."""
    code = "import sys; sys.path[:0] = [sys.argv[1]]; import gap_against_flatness as made, hashlib; "
    code += "print(hashlib.sha256(made.drawn(made.read())).hexdigest())"
    printed = {subprocess.check_output([sys.executable, "-c", code, FIGURES], text=True) for _ in range(2)}
    assert len(printed) == 1
