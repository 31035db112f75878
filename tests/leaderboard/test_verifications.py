"""Verifications of an entry: what they grant, and which are impossible."""

import pytest
from pydantic import ValidationError

from robflat_bench.leaderboard.entries import Entry, Verification

LOOK = {
    **{"tier": "re-evaluated", "date": "2026-01-01", "checkpoints": ("last",), "identical": True, "flags": (0, 9)},
    **{"deviation": 0.0, "environment": {}, "provenance": {}},
}


def test_a_look_at_best_grants_no_tier_of_the_ranked_checkpoint():
    look = Verification.model_validate(LOOK | {"checkpoints": ("best",)})
    entry = Entry(key="k", record="0" * 64, weights={}, submitted="2026-01-01", verifications=(look,))
    assert entry.tier == "self-reported"


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoints": ()},
        {"flags": (-5, 0)},
        {"flags": (5, 1)},
        {"deviation": -1.0},
        {"tier": "reproduced", "checkpoints": ("best",)},
    ],
)
def test_an_impossible_verification_is_refused(change):
    Verification.model_validate(LOOK)
    with pytest.raises(ValidationError):
        Verification.model_validate(LOOK | change)
