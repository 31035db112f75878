"""Work in memory batches of one fixed size: the last one is padded, so every batch runs the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robflat_bench.base import Examples, Workspace


def padded_batches(examples: Examples, batch: int) -> Iterator[tuple[Examples, int]]:
    """(`batch` examples, how many of them count): the last batch repeats its rows until it is full."""
    for start in range(0, len(examples), batch):
        rows = torch.arange(start, min(start + batch, len(examples)))
        yield examples[rows[torch.arange(batch) % len(rows)]], len(rows)


def in_batches(examples: Examples, workspace: Workspace, compute: Callable[[Examples], Tensor], name: str) -> Tensor:
    """`compute` over all examples, each batch a unit of the journal named after its position and size."""
    parts = []
    for number, (part, count) in enumerate(padded_batches(examples, workspace.batch)):

        def unit(part: Examples = part, count: int = count) -> dict[str, object]:
            return {name: compute(part)[:count].cpu().numpy()}

        arrays = workspace.journal.unit(f"{name}-{workspace.batch}-{number}", unit)  # type: ignore[arg-type]
        parts.append(torch.from_numpy(arrays[name]))
    return torch.cat(parts).to(examples.x.device)
