"""What a job asks its scheduler for where the user does not say: from what its run is expected to need."""

from __future__ import annotations

import math

from robflat_bench.api import Job, Resources

MEMORY = r"^[1-9][0-9]{0,6}[MGT]$"
"""How users write memory."""

MEMORY_TEXT = (
    "Memory of each job, '16G'. By default 1.5 times the expected peak, at least 2 GiB; {else_} if nothing is known."
)

GPUS_TEXT = "GPUs of each job; by default one if this machine's device is cuda."

_MARGIN, _LEAST = 1.5, 2048
"""A job's memory where it is not given: so many times the expected peak, and at least so many MiB."""


def mebibytes(job: Job) -> int | None:
    """Memory of a job whose user gives none; None if nothing like it was run yet."""
    return None if job.memory is None else max(_LEAST, math.ceil(_MARGIN * job.memory / 2**20))


def gpus(given: int | None, resources: Resources) -> int:
    """GPUs of each job."""
    return int(resources.device == "cuda") if given is None else given
