"""The least that a network's convolutions cost here: the sum of their best kernel times.

Every convolution of a pass is noted with its shapes, and its three kernels (forward, gradient of the input, gradient of
the weight) are timed alone, in both layouts; the better median counts. With a bias, as a folded network has: so
normalisation costs nothing, nor does anything else, and no loop can reach the limit in eager PyTorch.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KINDS = ("forward", "input", "weight")


class Shape(NamedTuple):
    """All that decides what a convolution costs."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Limit:
    """Call it once a round, beside the contestants; then ask for `seconds`."""

    def __init__(self, model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.shapes: list[Shape] = []
        handles = [m.register_forward_pre_hook(self._note) for m in model.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad():
            model(x)
        for handle in handles:
            handle.remove()
        self.times: dict[tuple[Shape, str, str], list[float]] = {}

    def _note(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self.shapes.append(
            Shape(
                tuple(inputs[0].shape),
                tuple(module.weight.shape),
                module.stride,
                tuple(module.padding),
                module.dilation,
                module.groups,
            )
        )

    def __call__(self, repeats: int = 2) -> None:
        """Time every kernel of every shape."""
        for shape in dict.fromkeys(self.shapes):
            for name, memory_format in LAYOUTS.items():
                x = torch.rand(shape.x).to(self.dtype).to(memory_format=memory_format)
                weight = torch.rand(shape.weight).to(self.dtype).to(memory_format=memory_format)
                for kind in KINDS:
                    self.times.setdefault((shape, kind, name), []).extend(_kernel(shape, x, weight, kind, repeats))

    def _best(self, shape: Shape, kind: str) -> float:
        return min(statistics.median(self.times[shape, kind, name]) for name in LAYOUTS)

    def seconds(self, *, forward: int = 0, inputs: int = 0, outer: int = 0) -> float:
        """Of so many forward passes, backward passes to the images (attacks), and backward passes to the weights, which
        need every input's gradient but the first convolution's."""
        count = Counter(self.shapes)
        total = sum(
            n
            * (
                forward * self._best(shape, "forward")
                + (inputs + outer) * self._best(shape, "input")
                + outer * self._best(shape, "weight")
            )
            for shape, n in count.items()
        )
        return total - outer * self._best(self.shapes[0], "input")

    def rows(self) -> list[dict[str, Any]]:
        """Each shape's kernels, best medians in milliseconds and the layout that gives them."""
        rows = []
        for shape, n in Counter(self.shapes).items():
            row: dict[str, Any] = {"input": list(shape.x), "weight": list(shape.weight), "times": n}
            for kind in KINDS:
                name = min(LAYOUTS, key=lambda name: statistics.median(self.times[shape, kind, name]))
                row |= {f"{kind}_ms": 1000 * self._best(shape, kind), f"{kind}_layout": name}
            rows.append(row)
        return rows


@torch.no_grad()
def _kernel(shape: Shape, x: Tensor, weight: Tensor, kind: str, repeats: int) -> list[float]:
    where = (list(shape.stride), list(shape.padding), list(shape.dilation), False, [0, 0], shape.groups)
    bias = torch.zeros(shape.weight[0], dtype=x.dtype)
    out = torch.ops.aten.convolution(x, weight, bias, *where)
    mask = [kind == "input", kind == "weight", False]

    def run() -> object:
        if kind == "forward":
            return torch.ops.aten.convolution(x, weight, bias, *where)
        return torch.ops.aten.convolution_backward(out, x, weight, None, *where, mask)

    # On one thread CPU time, which other processes hardly change.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    times = []
    for _ in range(repeats):
        began = clock()
        run()
        times.append(clock() - began)
    return times
