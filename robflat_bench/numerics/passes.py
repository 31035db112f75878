"""Counts of image passes, so that every record carries its true budget."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_uncounted = False


@contextmanager
def uncounted() -> Iterator[None]:
    """Let no counter count the passes inside, which look at a network's structure only."""
    global _uncounted
    before, _uncounted = _uncounted, True
    try:
        yield
    finally:
        _uncounted = before


@contextmanager
def trial(x: Tensor) -> Iterator[None]:
    """Passes of images like x that no counter counts; torch's random state is as before afterwards."""
    with uncounted(), torch.random.fork_rng([x.device] if x.is_cuda else []):
        yield


class PassCounter:
    """Counts the images that go forward and backward through networks.

    A backward pass is counted when a gradient reaches the network's output, once for each forward.

    Parameters
    ----------
    models
        The networks; they get hooks, until `remove`.
    """

    def __init__(self, *models: nn.Module) -> None:
        self.forward = 0
        self.backward = 0
        self._handles = [model.register_forward_hook(self._on_forward) for model in models]

    def _on_forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if _uncounted:
            return
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._on_backward)

    def _on_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def remove(self) -> None:
        """Take the hooks off the networks."""
        for handle in self._handles:
            handle.remove()


def copied(model: nn.Module) -> nn.Module:
    """A copy; computed tensors, such as the weight of torch's old weight normalisation, are copied as values."""
    held = (value for part in model.modules() for value in vars(part).values())
    computed = {id(value): value.detach().clone() for value in held if isinstance(value, Tensor) and value.grad_fn}
    return copy.deepcopy(model, computed)


def counted_copy(model: nn.Module) -> nn.Module:
    """A copy whose passes are counted wherever those of the model are: it has the hooks that the model has and gets."""
    other = copied(model)
    other._forward_hooks = model._forward_hooks
    return other
