"""A process that verification starts ends with the process that started it, and says how it ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from robflat_bench.leaderboard.child import run_child

PARENT = """
from robflat_bench.leaderboard import child
child.WATCHED = child.WATCHED.partition("sys.argv")[0] + (
    "import time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
)
child.run_child("run")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_verify_ends_its_child(number):
    with subprocess.Popen([sys.executable, "-c", PARENT], stderr=subprocess.PIPE) as parent:
        child = int(parent.stderr.readline())
        parent.send_signal(number)
        parent.wait()
        deadline = time.monotonic() + 10
        while _lives(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = _lives(child)
        if left:
            os.kill(child, signal.SIGKILL)
    assert not left


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:  # a zombie waits for its new parent
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_the_exit_code_is_the_commands(capfd):
    assert run_child("run", "--method", "none-of-this-name") == 2
    assert "none-of-this-name" in capfd.readouterr().err
    assert run_child("--version") == 0
