"""Logits in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_float32(module: nn.Module, inputs: object, logits: Tensor) -> Tensor | None:
    """A forward hook: losses are computed in float32 at least, whatever the precision of the network."""
    half = isinstance(logits, Tensor) and logits.dtype in (torch.float16, torch.bfloat16)
    return logits.float() if half else None
