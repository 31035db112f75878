"""The pages tell the truth: their commands are typed, their plugins pass the kit, their links lead somewhere.

Commands are really run, on a store with two small finished runs and a protocol that takes a second; what would train
for minutes is planned only. `RUN` stands for one of the finished runs.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.commands import REPOSITORY, TINY, run_here

from robflat_bench.registry.registry import KINDS, discover
from robflat_bench.testing import run_checks

DOCS = REPOSITORY / "docs"
PAGES = ("README", "quickstart", "your-method", "plugins", "protocol-and-rules", "footguns", "glossary")
TEXTS = {name: (DOCS / f"{name}.md").read_text("utf-8") for name in PAGES}
BLOCK = r"(?m)^```{}\n# ([\w-]+\.{})\b.*\n(?:.*\n)*?^```$"
"""A block that begins with a comment is a file of that name."""


def files(language: str, suffix: str) -> dict[str, str]:
    """Name -> text of the files that pages show; a file that two pages show is the same."""
    found: dict[str, str] = {}
    for text in TEXTS.values():
        for block in re.finditer(BLOCK.format(language, suffix), text):
            body = block[0].partition("\n")[2].removesuffix("```")
            assert found.setdefault(block[1], body) == body
    return found


PLUGINS, TOMLS = files("python", "py"), files("toml", "toml")


class Line(NamedTuple):
    """A command as a page has it, and the variables set before it."""

    page: str
    variables: dict[str, str]
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.arguments)}"


def lines(page: str) -> list[Line]:
    """The commands of a page, in order."""
    found = re.findall(r"(?m)^    ((?:\w+=\S* )*)(?:uv run )?robflat-bench (.*)$", TEXTS[page])
    return [
        Line(page, dict(word.split("=", 1) for word in before.split()), tuple(shlex.split(command, comments=True)))
        for before, command in found
    ]


LINES = [line for page in PAGES for line in lines(page)]


# ---------------------------------------------------------------------------------------------------------
# A place where what the pages say can be typed
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """A store with a finished run of each method that pages compare, under the protocol `tiny`."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "tiny.toml").write_text(TINY)
    (folder / "entropy_at.py").write_text(PLUGINS["entropy_at.py"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        for method in ("at", "trades", "entropy-at"):
            done = run_here("run", "--method", method, "--protocol", "tiny.toml", "--plugin", "entropy_at.py")
            assert done.code == 0, done.err
    return folder / "runs"


@pytest.fixture
def place(finished_runs, tmp_path, monkeypatch, make_site):
    """A folder with the pages' files, finished runs and some of the leaderboard; `tiny` is a plugin's protocol."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name, text in {**PLUGINS, **TOMLS}.items():
        (home / name).write_text(text)
    shutil.copytree(finished_runs, home / "runs")
    for row in ("at", "trades"):
        entries = f"leaderboard/records/digits-linf/{row}"
        shutil.copytree(REPOSITORY / entries, home / entries)
    source = (
        "from pathlib import Path\nfrom robflat_bench.api import hookimpl\n\n"
        "@hookimpl\ndef robflat_bench_protocols():\n    return [Path(__file__).with_name('tiny.toml')]\n"
    )
    make_site("protocols").install("tiny-protocol", {"tiny_protocol.py": source, "tiny.toml": TINY})
    return home


MORE = {
    ("run",): ("--plan",),
    ("sweep",): ("--plan",),
    ("results", "compare"): ("--protocol", "tiny"),
    ("results", "correlate"): ("--protocol", "tiny"),
}
"""Beginning of a command -> what is added to it: minutes of training are planned, comparisons are of the runs here."""


def typed(arguments: tuple[str, ...], key: str) -> list[str]:
    """The command for this place."""
    more = [word for start, words in MORE.items() if arguments[: len(start)] == start for word in words]
    return [key if word == "RUN" else word for word in arguments] + [word for word in more if word not in arguments]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_commands_do_what_they_are_typed_for(line, place, command, monkeypatch):
    for name, value in line.variables.items():
        monkeypatch.setenv(name, value)
    (folder,) = (place / "runs" / "tiny" / "at").iterdir()
    done = command(*typed(line.arguments, folder.name.rpartition("-")[2]))
    assert done.code == 0, done.err
    assert done.out


def test_there_are_commands_of_every_kind():
    assert {line.arguments[0] for line in LINES} >= {
        *("run", "sweep", "evaluate", "list", "info", "results", "doctor", "leaderboard", "plugin")
    }


# ---------------------------------------------------------------------------------------------------------
# What the pages say happens
# ---------------------------------------------------------------------------------------------------------


MASKED = {"masked.py": {"check_gradient_reaches_every_module"}}
"""What footguns.md shows as broken fails its check alone."""


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_pass_the_kit(place, name):
    registry = discover((Path(name),))
    assert not registry.plugins.broken
    offers = [offer for kind in KINDS for offer in registry.offers(kind) if offer.provider.distribution == name]
    (results,) = (run_checks(registry, offer.info.kind, offer.info.name) for offer in offers)
    assert {result.check for result in results if result.outcome != "passed"} == MASKED.get(name, set()), results


def test_the_masked_network_is_flagged(place, command):
    """footguns.md shows the flag."""
    masked = ("--plugin", "masked.py", "--set", "fixed.backbone=masked")
    done = command("run", "--method", "standard", "--protocol", "tiny", *masked)
    assert done.code == 0, done.err
    assert "zero gradients on 100.0%" in TEXTS["footguns"]
    assert "zero gradients on 100.0%" in done.out


def test_the_shown_protocol_runs(place, command):
    done = command("run", "--method", "at", "--protocol", "quick.toml", "--json")
    assert done.code == 0, done.err
    assert done.document["protocol"]["name"] == "quick"


@pytest.mark.parametrize(
    ("change", "board", "row"),
    [
        (("--seed", "2"), True, True),
        (("--method", "trades"), True, False),
        (("--set", "recipe.epochs=3"), True, False),
        (("--set", "fixed.threat.epsilon=0.1"), False, False),
    ],
)
def test_what_changes_what(place, command, change, board, row):
    """protocol-and-rules.md has the table."""
    plan = ("run", "--method", "at", "--plan", "--json")
    before, after = (command(*plan, *more).document for more in ((), change))
    assert before["key"] != after["key"]
    assert (before["spec"]["protocol"]["hash"] == after["spec"]["protocol"]["hash"]) == board
    assert (
        (before["spec"]["protocol"], before["spec"]["label"]) == (after["spec"]["protocol"], after["spec"]["label"])
    ) == row


def test_spelling_and_names_change_nothing(place, command):
    text = TOMLS["quick.toml"]
    Path("other.toml").write_text(text.replace('"quick"', '"other"').replace("epsilon = 0.2", 'epsilon = "1/5"'))
    keys = [
        command("run", "--method", "at", "--protocol", file, "--plan", "--json").document["key"]
        for file in ("quick.toml", "other.toml")
    ]
    assert keys[0] == keys[1]


def test_a_change_of_the_file_is_another_run(place, command):
    plan = ("run", "--method", "entropy-at", "--plugin", "entropy_at.py", "--plan", "--json")
    before = command(*plan).document["key"]
    Path("entropy_at.py").write_text(PLUGINS["entropy_at.py"] + "# a comment\n")
    assert command(*plan).document["key"] != before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "--method", "at", "--set", "fixed.threat.epsilon=8", "--plan"), 2, "less than or equal to 1"),
        (("run", "--method", "surely-none", "--plan"), 2, "unknown method"),
        (("run", "--method", "surely-none", "--plugin", "broken.py", "--plan"), 4, "division by zero"),
        (("list", "methods", "--plugin", "broken.py"), 0, "broken.py file (broken) is broken: ZeroDivisionError"),
        (("evaluate", "weights.pt"), 2, "is no run"),
        (("results", "compare", "at", "trades", "--protocol", "quick"), 2, "unknown protocol 'quick'"),
        (("results", "compare", "at", "trades", "--protocol", "quick.toml"), 2, "no finished run"),
    ],
)
def test_mistakes_are_answered_as_the_pages_say(place, command, arguments, code, said):
    Path("broken.py").write_text("1 / 0\n")
    done = command(*arguments)
    assert done.code == code
    assert said in done.err


# ---------------------------------------------------------------------------------------------------------
# Links
# ---------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page):
    for path, anchor in re.findall(r"\]\(((?!https:)[^)#]*)(?:#([\w-]+))?\)", TEXTS[page]):
        target = DOCS / path if path else DOCS / f"{page}.md"
        assert target.is_file(), path
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{path}#{anchor}"


def test_the_index_names_every_page():
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= set(
        re.findall(r"\((\S+\.md)\)", TEXTS["README"])
    )
