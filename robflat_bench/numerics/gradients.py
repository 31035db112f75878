r"""Gradients of operations that have no finite derivative: the operation counts as constant there.

The root of a spread that is 0 is finite, but its derivative is 1/0, and by the chain rule NaN = 0/0 reaches every
pixel. sign(NaN) is 0, so an attack would stop, and the network would look robust. Here every operation of the graph
passes on 0 in place of NaN and infinity:

    \partial u / \partial v := 0   where it is not finite

So a network with `sqrt(s)` has the gradient of the same network with a root whose derivative at 0 is 0, and images with
finite gradients keep theirs, bit for bit. The graph is walked only where a gradient turned out not to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """Inside, gradients of the model's outputs count an operation without a finite derivative as constant.

    Compiled code hides its operations, so the model is not compiled here.
    """
    handle = model.register_forward_hook(_guard)
    try:
        yield
    finally:
        handle.remove()


def is_guarded(model: nn.Module) -> bool:
    """Whether the model is inside `guarded`."""
    return _guard in model._forward_hooks.values()


def gradients_of(losses: Callable[[], Tensor], wanted: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """losses(), detached, and the gradient of their sum by each of these tensors (0 by one that they do not read).

    If a gradient is not finite, losses() is computed once more, with every operation without a finite derivative as
    constant.
    """
    values = losses()
    if not wanted:
        return values.detach(), ()
    found = torch.autograd.grad(values.sum(), wanted, materialize_grads=True)
    if not bool(torch.stack([gradient.isfinite().all() for gradient in found]).all()):  # waits for the device once
        values = losses()
        _walk(values)
        found = torch.autograd.grad(values.sum(), wanted, materialize_grads=True)
    return values.detach(), found


def _guard(model: nn.Module, inputs: object, output: Tensor) -> None:
    if output.requires_grad:
        _walk(output)


def nodes(value: Tensor) -> Iterator[Any]:
    """The nodes of autograd's graph that led to this tensor, each once."""
    seen: set[Any] = {None}
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [source for source, _ in node.next_functions]


def _walk(value: Tensor) -> None:
    """Let every operation that led to this tensor pass on finite gradients alone."""
    for node in nodes(value):
        node.register_hook(_finite)


def _finite(gradients: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...]:
    return tuple(None if g is None else torch.where(g.isfinite(), g, 0.0) for g in gradients)
