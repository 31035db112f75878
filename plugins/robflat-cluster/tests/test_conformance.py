"""The kit's checks of launchers, on a real SLURM and on a real Ray."""

from __future__ import annotations

import pytest

from robflat_bench.testing import parametrize_checks


@parametrize_checks("launcher:slurm")
def test_slurm(check, machine):
    check()


@pytest.mark.slow
@parametrize_checks("launcher:ray")
def test_ray(check, nodes):
    """All of them, each job in about 5 seconds; Ray keeps no exit code of a job that it stops, and none is reported."""
    check()
