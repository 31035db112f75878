"""What the command line prints: nothing that a terminal obeys, no output of plugins in a document, to any stdout."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import click
import pytest
from helpers.commands import run_here

import robflat_bench.cli
from robflat_bench.cli import output, streams
from robflat_bench.front.console import console
from robflat_bench.front.grids import grid
from robflat_bench.front.progress import progress_bars
from robflat_bench.front.text import visible

HOSTILE = "\x1b[2J\x1b[8m\x1b]0;owned\x07\x9b31m\x08\x7f\u202e\u2066\u2069\u200f\u200e\u061c\u2028\u2029\rX"
"""Clears the screen, hides text, sets the title, erases, turns the direction of writing, breaks lines."""


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey or hide."""
    return {c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


# ---------------------------------------------------------------------------------------------------------
# One text
# ---------------------------------------------------------------------------------------------------------


def test_every_hidden_character_becomes_a_visible_escape():
    assert visible("\x1b[31mred\x7f\u202e\x9b\udcff") == r"\x1b[31mred\x7f\u202e\x9b\udcff"
    assert visible("35.0 ± 2.1 %\n\tζ — 漢") == "35.0 ± 2.1 %\n\tζ — 漢"
    assert not obeyed(visible("".join(map(chr, range(sys.maxunicode + 1)))))


def test_progress_that_goes_back_to_the_start_of_its_line_takes_new_lines():
    assert visible("\r 10 %\r 20 %") == "\n 10 %\n 20 %"


def test_colours_survive_where_they_are_our_own(monkeypatch):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams.Printed(raw))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    table = grid("\x1b[1mheading", ["[red]a[/red]\x1b[32m"], [["\x1b[31mhostile\u202e"]])
    with click.Context(click.Command("x")):
        output.report([], [table, "line \x1b[31m"])
    written = raw.getvalue()
    assert "\x1b[1m" in written
    assert r"\x1b[31mhostile\u202e" in written
    assert r"line \x1b[31m" in written
    assert "[red]a[/red]" in written
    for colour in ("\x1b[31m", "\x1b[32m"):
        assert colour not in written


def test_hidden_characters_have_their_place_in_the_columns_of_a_table(monkeypatch):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams.Printed(raw))
    with click.Context(click.Command("x")):
        output.report([], [grid("t", ["a", "b"], [["\x1b" * 9, "X"], ["short", "X"]])])
    rows = [line for line in raw.getvalue().splitlines() if "X" in line]
    assert r"\x1b" * 9 in rows[0]
    assert len({line.index("X") for line in rows}) == 1


def test_bars_and_notes_of_a_progress_are_cleaned(monkeypatch):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stderr", streams.Printed(raw))
    bars = progress_bars(console(stderr=True))
    bars.add_task(HOSTILE)
    bars.console.print(f"note: {HOSTILE}", bars.get_renderable(), markup=False)
    assert raw.getvalue().count(r"\x1b[2J") == 2
    assert obeyed(raw.getvalue()) == set()


PRINTERS = {"print", "echo", "secho", "Console", "write", "pager", "echo_via_pager", "prompt", "confirm"}


def test_every_file_behind_the_command_line_prints_cleaned_text():
    """In no other way: these modules are where text is cleaned."""
    package = Path(robflat_bench.__file__).parent
    found = {}
    for path in sorted([*package.glob("cli/*.py"), *package.glob("front/*.py")]):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
        found |= {f"{path.parent.name}/{path.name}": names & PRINTERS} if names & PRINTERS else {}
    drawing = {name: found.pop(name) for name in ("cli/sweep_progress.py", "front/progress.py")}
    assert found.keys() <= {"cli/output.py", "cli/streams.py", "front/text.py", "front/console.py"}, found
    for name, calls in drawing.items():
        assert calls == {"print"}, "by the console of `front`"
        text = (package / name).read_text("utf-8")
        assert text.count("print(") == text.count("self.bars.console.print(")


# ---------------------------------------------------------------------------------------------------------
# Whole commands
# ---------------------------------------------------------------------------------------------------------

PROCESS = [sys.executable, "-m", "robflat_bench"]

NOISY = """
import ctypes, os, subprocess, sys
from robflat_bench.api import hookimpl

def shout():
    print("LOUD")
    os.write(1, b"LOUD")
    sys.__stdout__.write("LOUD")
    subprocess.run(["echo", "LOUD"])
    ctypes.CDLL(None).printf(b"LOUD")  # libc keeps it until the process ends

shout()

@hookimpl
def robflat_bench_methods():
    shout()
    return []
"""


@pytest.mark.parametrize("stderr", ["open", "closed"])
def test_output_of_plugins_by_any_way_stays_out_of_the_document(child_environment, tmp_path, stderr):
    (tmp_path / "noisy.py").write_text(NOISY)
    line = [*PROCESS, "list", "attacks", "pgd", "--json", "--plugin", str(tmp_path / "noisy.py")]
    shell = ["sh", "-c", '"$@" 2>&-' if stderr == "closed" else '"$@"', "sh", *line]
    done = subprocess.run(shell, env=child_environment(), capture_output=True, text=True, check=True)
    assert [row["name"] for row in json.loads(done.stdout)] == ["pgd"]
    assert done.stderr.count("LOUD") == (0 if stderr == "closed" else 10)


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("2>/dev/full", 0), (">/dev/full", 1)]
)
@pytest.mark.parametrize("form", ["--json", ""])
def test_a_stream_that_cannot_be_written_is_no_traceback(child_environment, redirection, code, form):
    """Where stdout is the whole result and the disk is full, the command fails."""
    shell = f"{' '.join(PROCESS)} list attacks {form} {redirection}"
    done = subprocess.run(["sh", "-c", shell], env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    says = "robflat-bench: cannot write to stdout: No space left on device; type the command again with another place"
    assert done.stderr.startswith(says) if code else done.stderr == ""


def test_no_file_that_is_opened_becomes_a_closed_stdout(child_environment):
    code = (
        "import os; from robflat_bench.cli import streams; streams.prepare(False);"
        "assert all(os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3))"
    )
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    subprocess.run(shell, env=child_environment(), check=True)


@pytest.mark.parametrize("form", ["--json", ""])
def test_a_reader_that_has_seen_enough_is_no_failure(child_environment, form):
    shell = f"{{ {' '.join(PROCESS)} list attacks {form}; echo $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", shell], env=child_environment(), capture_output=True, text=True, check=True)
    assert done.stderr == "0\n"


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_finished_run_succeeds_although_stdout_cannot_be_written(finished, tiny, form):
    with open("/dev/full", "w") as full:
        done = run_here("run", "--method", "at", "--protocol", tiny, "--store", finished.store, *form, stdout=full)
    assert done.code == 0, done.err
    assert "cannot write to stdout: No space left on device; the result is stored" in done.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_character_gets_an_escape(finished, tiny, encoding):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as narrow:
        done = run_here("run", "--method", "at", "--protocol", tiny, "--store", finished.store, stdout=narrow)
        written = raw.getvalue().decode(encoding)
    assert done.code == 0, done.err
    assert "robust error, test: PGD-2 x 1" in written
    assert ("\\xb1" if encoding == "ascii" else "±") in written


def test_a_name_that_is_not_unicode_can_be_shown(command):
    done = command("results", "ls", "--store", os.fsdecode(b"no-\xff\x1bstore"))
    assert done.code == 0
    assert r"runs in no-\udcff\x1bstore" in done.out


PLUGIN = """
from robflat_bench.api import AttackInfo, MethodInfo, Params, hookimpl
from pydantic import Field

class MineParams(Params):
    way: int = Field(default=1, description=HOSTILE)

print(HOSTILE)

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("mine", HOSTILE, "mine:Mine", MineParams, citation=HOSTILE)]

@hookimpl
def robflat_bench_attacks():
    raise RuntimeError(HOSTILE)
"""


@pytest.fixture(scope="module")
def hostile(finished, tiny, tmp_path_factory):
    """A folder of a hostile name with a store, a plugin and a protocol whose texts are hostile too."""
    folder = tmp_path_factory.mktemp("hostile") / HOSTILE
    shutil.copytree(finished.store, folder / "store")
    (record,) = folder.glob("store/tiny/at/*/record.json")
    document = json.loads(record.read_text())
    document["environment"] |= {"device_name": HOSTILE, HOSTILE: HOSTILE}
    for result in document["results"].values():
        for measure in result["measures"].values():
            measure |= {"value": None, "standard_error": None, "reason": HOSTILE}
    record.write_text(json.dumps(document))
    failed = folder / "store" / "tiny" / HOSTILE / "seed-1-0123456789abcdef"
    failed.mkdir(parents=True)
    (failed / "spec.json").write_text("{}")
    (failed / "failed.json").write_text(json.dumps({"key": "0123456789abcdef", "error": HOSTILE}))
    (folder / "mine.py").write_text(f"HOSTILE = {HOSTILE!r}\n{PLUGIN}")
    text = tiny.read_text().replace('summary = "', 'summary = "' + json.dumps(HOSTILE)[1:-1])
    (folder / "tiny.toml").write_text(text)
    (folder / "weights.safetensors").write_bytes(b"no weights")
    return folder


COMMANDS = [
    "list methods --plugin FOLDER/mine.py",
    "list methods --plugin FOLDER/none.py",
    "info mine --plugin FOLDER/mine.py",
    "info HOSTILE",
    "list HOSTILE",
    "HOSTILE",
    "list methods --HOSTILE",
    "run --method at --seed HOSTILE",
    "run --method HOSTILE",
    "run --method at --protocol HOSTILE",
    "run --method at --protocol FOLDER/tiny.toml --store FOLDER --plan",
    "run --method at --protocol TINY --store FOLDER/store",
    "run --method at --protocol TINY --store FOLDER/store --plan",
    "run --method mine --protocol TINY --store FOLDER/store --plugin FOLDER/mine.py",
    "run --method at --set HOSTILE",
    "evaluate FOLDER/weights.safetensors --backbone HOSTILE",
    "evaluate HOSTILE --store FOLDER/store",
    "sweep HOSTILE",
    "sweep FOLDER/tiny.toml",
    "experiment HOSTILE FOLDER/store",
    "plugin list --plugin FOLDER/mine.py",
    "plugin check FOLDER/none.py",
    "doctor --store FOLDER/store --data FOLDER",
    "results ls --store FOLDER/store",
    "results show HOSTILE --store FOLDER/store",
    "results prune --store FOLDER/store",
    "results export --store FOLDER/store --output FOLDER/out.csv",
    "results report --store FOLDER/store --protocol TINY",
    "results compare HOSTILE at --store FOLDER/store --protocol TINY",
    "leaderboard show --store FOLDER/store --leaderboard FOLDER",
    "leaderboard check FOLDER/store --leaderboard FOLDER",
    "leaderboard build --leaderboard FOLDER/none",
    "leaderboard serve --site FOLDER",
]


@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_sends_a_terminal_what_it_would_obey(hostile, tiny, line, form):
    places = {"FOLDER": str(hostile), "HOSTILE": HOSTILE, "TINY": str(tiny)}
    arguments = [functools.reduce(lambda word, name: word.replace(name, places[name]), places, w) for w in line.split()]
    done = run_here(*arguments, *([form] if form else []))
    assert done.code in (0, 1, 2, 3, 4)
    assert obeyed(done.out) == obeyed(done.err) == set()
    assert done.code == 4 or "Traceback" not in done.err
    if form == "" and done.code == 0:
        assert "\\u202e" in done.out + done.err, "shown as an escape"


# ---------------------------------------------------------------------------------------------------------
# Terminals and surroundings
# ---------------------------------------------------------------------------------------------------------


def on_terminal(line, environment):
    """What a terminal of 100 columns receives from a command."""
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (40, 100))
    with subprocess.Popen([*PROCESS, *line], env=environment, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        received = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(main, 65536):
                received += part
    os.close(main)
    return process.returncode, received.decode()


def test_a_terminal_receives_our_colours_and_nothing_else(child_environment, tmp_path):
    store = tmp_path / HOSTILE
    environment = child_environment() | {"TERM": "xterm-256color"}
    for line in (["results", "ls", "--store", str(store)], ["--help"], ["list", HOSTILE]):
        code, received = on_terminal(line, environment)
        colours = re.findall(r"\x1b\[[0-9;]*m", received)
        assert obeyed(re.sub(r"\x1b\[[0-9;]*m", "", received.replace("\r\n", "\n"))) == set()
        assert "\x1b[8m" not in colours
        assert bool(colours) == (code == 0)


def test_a_deleted_folder_is_one_line(command, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = command("list", "attacks")
    assert (done.code, done.out) == (2, "")
    assert done.err == "robflat-bench: the folder in which you are does not exist any more; `cd` to another one\n"


def test_an_unexpected_error_is_cleaned_too(child_environment):
    code = (
        "import sys; from robflat_bench import cli; from robflat_bench.cli import results\n"
        f"def fail(**_): raise RuntimeError({HOSTILE!r})\n"
        "results.list_runs.callback = fail; sys.argv = ['x', 'results', 'ls']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: " in done.stderr
    assert obeyed(done.stderr) == set()
