"""Losses of single examples that several methods share."""

from __future__ import annotations

from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k target_k log p_k of logits [B,K] against target [B,K]: [B]."""
    return -(target * logits.log_softmax(1)).sum(1)


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p || q) of logits [B,K], the gradient flowing through both: [B]."""
    log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def mean_one(values: Tensor, weight: Tensor) -> Tensor:
    """values [B] scaled so that their mean, weighted by weight [B], is one."""
    return values * (weight.sum() / (weight * values).sum())
