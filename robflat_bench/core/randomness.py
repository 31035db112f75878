"""Random numbers keyed by content, never by order of execution.

Training draws are keyed by (seed, purpose, epoch, step), evaluation draws by (seed, purpose, sample index). So a
resumed run and a run with another memory batch draw the same numbers. All draws are made on the CPU in float64 and then
cast, so every device and precision uses the same numbers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded with a hash of the key.

    Parameters
    ----------
    key
        Integers and strings, e.g. `generator(seed, "attack", epoch, step)`. Equal keys give equal draws.
    """
    text = "\x1f".join(str(part) for part in key)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


@contextmanager
def global_state(source: torch.Generator) -> Iterator[None]:
    """Seed the global generators from `source` inside the block, for code that takes no generator, such as dropout.

    They are torch's on the CPU and on every CUDA device in use, NumPy's and Python's. Afterwards they are as before.
    """
    seed = int(torch.randint(2**62, (), generator=source))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        # torch.manual_seed would also reseed devices that are not in use yet, and these would not be restored.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed & 0xFFFF_FFFF)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def uniform_like(x: Tensor, source: torch.Generator) -> Tensor:
    """U(-1,1) draws with the shape, dtype and device of x."""
    return torch.rand(x.shape, generator=source, dtype=torch.float64).mul_(2).sub_(1).to(x)


def normal_like(x: Tensor, source: torch.Generator) -> Tensor:
    """N(0,1) draws with the shape, dtype and device of x."""
    return torch.randn(x.shape, generator=source, dtype=torch.float64).to(x)


def per_example_uniform(x: Tensor, index: Tensor, *key: int | str) -> Tensor:
    """U(-1,1) draws for each example, which depend on the example and not on its batch.

    Parameters
    ----------
    x
        float [B,...]; the draws have its shape, dtype and device.
    index
        int64 [B], positions of the examples in their dataset. Row b is keyed by (key, index[b]).
    key
        Integers and strings that name the purpose, e.g. `seed, "pgd", restart`.
    """
    sources = [generator(*key, row) for row in index.tolist()]
    draws = [torch.rand(x.shape[1:], generator=source, dtype=torch.float64) for source in sources]
    return torch.stack(draws).mul_(2).sub_(1).to(x)


def per_example_gaussian_direction(x: Tensor, index: Tensor, *key: int | str) -> Tensor:
    """u g / ||g||_inf with g ~ N(0,1) and u ~ U(0,1) for each example; x, index and key as in `per_example_uniform`.

    Its norm is uniform in (0,1), but most of its numbers are small: it is concentrated at the centre of the ball.
    """
    draws = []
    for row in index.tolist():
        source = generator(*key, row)
        direction = torch.randn(x.shape[1:], generator=source, dtype=torch.float64)
        draws.append(direction / direction.abs().max() * torch.rand((), generator=source, dtype=torch.float64))
    return torch.stack(draws).to(x)
