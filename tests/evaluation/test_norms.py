"""Evaluation under other norms: what leaves the ball fails, and what the record and the board show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robflat_bench as rb
from robflat_bench.core import RunFailed, UsageError
from robflat_bench.leaderboard.model import Board

DEAF = """
from robflat_bench.api import Attack, AttackInfo, Params, hookimpl

class DeafParams(Params):
    norms = ("linf", "l2")

class Deaf(Attack):
    def perturb(self, model, examples, seed):
        return (examples.x + self.threat.epsilon).clamp(0, 1)

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("deaf", "moves in the l-inf ball of any threat", "deaf:Deaf", DeafParams)]
"""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=generator), torch.arange(12) % 10


def test_an_attack_that_leaves_the_l2_ball_fails_the_evaluation(network, pair, tmp_path):
    (tmp_path / "deaf.py").write_text(DEAF)
    given = {"plugins": [tmp_path / "deaf.py"], "epsilon": 0.1, "progress": False}
    assert rb.attack(network, *pair, "deaf", **given).shape == pair[0].shape
    with pytest.raises(RunFailed, match=r"left the threat model: 0.6928 from the images where 0.1 is allowed"):
        rb.attack(network, *pair, "deaf", norm="l2", **given)


@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 2.5), ("l1", 6.0)])
def test_attacks_of_other_norms_are_called_from_python(network, pair, norm, epsilon):
    text = {"l2": "pgd(steps=5)", "l1": "autoattack(version=apgd)"}[norm]
    x_adv = rb.attack(network, *pair, text, epsilon=epsilon, norm=norm, progress=False)
    sizes = torch.linalg.vector_norm((x_adv - pair[0]).flatten(1), int(norm[1]), dim=1)
    assert sizes.max() <= epsilon + 1e-4
    assert (network(x_adv).argmax(1) != pair[1]).sum() >= (network(pair[0]).argmax(1) != pair[1]).sum()


def test_python_refuses_norms_in_which_a_component_is_not_defined(network, pair):
    with pytest.raises(UsageError, match="attack pgd is defined under linf, l2, but the threat's norm is l1"):
        rb.attack(network, *pair, "pgd", epsilon=6.0, norm="l1", progress=False)
    with pytest.raises(UsageError, match="measure average-case is defined under linf, l2"):
        rb.measure(network, pair, "average-case", epsilon=6.0, norm="l1", progress=False)
    with pytest.raises(UsageError, match="'norm' = 'l3'"):
        rb.attack(network, *pair, "pgd", epsilon=0.1, norm="l3", progress=False)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_board_names_its_norm_and_those_of_linf_keep_their_bytes(norm):
    texts = dict.fromkeys(("id", "protocol", "version", "hash", "summary", "dataset", "backbone"), "x")
    rest = {"canonical": True, "epsilon": 0.5, "checkpoint": "last", "quantities": (), "rankings": (), "rows": ()}
    board = Board(**texts, **rest, norm=norm)
    assert Board.model_validate_json(board.model_dump_json()) == board
    assert board.model_dump().get("norm") == {"linf": None, "l2": "l2"}[norm]
