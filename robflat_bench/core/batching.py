"""Work in memory batches of one size: the last one is padded, so every batch runs the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robflat_bench.core.examples import Examples, Workspace

MEMORY_BATCH = 250
"""Images that pass through a network together, outside training steps. It bounds memory and changes no result beyond
rounding."""


def padded_batches(examples: Examples, batch: int) -> Iterator[tuple[Examples, int]]:
    """(examples, how many of them count): as few batches as hold at most `batch`, all of one size; the last repeats its
    rows until it is full."""
    size = -(-len(examples) // -(-len(examples) // batch)) if len(examples) else batch
    for start in range(0, len(examples), size):
        rows = torch.arange(start, min(start + size, len(examples)))
        yield examples[rows[torch.arange(size) % len(rows)]], len(rows)


def in_batches(examples: Examples, workspace: Workspace, compute: Callable[[Examples], Tensor], name: str) -> Tensor:
    """`compute` over all examples, each batch a unit of the journal named after its position and size."""
    parts = []
    for number, (part, count) in enumerate(padded_batches(examples, workspace.batch)):

        def unit(part: Examples = part, count: int = count) -> dict[str, object]:
            return {name: compute(part)[:count].cpu().numpy()}

        arrays = workspace.journal.unit(f"{name}-{workspace.batch}-{number}", unit)  # type: ignore[arg-type]
        parts.append(torch.from_numpy(arrays[name]))
    return torch.cat(parts).to(examples.x.device)
