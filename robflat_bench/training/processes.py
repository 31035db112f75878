"""The processes that `torchrun` starts for one training, and what they tell each other."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from robflat_bench.core import RunFailed, UsageError, one_line
from robflat_bench.core.processes import in_torchrun

PATIENCE = timedelta(days=2)
"""How long a process waits for the others, such as for the first one's check at the end of an epoch. Processes that
end are noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from this one.

    Parameters
    ----------
    rank: number of this process, from 0; process 0 leads: it alone writes, and it alone goes on after training.
    count: how many there are.
    device: where the tensors lie that they exchange: "cuda" with NCCL, "cpu" with Gloo.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, [count n, m], in the order of their ranks.

        Parameters
        ----------
        rows: [n, m], of one shape in all processes.

        Raises
        ------
        RunFailed: another process has ended.
        """
        if self.count == 1:
            return rows
        own = rows.to(self.device).contiguous()
        found = own.new_empty(self.count * len(own), *own.shape[1:])
        try:
            torch.distributed.all_gather_into_tensor(found, own)
        except RuntimeError as error:
            reason = f"another process of this run has ended ({one_line(error):.200})"
            raise RunFailed(f"{reason}; type the same command again: it resumes") from error
        return found.to(rows.device)

    def told(self, value: bool) -> bool:
        """The value that process 0 passes. Every process has to call it, and waits for the others."""
        return bool(self.gathered(torch.tensor([[value]], dtype=torch.uint8))[0])

    def share(self, shards: int) -> range:
        """The shards of a batch that this process computes; UsageError if they cannot be divided evenly."""
        each, rest = divmod(shards, self.count)
        if rest:
            raise UsageError(
                f"torchrun started {self.count} processes, and recipe.shards={shards} cannot be divided evenly among "
                f"them; use --set recipe.shards={self.count}, or another --nproc-per-node"
            )
        return range(self.rank * each, (self.rank + 1) * each)


ALONE = Processes()
"""One process."""


@functools.cache
def launched(device: str) -> Processes:
    """The processes that `torchrun` started, connected; this one alone if it was started otherwise.

    Parameters
    ----------
    device: "cpu", or "cuda": then each process takes the GPU of its local rank. If there are fewer GPUs than processes,
        they share the first one.
    """
    if not in_torchrun():
        return ALONE
    nccl = device == "cuda" and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if nccl:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if nccl else "gloo", timeout=PATIENCE)
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Processes(rank, count, "cuda" if nccl else "cpu")
