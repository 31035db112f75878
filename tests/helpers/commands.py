"""The command line in this process, and the tiny protocol under which a run takes about a second."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest

import robflat_bench
from robflat_bench.testing.tiny import tiny_protocol

REPOSITORY = Path(robflat_bench.__file__).parent.parent

TINY = tiny_protocol(
    epochs=2,
    train=20,
    more="""
[[fixed.attacks]]
attack = "fgsm"
test = 20
checkpoints = ["last"]

[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30

[[fixed.measures]]
measure = "worst-case(xi=0.03, steps=2, restarts=1)"
test = 30
checkpoints = ["last"]
""",
)


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line that answers a wrong input; nothing else was written, except the line with which runs begin."""
        assert self.out == ""
        (line,) = re.sub(r"\A\[ +\d+\.\d s\] .*, under .*; device .*\n", "", self.err).splitlines()
        assert line.startswith("robflat-bench: ")
        return line


def run_here(*arguments: object, stdout: TextIO | None = None) -> Done:
    """`robflat-bench ARGUMENTS` in this process, which keeps its thread count; its output goes to `stdout` if given."""
    from robflat_bench.cli import main

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    sys.argv = ["robflat-bench", *map(str, arguments)]
    try:
        streams = contextlib.redirect_stdout(stdout or out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Finished:
    """A finished `run --method at` under the tiny protocol: its store, its folder and what the command wrote."""

    store: Path
    folder: Path
    done: Done

    @property
    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "record.json").read_text())
        return document

    @property
    def key(self) -> str:
        return self.folder.name.rpartition("-")[2]


def promised(record: dict) -> dict:
    """The part of a record that two runs of one spec share: all but times, environment and provenance."""
    record = json.loads(json.dumps(record))
    for name in ("environment", "provenance"):
        del record[name]
    for name in ("seconds", "evaluation_seconds", "peak_memory_bytes"):
        del record["budget"][name]
    for result in record["results"].values():
        del result["seconds"]
        for measure in result["measures"].values():
            del measure["seconds"]
    for epoch in record["history"]:
        del epoch["seconds"]
    return record
