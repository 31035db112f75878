"""What the benchmarks run on: one network and one batch, from fixed keys, for us and for our rivals.

ResNet-18 with random weights whose batch normalisation has met its images once, as a trained network's has: without
that, activations double from block to block, and no rounding or attack behaves as it does in use. Ours is laid out as
the harness lays it out; a rival's is as PyTorch builds it (NCHW). Labels are what the network predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.backbones.parts import initialize
from robflat_bench.core import Examples, ImageShape
from robflat_bench.core.randomness import generator
from robflat_bench.data.digits import load_digits
from robflat_bench.evaluation.model import layout
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover

SHAPE = ImageShape(3, 32, 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
EPSILON, STEP = 8 / 255, 2 / 255


@dataclass(frozen=True)
class Settings:
    """Sizes of a run. steps: of the attack in PGD and training; flat_steps: in flatness. aa_*: AutoAttack's budget."""

    batch: int = 64
    width: int = 64
    steps: int = 10
    flat_steps: int = 20
    draws: int = 2
    rounds: int = 5
    threads: int = 2
    aa_iterations: int = 5
    aa_targets: int = 2
    aa_queries: int = 20
    aa_examples: int = 500

    @classmethod
    def quick(cls) -> Settings:
        """Whether it all still runs, in a minute: its ratios mean nothing."""
        return cls(8, 8, 2, 3, 2, 2, aa_iterations=3, aa_queries=5, aa_examples=60)


def images(count: int) -> Tensor:
    """Smooth random images [count,3,32,32] in [0,1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator("benchmark images"))
    return F.interpolate(coarse, size=32, mode="bicubic").clamp_(0, 1)


@lru_cache
def _state(width: int, activation: str) -> dict[str, Tensor]:
    model = resolve(discover(), "backbone", f"resnet18(width={width})").build(SHAPE, activation)
    initialize(model, generator("benchmark weights"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of these images, not a blend with the initial ones
    with torch.no_grad():
        model.train()(images(64))
        # Else nearly all would be taken for one class.
        model.network.head.bias -= model.eval()(images(64)).mean(0)  # type: ignore[union-attr,operator]
    state: dict[str, Tensor] = model.state_dict()
    return state


def network(width: int, *, ours: bool, dtype: torch.dtype = torch.float32, activation: str = "relu") -> nn.Module:
    """In eval mode, always with the same weights."""
    model: nn.Module = resolve(discover(), "backbone", f"resnet18(width={width})").build(SHAPE, activation)
    model.load_state_dict(_state(width, activation))
    model = model.to(dtype).eval()
    return model.to(memory_format=layout(model)) if ours else model


SMOOTH = "silu"
"""Where gradients are compared in float32. Among the 18 million ReLUs of a batch of 16 some dozen inputs lie within
rounding of zero; each that falls to the other side moves a gradient by up to a hundredth, in whichever layout."""


def examples(width: int, count: int, dtype: torch.dtype = torch.float32) -> Examples:
    """The batch; each label is the network's prediction, so that every image is there to be broken."""
    x = images(count).to(dtype)
    with torch.no_grad():
        y = network(width, ours=False, dtype=dtype)(x).argmax(1)
    return Examples(x, y, torch.arange(count))


# ---------------------------------------------------------------------------------------------------------
# The network of the laptop protocol
# ---------------------------------------------------------------------------------------------------------


@lru_cache
def _digits() -> tuple[Tensor, dict[str, Tensor]]:
    """All digits [1797,1,8,8] in [0,1], and weights whose batch normalisation has met them once."""
    x = torch.from_numpy(load_digits().pools["train"].x).permute(0, 3, 1, 2).float() / 255
    model = _small()
    initialize(model, generator("benchmark weights"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return x, model.state_dict()


def _small() -> nn.Module:
    shape = ImageShape(1, 8, 10, (0.3,), (0.38,))
    model: nn.Module = resolve(discover(), "backbone", "resnet8(width=8)").build(shape, "relu")
    return model


def digits(count: int, dtype: torch.dtype = torch.float32) -> Examples:
    """The first digits, with the labels that the network predicts."""
    x = _digits()[0][:count].to(dtype)
    with torch.no_grad():
        y = digits_network(ours=False, dtype=dtype)(x).argmax(1)
    return Examples(x, y, torch.arange(count))


def digits_network(*, ours: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    """ResNet-8 of width 8 in eval mode, always with the same weights."""
    model = _small()
    model.load_state_dict(_digits()[1])
    model = model.to(dtype).eval()
    return model.to(memory_format=layout(model)) if ours else model


# ---------------------------------------------------------------------------------------------------------
# bfloat16
# ---------------------------------------------------------------------------------------------------------


def no_bfloat16() -> str:
    """Why this processor does not compute in bfloat16, or nothing."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "whether this processor computes in bfloat16 is not known here"
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return ""
    return "this processor has neither avx512_bf16 nor AMX: it would emulate bfloat16, ten times slower"


@contextmanager
def bfloat16(model: nn.Module) -> Iterator[None]:
    """Passes of this model in bfloat16, its logits (and so every loss) in float32, as `training.loop` does."""

    def in_float32(module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return logits.float()

    handle = model.register_forward_hook(in_float32)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        handle.remove()
