"""Fuzzing of check, build, show and verify as one pipeline; `benchmarks/fuzz_entries.py` tries thousands."""

import random

import pytest
from helpers.fuzzing import Field


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    return Field(tmp_path_factory.mktemp("fuzz") / "field")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_mutant_ends_in_a_traceback_or_is_granted_what_is_untrue(field):
    ended = [field.try_mutant(random.Random(seed)) for seed in range(200)]
    assert 150 < ended.count("refused") < 200  # some change what no number follows from, such as seconds


def test_no_forged_entry_is_granted(field):
    ended = [field.try_forgery(random.Random(seed)) for seed in range(50)]
    assert ended.count("refused") > 15  # the others are consistent, and only a second look refuses them
    assert not any("reproduced" in end for end in ended)


def test_the_unchanged_entry_is_granted(field):
    assert field.pipeline() == "re-evaluated and reproduced"
