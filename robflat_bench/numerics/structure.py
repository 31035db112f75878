"""Whether a network is still the one that was looked at, and whether passes leave it as it is.

Findings about a network's operations hold for later passes if its forward depends on weights, buffers and images
alone. `structure` holds the rest that may change a forward and that Python shows: modules, their attributes, hooks, the
images' size. State elsewhere (a global variable, the inside of an attribute) is not seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.passes import uncounted

OWN = frozenset(vars(nn.Module())) - {"training"}
"""Attributes of every module, besides its mode: tables of weights, children and hooks."""
PLAIN = (bool, int, float, str)
"""Attributes compared by value; others by identity."""


def structure(network: nn.Module, x: Tensor) -> list[Any]:
    """Equal lists: the same modules in the same state, for images of the same size, up to weights and buffers.

    Parameters
    ----------
    network
        Any network.
    x
        Images [B,...]; their number does not count.
    """
    found: list[Any] = [x.shape[1:], x.dtype, x.device]
    for path, module in network.named_modules():
        found += path, type(module), module is not network and watched(module)
        for name, value in vars(module).items():
            if name not in OWN and not (name == "forward" and _ours(value)):
                found += name, value if isinstance(value, PLAIN) else id(value)
    return found


def watched(module: nn.Module) -> bool:
    """Whether the module has hooks, which may read or replace inputs, outputs and gradients."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def is_hooked(network: nn.Module) -> bool:
    """Whether a module inside the network has hooks, or every module of the process has."""
    inside = (module for module in network.modules() if module is not network)
    return modules._has_any_global_hook() or any(map(watched, inside))


@contextmanager
def looking(network: nn.Module, x: Tensor) -> Iterator[Callable[[], bool]]:
    """A block of passes that look at a network: they are not counted, and draw none of the process's random numbers.

    Yields
    ------
    callable
        () -> whether the passes since the start of the block drew no global random numbers and changed neither
        structure nor weights nor buffers.
    """

    def state() -> list[Any]:
        tensors = [(id(tensor), tensor._version) for tensor in chain(network.parameters(), network.buffers())]
        drawn: Any = np.random.get_state()
        draws = [torch.get_rng_state().tolist(), random.getstate(), repr(drawn[1].tolist()), drawn[2:]]
        return [structure(network, x), tensors, draws]

    with uncounted(), global_state(generator("looking at a network")):
        before = state()
        yield lambda: state() == before


def _ours(forward: object) -> bool:
    """Whether a replaced forward is one of this package's, which leaves the function as it is."""
    place = getattr(forward, "__module__", None)
    return isinstance(place, str) and place.startswith(f"{__package__}.")
