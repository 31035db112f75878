"""Networks: `factory(params, shape: ImageShape, activation: str) -> nn.Module`.

The module takes images float [B,C,H,W] in [0,1] and returns logits float [B,K]. The run draws its weights afterwards,
by `parts.initialize`.
"""

from __future__ import annotations

from robflat_bench.core import BackboneInfo, catalogue_rows, hookimpl

ACTIVATION_NAMES = ("relu", "silu", "gelu", "mish")
"""Activations that a recipe may choose. `parts.ACTIVATIONS` holds their classes, which need torch."""


@hookimpl
def robflat_bench_backbones() -> list[BackboneInfo]:
    """The built-in backbones."""
    return catalogue_rows(__name__)
