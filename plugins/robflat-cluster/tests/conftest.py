"""The daemons of SLURM and of Ray for the whole session, and this plugin alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs_server import JobsServer, jobs_server
from one_machine import Absent, OneMachine, install
from two_nodes import TwoNodes, absent

from robflat_bench.api import Job
from robflat_cluster.ray import Ray
from robflat_cluster.slurm import Slurm

EAGER = "SchedulerParameters=batch_sched_delay=0\n"
"""SLURM starts what it can at once, instead of every three seconds."""


@pytest.fixture(scope="session")
def _daemons(tmp_path_factory) -> Iterator[OneMachine]:
    try:
        install()
    except Absent as why:
        pytest.skip(str(why))
    with OneMachine(tmp_path_factory.mktemp("slurm"), EAGER) as started:
        yield started


@pytest.fixture
def machine(_daemons, monkeypatch) -> Iterator[OneMachine]:
    """A running SLURM of two slots, which SLURM's commands find."""
    for name, value in _daemons.environment.items():
        monkeypatch.setenv(name, value)
    yield _daemons
    _daemons.settle()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """`job("a", "exit 3")` -> a job that bash executes, with a name that no other test has."""
    test = secrets.token_hex(4)

    def made(name: str, line: str, **needs: object) -> Job:
        return Job(f"{test}-{name}", ("bash", "-c", line), tmp_path / f"{name}.txt", **needs)

    return made


@pytest.fixture
def server() -> Iterator[JobsServer]:
    """A stand-in of Ray's dashboard."""
    with jobs_server() as started:
        yield started


@pytest.fixture(scope="session")
def _nodes() -> Iterator[TwoNodes]:
    if why := absent():
        pytest.skip(why)
    with TwoNodes() as started:
        yield started


@pytest.fixture
def nodes(_nodes, _surroundings, monkeypatch) -> Iterator[TwoNodes]:
    """A running Ray of two slots, which `ray` finds without an address."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", _nodes.address)
    yield _nodes
    _nodes.settle()


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch) -> None:
    """This plugin and no other, which looks often; no options from the developer's shell."""
    monkeypatch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-cluster")
    monkeypatch.setattr(Slurm, "pace", 0.3)
    monkeypatch.setattr(Ray, "pace", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "SQUEUE_", "SCANCEL_", "RAY_"))]:
        monkeypatch.delenv(name)
