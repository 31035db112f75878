"""The kit's checks of launchers, on a real SLURM."""

from __future__ import annotations

from robflat_bench.testing import parametrize_checks


@parametrize_checks("robflat-cluster")
def test_conformance(check, machine):
    check()
