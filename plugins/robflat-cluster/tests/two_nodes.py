"""A real Ray on this machine alone: a head and a second node with one CPU each, on two addresses of loopback.

Ray's daemons run by the `ray` command on the PATH, the jobs by this Python: they share nothing but the files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from one_machine import free_ports, processes_with, until

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
"""Addresses of the nodes. Ray replaces 127.0.0.1 by the machine's own address, which others can reach."""

START_SECONDS = 600
"""A node on a busy machine starts in minutes: it imports its Python twelve times."""

PATIENCE = dict.fromkeys(("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "RAY_worker_register_timeout_seconds"), str(START_SECONDS))
"""Ray's own patience with its dashboard and with the process of a job, both 60 s by default."""

AGENT_PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
"""Given, because a node gives up after 15 s of waiting for ports that its agents choose."""


NODE = "TEST_NODE"
"""A variable that marks all processes of a node."""


def absent() -> str:
    """Why there is no Ray here; "" if there is."""
    if shutil.which("ray"):
        return ""
    return "there is no command `ray` on the PATH: pip install './plugins/robflat-cluster[ray]'"


class TwoNodes:
    """Starts and ends the nodes. `address` is that of the dashboard."""

    def __init__(self) -> None:
        # the paths of Ray's sockets are long, and the longest that Linux takes has 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.port, self.dashboard = free_ports(2)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> TwoNodes:
        try:
            dashboard = [f"--dashboard-port={self.dashboard}", "--dashboard-host=127.0.0.1"]
            client = f"--ray-client-server-port={free_ports(1)[0]}"
            self._start(HEAD, "--head", f"--port={self.port}", client, f"--temp-dir={self.folder}", *dashboard)
            self.start_second()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self._nodes):
            self._kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_second(self) -> None:
        """Start the second node, and wait until Ray gives it jobs."""
        self._start(SECOND, f"--address={HEAD}:{self.port}")

    def kill_second(self, with_jobs: bool) -> None:
        """End the second node as a power failure does, or as a lost network, behind which its jobs go on."""
        self._kill(SECOND, with_jobs)

    def job(self, id: str) -> dict[str, Any]:
        """What Ray says of a job."""
        return next(job for job in self.jobs() if job["submission_id"] == id)

    def jobs(self) -> list[dict[str, Any]]:
        """Ray's table."""
        found: list[dict[str, Any]] = self._asked("/api/jobs/")
        return found

    def stop(self, id: str) -> None:
        """What `ray job stop` does."""
        self._asked(f"/api/jobs/{id}/stop", b"")

    def settle(self) -> None:
        """No job waits or runs, and both nodes are up."""
        for job in self.jobs():
            if job["status"] in ("PENDING", "RUNNING"):
                self.stop(job["submission_id"])
        until(lambda: all(job["status"] not in ("PENDING", "RUNNING") for job in self.jobs()), 300)
        if SECOND not in self._nodes:
            self.start_second()

    def _asked(self, path: str, body: bytes | None = None) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.address + path, body, timeout=60) as answer:
            return json.load(answer)

    def _start(self, node: str, *words: str) -> None:
        ports = [f"--{name}-port={port}" for name, port in zip(AGENT_PORTS, free_ports(4), strict=True)]
        limits = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        with (self.folder / f"{node}.log").open("ab") as log:
            self._nodes[node] = subprocess.Popen(
                [str(shutil.which("ray")), "start", f"--node-ip-address={node}", *words, *ports, *limits],
                env={**os.environ, **PATIENCE, NODE: self._mark(node)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: self._is_up(node), START_SECONDS)

    def _mark(self, node: str) -> str:
        return f"{self.folder}-{node}"

    def _is_up(self, node: str) -> bool:
        if self._nodes[node].poll() is not None:
            pytest.fail((self.folder / f"{node}.log").read_text()[-4000:])
        with contextlib.suppress(OSError, ValueError):
            summary = self._asked("/nodes?view=summary")["data"]["summary"]
            return any(
                one["raylet"].get("nodeManagerAddress") == node and one["raylet"].get("state") == "ALIVE"
                for one in summary
            )
        return False

    def _kill(self, node: str, with_jobs: bool = True) -> None:
        """Kill Ray's processes of a node; those of its jobs are in sessions of their own."""
        daemon = self._nodes.pop(node)
        found = processes_with(**{NODE: self._mark(node)})
        ours = [pid for pid in found if with_jobs or not _is_of_a_job(pid)]
        for pid in [daemon.pid, *ours]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()


def _is_of_a_job(pid: int) -> bool:
    """Whether a process is a job's: only these have Ray's description of the job."""
    with contextlib.suppress(OSError):
        return b"\0RAY_JOB_CONFIG_JSON_ENV_VAR=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False
