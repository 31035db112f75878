"""Losses that several methods share, weighted per example."""

from __future__ import annotations

from torch import Tensor

from robflat_bench.base import Batch


def weighted_mean(values: Tensor, batch: Batch) -> Tensor:
    """sum_i weight_i v_i / sum_i weight_i over per-example values [B]."""
    return (batch.weight * values).sum() / batch.weight.sum()


def soft_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean of -sum_k target_k log p_k."""
    return weighted_mean(-(batch.target * logits.log_softmax(1)).sum(1), batch)
