"""Work in memory batches of one size: the last batch is padded, so every batch runs the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from robflat_bench.core.examples import Examples, Workspace

MEMORY_BATCH = 250
"""Images that pass through a network together, outside training steps. It bounds memory and changes no result beyond
rounding."""


def cuts(count: int, size: int, shards: int = 1) -> tuple[int, ...]:
    """Where `tensor_split` cuts rows into batches of `size`; fewer than two rows a shard, left over, join the last one.

    Batch normalisation in train mode needs two images, and an image alone would weigh as much as a batch.
    """
    return tuple(range(size, count - (2 * shards - 1) if size > 1 else count, size))


def padded_batches(examples: Examples, batch: int) -> Iterator[tuple[Examples, int]]:
    """Split examples into the fewest batches of at most `batch`, all of one size.

    Yields
    ------
    part, count
        A batch, and how many of its first examples count. The last batch repeats its own examples until it is full.
    """
    count = -(-len(examples) // batch)
    return (_padded_batch(examples, count, number) for number in range(count))


def _padded_batch(examples: Examples, count: int, number: int) -> tuple[Examples, int]:
    """Batch `number` of the `count` batches that `padded_batches` yields."""
    size = -(-len(examples) // count)
    rows = torch.arange(number * size, min((number + 1) * size, len(examples)))
    return examples[rows[torch.arange(size) % len(rows)]], len(rows)


def in_batches(examples: Examples, workspace: Workspace, compute: Callable[[Examples], Tensor], name: str) -> Tensor:
    """Apply `compute` to all examples, batch by batch: `arrays_in_batches` of one array, named as its units are.

    Returns
    -------
    Tensor
        [N,...], on the examples' device.
    """
    return arrays_in_batches(examples, workspace, lambda part: {name: compute(part)}, name)[name]


def arrays_in_batches(
    examples: Examples, workspace: Workspace, compute: Callable[[Examples], Mapping[str, Tensor]], name: str
) -> dict[str, Tensor]:
    """Apply `compute` to all examples, batch by batch; no batch needs another.

    Parameters
    ----------
    examples
        N examples.
    workspace
        Its `batch` is the memory batch; its journal keeps each batch's result and skips it after an interruption.
    compute
        Examples of one batch -> tensors [B,...] by name.
    name
        Name of the journal's units, [A-Za-z0-9_.-]; position and size of the batch are added.

    Returns
    -------
    dict of str to Tensor
        [N,...] each, on the examples' device.
    """
    batches = -(-len(examples) // workspace.batch)

    def batch(number: int) -> Mapping[str, np.ndarray]:
        def unit() -> dict[str, np.ndarray]:
            part, count = _padded_batch(examples, batches, number)
            return {key: tensor[:count].cpu().numpy() for key, tensor in compute(part).items()}

        return workspace.journal.unit(f"{name}-{workspace.batch}-{number}", unit)

    parts = workspace.journal.each(batches, batch)
    device = examples.x.device
    return {key: torch.cat([torch.from_numpy(arrays[key]) for arrays in parts]).to(device) for key in parts[0]}
