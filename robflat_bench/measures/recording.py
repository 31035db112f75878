"""Inputs and outputs of layers, recorded while a network runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Call = tuple[nn.Module, Tensor, Tensor]


@contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """(layer, its input, its output) of every call of these layers within the block, in order."""
    calls: list[Call] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, inputs[0], output))

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
