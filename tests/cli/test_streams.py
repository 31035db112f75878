"""What the command line prints: nothing that a terminal obeys, no output of plugins in a document, to any stdout."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import click
import pytest
from helpers.commands import run_here

import robflat_bench.cli
from robflat_bench.cli import output, streams

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\x7f‮⁦⁩‏‎؜ \x00\rX"
"""Clear the screen, set the title, colours by C1, erase, reverse the direction, break lines, start the line again."""


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey or hide."""
    return {c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


# ---------------------------------------------------------------------------------------------------------
# One text
# ---------------------------------------------------------------------------------------------------------


def test_every_hidden_character_becomes_a_visible_escape():
    assert streams.visible("\x1b[31mred\x7f‮\x9b\udcff") == r"\x1b[31mred\x7f\u202e\x9b\udcff"
    assert streams.visible("35.0 ± 2.1 %\n\tζ — 漢") == "35.0 ± 2.1 %\n\tζ — 漢"
    assert not obeyed(streams.visible("".join(map(chr, range(sys.maxunicode + 1)))))


def test_progress_that_goes_back_to_the_start_of_its_line_takes_new_lines():
    assert streams.visible("\r 10 %\r 20 %") == "\n 10 %\n 20 %"


def test_colours_survive_where_they_are_our_own(monkeypatch):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams.Printed(raw))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    table = output.table("\x1b[1mheading", ["[red]a[/red]\x1b[32m"], [["\x1b[31mhostile‮"]])
    table.columns[0].style = "bold"
    with click.Context(click.Command("x")):
        output.report([], [table, "line \x1b[31m"])
    written = raw.getvalue()
    assert "\x1b[1m" in written
    assert r"\x1b[31mhostile\u202e" in written
    assert r"line \x1b[31m" in written
    assert "[red]a[/red]" in written
    for colour in ("\x1b[31m", "\x1b[32m"):
        assert colour not in written


def test_hidden_characters_leave_the_columns_of_a_table_aligned(monkeypatch):
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams.Printed(raw))
    with click.Context(click.Command("x")):
        output.report([], [output.table("t", ["a", "b"], [["\x1b\x1b", "X"], ["long enough", "X"]])])
    assert len({line.index("X") for line in raw.getvalue().splitlines() if "X" in line}) == 1


PRINTERS = {"print", "echo", "secho", "Console", "write", "pager", "echo_via_pager", "prompt", "confirm"}


def test_every_file_of_the_command_line_prints_by_output():
    """In no other way: `output` and the two modules below it are where text is cleaned."""
    folder = Path(robflat_bench.cli.__file__).parent
    found = {}
    for path in sorted(folder.glob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
        found |= {path.name: names & PRINTERS} if names & PRINTERS else {}
    assert found.keys() <= {"output.py", "console.py", "streams.py", "progress.py"}, found
    assert found["progress.py"] == {"print"}, "by the console of `output`"
    progress = (folder / "progress.py").read_text("utf-8")
    assert progress.count("print(") == progress.count("self.bars.console.print(")


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
