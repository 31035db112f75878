"""The pages tell the truth: their commands are run, their plugins pass the kit, their links lead somewhere.

Commands run on a store with small finished runs, under a protocol that takes a second; trainings of minutes are planned
only. `RUN` stands for one of the finished runs.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.commands import REPOSITORY, TINY, run_here
from helpers.pages import own_data, trained
from safetensors.torch import save_file
from timm.layers import LayerScale
from torch import nn
from torch.nn.utils import parametrizations

from robflat_bench.core import ImageShape
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import KINDS, discover
from robflat_bench.testing import run_checks

DOCS = REPOSITORY / "docs"
TEXTS = {path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
PAGES = sorted(TEXTS)
RECORDED = {"measures": "minutes of measures", "experiments": "minutes of figures"}
"""Pages whose commands are only understood, on no run, and why."""
BLOCK = r"(?m)^```{}\n# ([\w-]+\.{})\b.*\n(?:.*\n)*?^```$"
"""A block that begins with a comment is a file of that name."""


def files(language: str, suffix: str) -> dict[str, str]:
    """Name -> text of the files on the pages; a file on two pages has the same text on both."""
    found: dict[str, str] = {}
    for text in TEXTS.values():
        for block in re.finditer(BLOCK.format(language, suffix), text):
            body = block[0].partition("\n")[2].removesuffix("```")
            assert found.setdefault(block[1], body) == body
    return found


CODE, TOMLS = files("python", "py"), files("toml", "toml")
PLUGINS = {name: text for name, text in CODE.items() if "@hookimpl" in text}


class Line(NamedTuple):
    """A command on a page, and the variables set before it."""

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
# A folder in which the pages' commands run
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """A store with a finished run of each method that the pages compare, under the protocol `tiny`."""
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
    """A folder with the pages' files, finished runs, weights, a part of the board and a plugin's protocol `tiny`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name, text in {**CODE, **TOMLS}.items():
        (home / name).write_text(text)
    own_data(home)
    shutil.copytree(finished_runs, home / "runs")
    for name in ("net.pth", "resnet18.pth"):
        (home / name).write_bytes(trained())
    save_file(network("resnet8(width=8)", DIGITS).state_dict(), home / "weights.safetensors")
    for row in ("at", "trades"):
        entries = f"leaderboard/records/digits-linf/{row}"
        shutil.copytree(REPOSITORY / entries, home / entries)
    source = (
        "from pathlib import Path\nfrom robflat_bench.api import hookimpl\n\n"
        "@hookimpl\ndef robflat_bench_protocols():\n    return [Path(__file__).with_name('tiny.toml')]\n"
    )
    make_site("protocols").install("tiny-protocol", {"tiny_protocol.py": source, "tiny.toml": TINY})
    return home


def network(text, shape):
    """A backbone with random weights."""
    return resolve(discover(), "backbone", text).build(shape, "relu")


DIGITS = ImageShape(channels=1, size=8, classes=10, mean=(0.5,), std=(0.5,))
MORE = {
    ("run",): ("--plan",),
    ("sweep",): ("--plan",),
    ("sweep", "paper-digits", "--seeds", "3", "--status"): (),
    ("sweep", "paper-digits", "--seeds", "3", "--cancel"): (),
    ("results", "compare"): ("--protocol", "tiny"),
    ("results", "correlate"): ("--protocol", "tiny"),
}
"""Beginning of a command, the longest one counts -> words added to it: minutes of training are planned, comparisons use
the runs here."""


def typed(arguments: tuple[str, ...], key: str) -> list[str]:
    """The command for this folder."""
    more = max((start for start in MORE if arguments[: len(start)] == start), key=len, default=())
    added = [word for word in MORE.get(more, ()) if word not in arguments]
    return [key if word == "RUN" else word for word in arguments] + added


@pytest.mark.parametrize("line", LINES, ids=str)
def test_commands_run_without_an_error(line, place, command, monkeypatch):
    for name, value in line.variables.items():
        monkeypatch.setenv(name, value)
    (folder,) = (place / "runs" / "tiny" / "at").iterdir()
    arguments = typed(line.arguments, "RUN" if line.page in RECORDED else folder.name.rpartition("-")[2])
    if arguments[:2] in (["leaderboard", "build"], ["leaderboard", "claims"]):  # they read the committed board
        shutil.copytree(REPOSITORY / "leaderboard", place / "leaderboard", dirs_exist_ok=True)
    done = command(*arguments)
    if "RUN" in arguments:
        assert "'RUN' is no run" in done.err
    elif "DIR" in arguments:
        assert "CIFAR-10 not found" in done.err, "no data lies there, and nothing is downloaded here"
    else:
        assert done.code == 0, done.err
        assert done.out


def test_the_protocol_on_data_of_ones_own_trains(place, command):
    """your-data.md shows the protocol."""
    done = command("run", "--method", "at", "--protocol", "own-data.toml", "--data", "my-data", "--json")
    assert done.code == 0, done.err
    dataset = done.document["spec"]["dataset"]
    assert dataset["name"].startswith('arrays(classes=10, severity=0, test="test.npz"')
    assert dataset["origin"] == "arrays my-data/train.npz (200 images) + test.npz (100 images)"
    assert not dataset["canonical"]


def test_there_are_commands_of_every_kind():
    assert {line.arguments[0] for line in LINES} >= {
        *("run", "sweep", "evaluate", "list", "info", "results", "doctor", "experiment", "landscape"),
        *("leaderboard", "plugin"),
    }


# ---------------------------------------------------------------------------------------------------------
# Behaviour that the pages describe
# ---------------------------------------------------------------------------------------------------------


NOT_PASSED = {
    "entropy_at.py": {"check_shards_train_apart"},
    "masked.py": {"check_gradient_reaches_every_module"},
    "niced.py": {"check_standings", "check_adopts_by_id", "check_adopts_by_name"},
}
"""The broken plugin of footguns.md with the one check that it fails; a method and a launcher with what they do not
promise."""


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_pass_the_kit(place, name):
    registry = discover((Path(name),))
    assert not registry.plugins.broken
    offers = [offer for kind in KINDS for offer in registry.offers(kind) if offer.provider.distribution == name]
    (results,) = (run_checks(registry, offer.info.kind, offer.info.name) for offer in offers)
    assert {result.check for result in results if result.outcome != "passed"} == NOT_PASSED.get(name, set()), results


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
def test_a_change_moves_board_and_row_as_the_table_says(place, command, change, board, row):
    """The table is in protocol-and-rules.md."""
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
        (("run", "--method", "at", "--set", "fixed.threat.epsilon=8", "--plan"), 2, "at most 1 under linf"),
        (("run", "--method", "surely-none", "--plan"), 2, "unknown method"),
        (("run", "--method", "surely-none", "--plugin", "broken.py", "--plan"), 4, "division by zero"),
        (("list", "methods", "--plugin", "broken.py"), 4, "ZeroDivisionError: division by zero (broken.py, line 1)"),
        (("evaluate", "weights.pt"), 2, "no such file"),
        (("results", "compare", "at", "trades", "--protocol", "quick"), 2, "unknown protocol 'quick'"),
        (("results", "compare", "at", "trades", "--protocol", "quick.toml"), 2, "no finished run"),
    ],
)
def test_mistakes_get_the_exit_codes_and_messages_of_the_pages(place, command, arguments, code, said):
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


OTHERS = [REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")]


@pytest.mark.parametrize("page", [*OTHERS, *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page):
    for path, anchor in re.findall(r"\]\(((?!https:)[^)#]*)(?:#([\w-]+))?\)", page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{path}#{anchor}"


def test_the_index_names_every_page():
    assert set(PAGES) - {"README"} <= set(re.findall(r"\((\S+)\.md\)", TEXTS["README"]))


# ---------------------------------------------------------------------------------------------------------
# Which weights move
# ---------------------------------------------------------------------------------------------------------


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))


class DeclaredGain(Gain):
    fixed_in_weight_space = ("gamma",)


class Odd(nn.Module):
    """A layer for each sentence of the list in your-checkpoint-details.md."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(4))
        self.zeros = nn.Parameter(torch.zeros(4))
        self.register_buffer("statistic", torch.ones(4))
        self.batch, self.layer, self.group, self.rms = (
            *(nn.BatchNorm1d(4), nn.LayerNorm(4)),
            *(nn.GroupNorm(1, 4), nn.RMSNorm(4)),
        )
        self.plain, self.tied = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.tied.weight = self.plain.weight
        self.weight_norm = parametrizations.weight_norm(nn.Linear(4, 4, bias=False))
        self.spectral_norm = parametrizations.spectral_norm(nn.Linear(4, 4, bias=False))
        self.gain, self.declared, self.scale = Gain(), DeclaredGain(), LayerScale(4)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)


def test_the_weights_that_move_are_those_of_the_list():
    computed = "parametrizations.weight"
    moved = {"token", "plain.weight", f"weight_norm.{computed}.original0", f"weight_norm.{computed}.original1"}
    assert {*WeightSpace(Odd()).layers} == moved | {
        f"spectral_norm.{computed}.original",
        "gain.gamma",
        "frozen.weight",
    }
