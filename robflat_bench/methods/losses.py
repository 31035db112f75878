"""Losses per example that several methods use."""

from __future__ import annotations

from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against a distribution, -sum_k target_k log p_k.

    Parameters
    ----------
    logits: float [B,K].
    target: float [B,K], rows sum to 1.

    Returns
    -------
    float [B].
    """
    return -(target * logits.log_softmax(1)).sum(1)


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(p || q) between the predictions of two logits; the gradient flows through both.

    Parameters
    ----------
    clean: logits of p, float [B,K].
    adversarial: logits of q, float [B,K].

    Returns
    -------
    float [B].
    """
    log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def mean_one(values: Tensor, weight: Tensor) -> Tensor:
    """values [B], scaled so that their mean weighted by weight [B] is one."""
    return values * (weight.sum() / (weight * values).sum())
