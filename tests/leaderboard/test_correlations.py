"""What a board's correlations are controlled for: quantities of a network that follow from its per-example losses."""

import math

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, league, submitted

from robflat_bench.leaderboard.build import build_leaderboard
from robflat_bench.leaderboard.correlations import board_model, logit_scale, train_losses
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.rows import group_seeds


def cross_entropy(logits):
    return np.log(np.exp(logits).sum(1)) - logits[:, 0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_logit_scale_of_two_classes_scales_with_the_logits(factor):
    """|log(p / (1 - p))| is the difference of the two logits, whichever class is the true one."""
    logits = np.array([[0.0, 2.0], [1.0, -0.5], [4.0, 1.0], [0.2, 0.0], [-1.0, 3.0]])
    assert logit_scale(cross_entropy(factor * logits)) == pytest.approx(factor * 2.0)


def test_a_loss_of_zero_has_a_finite_logit_scale():
    assert logit_scale(np.zeros(3, np.float32)) == pytest.approx(-math.log(1e-7))


def test_models_have_the_training_loss_and_logit_scale_of_their_outcomes(tmp_path):
    submitted(tmp_path / "board", league(tmp_path / "runs", {"at": 0.0}))
    found, _ = read_entries(tmp_path / "board", REGISTRY)
    (group,) = group_seeds(found)
    pgd = next(iter(found[0].record.results["best"].robust_error))
    (board,) = (one for one in build_leaderboard(found, tmp_path, REGISTRY).boards if one.rows)
    model = board_model(group, "best", board.rankings[1], "robust_loss")
    assert model.train_loss == [one.record.results["best"].robust_loss.train for one in group.runs]
    assert model.target == [one.record.results["best"].robust_loss.test for one in group.runs]
    losses = [one.outcomes["best/test/clean/loss"] for one in group.runs]
    assert model.logit_scale == pytest.approx([np.median(np.abs(np.log(np.expm1(loss)))) for loss in losses])
    assert train_losses(group, "best") == [np.mean(one.outcomes[f"best/train/{pgd}/loss"]) for one in group.runs]
