"""The session: what every run and every evaluation of one process shares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from robflat_bench.config.protocol import Fixed, Protocol, SplitName
from robflat_bench.core import Examples, Observer, Threat, UsageError
from robflat_bench.data.own import OwnSplits
from robflat_bench.data.splits import Splits, load_splits
from robflat_bench.numerics.allocator import keep_freed_memory
from robflat_bench.numerics.compilation import Compilation
from robflat_bench.records.store import Store
from robflat_bench.registry.faults import faults
from robflat_bench.registry.registry import Registry

OPERATIONS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn")),
    *(getattr(torch.backends.mkldnn, name) for name in ("conv", "rnn", "matmul")),
)
"""What torch computes in a reduced precision on request."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""torch's name of a protocol's precision."""


@dataclass(frozen=True)
class Session:
    """What every run and every evaluation of one process shares.

    Parameters
    ----------
    registry : Registry
        Finds every component by its name.
    protocol : Protocol
        Says which data, attacks, measures and precision are used.
    data : str, Splits or None
        Folder that holds the dataset (None: the dataset's usual places), or the examples themselves.
    store : Store
        Keeps runs and evaluations.
    device : str
        "cpu" or "cuda"; see `choose_device`.
    observer : Observer
        Shows progress; it changes no number.
    keep_every : int
        Training keeps the weights of every `keep_every`-th epoch, and always those of the first step, the best and the
        last epoch. 0 keeps only these. It changes no number.
    compile : Compilation or None
        Compiles every network of the session. Records name it in their environment; it is never part of a key.
    jobs : int or None
        Processes that evaluate at a time; None: see `workers.processes`. It changes no number.
    """

    registry: Registry
    protocol: Protocol
    data: str | Splits | None
    store: Store
    device: str
    observer: Observer = field(default_factory=Observer)
    keep_every: int = 0
    compile: Compilation | None = None
    jobs: int | None = 1

    @property
    def fixed(self) -> Fixed:
        """The part of the protocol that every row of its board shares."""
        return self.protocol.fixed

    @property
    def threat(self) -> Threat:
        """The threat model of evaluation."""
        return Threat(self.fixed.threat.epsilon, self.fixed.threat.norm)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of weights and of evaluation."""
        return DTYPES[self.fixed.precision]

    @cached_property
    def splits(self) -> Splits:
        """The protocol's examples, loaded when first needed."""
        data = self.data
        if isinstance(data, Splits):
            return data
        with faults(self.registry):
            return load_splits(self.registry, self.protocol, data)

    def examples(self, split: SplitName, count: int | None = None) -> Examples:
        """The first `count` examples of a split (None: all) on the device, in the session's precision."""
        return self.splits.examples(split, self.device, self.dtype, count)

    def under(self, protocol: Protocol) -> Session:
        """This session under another protocol. Examples are shared if both protocols select the same, or none of them
        does."""
        if protocol == self.protocol:
            return self
        if protocol.fixed.data == self.fixed.data or isinstance(self.data, OwnSplits):
            return replace(self, protocol=protocol, data=self.splits)
        return replace(self, protocol=protocol, data=None if isinstance(self.data, Splits) else self.data)


def choose_device(wanted: str) -> str:
    """The device that `wanted` names: "cpu", "cuda", or "auto" for CUDA where torch finds it.

    Raises
    ------
    UsageError
        If `wanted` is another name, or "cuda" where torch finds no CUDA device.
    """
    wanted, found = str(wanted), torch.cuda.is_available()
    if wanted not in {"auto", "cpu", "cuda"}:
        raise UsageError(
            f"device {wanted!r:.50} is none of auto, cpu, cuda; of several GPUs, the environment variable "
            "CUDA_VISIBLE_DEVICES=1 chooses the second"
        )
    if wanted == "cuda" and not found:
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu (or auto)")
    return ("cuda" if found else "cpu") if wanted == "auto" else wanted


def configure(fixed: Fixed) -> None:
    """Set this process to the protocol's threads, to float32 without TF32 and to deterministic convolutions."""
    keep_freed_memory()
    torch.set_num_threads(fixed.threads)
    # torch has two interfaces to precision, and a notebook may have used either, for the CPU too.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for operation in OPERATIONS:
        operation.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
