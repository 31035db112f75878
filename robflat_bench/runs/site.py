"""Checks of the place where a launcher starts jobs, by one short job. `robflat-bench doctor --launcher` shows them.

The job runs this module as a program. It answers through files in the store, as runs do.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robflat_bench.core import Exit, Job, Launcher, RobflatError
from robflat_bench.records.removal import TEMPORARY
from robflat_bench.records.store import Busy, RunFolder, write_json
from robflat_bench.runs.exits import exit_of, reason

PATIENCE = 600.0
"""Seconds until a job that has not ended is given up."""

REPLY_SECONDS = 20.0
"""The job waits so long for the reply that bounds the difference of clocks."""

APART_SECONDS = 5.0
"""A larger difference of clocks is a problem: the ages of files, which tell a dead run from a living one, are wrong."""

ARRIVED, REPLY, ANSWER = "arrived", "reply", "answer.json"


def check_site(launcher: Launcher, store: Path, note: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """Start a job and read its answer.

    Parameters
    ----------
    launcher : Launcher
        It starts the job.
    store : Path
        The runs' folder, where the job's files lie until the check ends.
    note : callable
        Called with each change of where the job stands.

    Returns
    -------
    dict
        What was found: the node's name, seconds until the job answered, whether locks hold, and the bounds of the
        node's clock minus this one's, in seconds. Empty without an answer.
    list of str
        Problems, one line each.
    """
    token = secrets.token_hex(4)
    folder = store.absolute() / f"{TEMPORARY}doctor-{token}"
    folder.mkdir(parents=True)
    try:
        with RunFolder(folder / "run").locked():
            return _asked(launcher, folder, f"doctor-{token}", note)
    except (RobflatError, OSError) as error:
        return {}, [f"the launcher cannot start a job: {error}"]
    except KeyboardInterrupt:  # its job would stay in a queue
        launcher.interrupt()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _asked(
    launcher: Launcher, folder: Path, name: str, note: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """What a job in this folder answers, while the lock of the folder `run` in it is held."""
    job = Job(name, (sys.executable, "-m", __name__, str(folder)), folder / "log.txt", seconds=REPLY_SECONDS)
    began, stands = time.time(), ""
    launcher.start(job)
    earliest, ended, latest = began, dict[str, Exit](), None
    while not ended and time.time() - began < PATIENCE:
        if (folder / ARRIVED).exists() and not (folder / REPLY).exists():
            earliest = time.time()
            (folder / REPLY).touch()
        ended = dict(launcher.wait(0.1))
        if latest is None and (folder / ANSWER).exists():
            latest = time.time()
        if (words := launcher.standings().get(name, "")) != stands:
            stands = words
            note(f"the job is {words}" if words else "the job has ended")
    if not ended:
        launcher.interrupt()
        return {}, [f"the job has not ended after {PATIENCE:g} s: {stands or 'its launcher does not say why'}"]
    try:
        answer = json.loads((folder / ANSWER).read_text("utf-8"))
    except (OSError, ValueError):
        why = reason(exit_of(ended[name]), job.log)
        return {}, [f"no answer of the job in {folder.parent}, which its node may not see: {why}"]
    clock = [answer["time"] - (latest or time.time()), answer["time"] - earliest]
    found = {"node": answer["node"], "seconds": answer["time"] - began, "locks": answer["locks"], "clock": clock}
    return found, _problems(found, folder.parent)


def _problems(found: dict[str, Any], store: Path) -> list[str]:
    node, (least, most) = found["node"], found["clock"]
    problems = []
    if not found["locks"]:
        problems.append(f"{node} takes a lock in {store} that is held here: choose another file system with --store")
    if least > APART_SECONDS or most < -APART_SECONDS:
        apart = least if least > 0 else most
        problems.append(f"the clock of {node} differs by {apart:+.0f} s from this one's: synchronise them")
    return problems


def answer(folder: Path) -> None:
    """What the job does: say that it is there, try the lock, wait for the reply, and answer."""
    (folder / ARRIVED).touch()
    try:
        with RunFolder(folder / "run").locked():
            locks = False
    except Busy:
        locks = True
    until = time.monotonic() + REPLY_SECONDS
    while not (folder / REPLY).exists() and time.monotonic() < until:
        time.sleep(0.05)
    write_json(folder / ANSWER, {"node": socket.gethostname(), "time": time.time(), "locks": locks})


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
