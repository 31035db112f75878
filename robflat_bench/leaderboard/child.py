"""The command line in a process of its own, which ends when this process ends, however that happens."""

from __future__ import annotations

import subprocess
import sys

# Only this process holds the other end of the child's stdin: reading it ends with this process, even after `kill -9`.
WATCHED = """
import os, sys, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "robflat-bench"
from robflat_bench.cli import main
main()
"""


def run_child(*arguments: str) -> int:
    """Run `robflat-bench ARGUMENTS`, with stderr here and stdout nowhere, and return its exit code."""
    command = [sys.executable, "-P", "-c", WATCHED, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        return process.wait()
