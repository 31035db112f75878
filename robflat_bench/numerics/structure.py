"""Whether a network is still the one that was looked at, and whether passes leave it as it is.

Findings about a network's operations hold for later passes if its forward depends on weights, buffers and images alone.
`structure` lists the other things that may change a forward: modules, their attributes, hooks, the images' size. It
does not see a global variable, an element of a list, or the number of images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
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

GLOBAL_HOOKS: tuple[Mapping[int, Any], ...] = (
    modules._global_forward_hooks,
    modules._global_forward_pre_hooks,
    modules._global_backward_hooks,
    modules._global_backward_pre_hooks,
)
"""Hooks of every module of the process."""


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
        found += path, type(module), module is not network and any(hooks(module))
        for name, value in vars(module).items():
            if name not in OWN and not (name == "forward" and _ours(value)):
                found += name, value if isinstance(value, PLAIN) else id(value)
    return found


def hooks(module: nn.Module) -> Iterator[Mapping[int, Any]]:
    """The tables of a module's hooks, which may read or replace inputs, outputs and gradients."""
    yield from (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def hooks_inside(network: nn.Module) -> list[Mapping[int, Any]]:
    """The tables of all modules inside a network, and those of every module of the process."""
    inside = [table for module in network.modules() if module is not network for table in hooks(module)]
    return [*inside, *GLOBAL_HOOKS]


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
        tensors = [(id(tensor), _version(tensor)) for tensor in chain(network.parameters(), network.buffers())]
        draws = [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state(legacy=False))]
        return [structure(network, x), tensors, draws]

    with uncounted(), global_state(generator("looking at a network")):
        before = state()
        yield lambda: state() == before


def _version(tensor: Tensor) -> int:
    """The number of writes; tensors of inference mode do not count theirs."""
    return 0 if tensor.is_inference() else tensor._version


def _ours(forward: object) -> bool:
    """Whether a replaced forward is one of this package's, which leaves the function as it is."""
    place = getattr(forward, "__module__", None)
    return isinstance(place, str) and place.startswith(f"{__package__}.")
