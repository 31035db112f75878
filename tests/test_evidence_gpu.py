"""`benchmarks/evidence_gpu.sh` with a stub in place of Python: its arguments, and what it brings back."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "evidence_gpu.sh"
LIMIT = 16_000_000
"""Bytes below which every file that comes back must stay."""
STUB = """
import os, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
if "--record" in options:
    pathlib.Path(options["--record"]).write_text("{}")
else:
    with open(pathlib.Path(options["--store"], "state"), "ab") as state:
        state.write(os.urandom(int(os.environ["BYTES"])))
    print("epoch 3 of 30", *sys.argv)
    sys.exit(int(os.environ["EXIT"]))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)

    def run(*arguments, **environment):
        made = {"PYTHON": f"{sys.executable} {tmp_path / 'stub.py'}", "DEVICE": "cpu", "BYTES": "1000", "EXIT": "0"}
        return subprocess.run(
            ["bash", SCRIPT, *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **made, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def packed(out):
    """The parts of the store, and the content of its file."""
    parts = sorted(out.glob("run.tar.gz-*"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as store:
        return parts, store.extractfile("./state").read()


def test_bash_can_read_it():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ((), {}, "usage: "),
        (("--help",), {}, "usage: "),
        (("out", "earlier", "more"), {}, "usage: "),
        *((("out",), {"MINUTES": minutes}, "MINUTES is a whole number") for minutes in ("0", "1", "2.5", "x", "-8")),
        (("out", "nowhere"), {}, "EARLIER: no run.tar.gz-00 in "),
    ],
)
def test_wrong_arguments_are_a_line_and_make_nothing(script, tmp_path, arguments, environment, said):
    done = script(*arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stub.py"]


def test_every_file_that_comes_back_is_small_and_the_parts_are_the_store(script, tmp_path):
    done = script("out", BYTES=str(LIMIT + 1_000_000))
    assert done.returncode == 0, done.stderr
    assert "the run has its record" in done.stdout
    out = tmp_path / "out"
    assert max(path.stat().st_size for path in out.iterdir()) < LIMIT
    parts, state = packed(out)
    assert (len(parts), len(state)) == (2, LIMIT + 1_000_000)
    assert {path.name for path in out.iterdir()} == {"gpu.json", "run.log", *(part.name for part in parts)}
    assert all(path.name in done.stdout for path in out.iterdir())


def test_a_stopped_run_continues_from_its_parts(script, tmp_path):
    done = script("first", EXIT="130", DATA="data", SEED="7", MINUTES="2")
    assert done.returncode == 0, done.stderr
    assert "the run stopped after: epoch 3 of 30" in done.stdout
    assert f"--seed 7 --device cpu --store {tmp_path}/first/store --data {tmp_path}/data" in done.stdout
    assert script("second", "first", EXIT="130").returncode == 0
    (_, first), (_, second) = packed(tmp_path / "first"), packed(tmp_path / "second")
    assert (second[:1000], len(second)) == (first, 2000)


def test_a_failed_run_passes_on_its_exit_status_and_keeps_the_store(script, tmp_path):
    done = script("out", EXIT="3")
    assert done.returncode == 3
    assert "the run failed (exit 3)" in done.stdout
    assert len(packed(tmp_path / "out")[1]) == 1000
