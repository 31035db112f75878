"""The conformance kit tries an attack under each norm of the threat that it declares."""

from __future__ import annotations

import pytest

from robflat_bench.registry.registry import discover
from robflat_bench.testing import run_checks

DEAF = """
from robflat_bench.api import Attack, AttackInfo, NORMS, Params, hookimpl

class DeafParams(Params):
    norms = ("linf", {more})

class Deaf(Attack):
    def perturb(self, model, examples, seed):
        return NORMS["linf"].project(1 - examples.x, examples.x, self.threat.epsilon)

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("deaf", "moves in the l-inf ball of any threat", "deaf:Deaf", DeafParams)]
"""


@pytest.mark.parametrize(("more", "failed"), [("", []), ('"l2"', ["check_within_the_ball"])])
def test_an_attack_that_moves_in_another_norm_than_it_declares_fails(one_thread, tmp_path, more, failed):
    (tmp_path / "deaf.py").write_text(DEAF.format(more=more))
    results = run_checks(discover((tmp_path / "deaf.py",)), "attack", "deaf")
    assert [result.check for result in results if result.outcome == "failed"] == failed
    reasons = [result.reason for result in results if result.check == "check_within_the_ball"]
    assert not failed or "in the 2-norm, the radius is 1.5" in reasons[0]
