"""Random numbers keyed by content, never by order of execution.

Training draws are keyed by (seed, purpose, epoch, step), evaluation draws by (seed, purpose, sample index). So
resuming changes nothing, and neither does the size of a memory batch. Draws are made on the CPU in float64 and
cast, so every device and precision meets the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose seed is a hash of the key."""
    text = "\x1f".join(str(part) for part in key)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


@contextmanager
def global_state(source: torch.Generator) -> Iterator[None]:
    """Inside, torch's global CPU state draws what this source decides, for libraries that know no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=source)))
        yield


def uniform_like(x: Tensor, source: torch.Generator) -> Tensor:
    """U(-1,1), shaped and placed as x."""
    return torch.rand(x.shape, generator=source, dtype=torch.float64).mul_(2).sub_(1).to(x)


def normal_like(x: Tensor, source: torch.Generator) -> Tensor:
    """N(0,1), shaped and placed as x."""
    return torch.randn(x.shape, generator=source, dtype=torch.float64).to(x)


def per_example_uniform(x: Tensor, index: Tensor, *key: int | str) -> Tensor:
    """U(-1,1) for each row of x [B,...], row b keyed by (key, index[b]) alone."""
    rows: Sequence[int] = index.tolist()
    draws = [torch.rand(x.shape[1:], generator=generator(*key, row), dtype=torch.float64) for row in rows]
    return torch.stack(draws).mul_(2).sub_(1).to(x)
