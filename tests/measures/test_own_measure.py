"""A stranger's measure in one file: it imports `robflat_bench.api` only, chooses a ball and may decline."""

from __future__ import annotations

import pytest

PLUGIN = '''
from robflat_bench.api import Ball, Measure, MeasureInfo, Measurement, NoValue, Params, WeightSpace, hookimpl


class Limit(Params):
    limit: float = 0.0


class Length(Measure):
    """The l-inf length of a random move of each filter, relative to the filter; no value where it exceeds `limit`."""

    def measure(self, model, examples, workspace):
        space = WeightSpace(model, ball=Ball("filter", "linf"))
        move = space.on_sphere(0.5, workspace.seed, "length")
        name = max(space.layers, key=lambda name: space.layers[name].ndim)
        rows = space.layers[name].detach().flatten(1).abs().amax(1)
        longest = float((move[name].flatten(1).abs().amax(1) / rows).max())
        if longest > self.params.limit:
            raise NoValue(f"the move is longer than limit={self.params.limit:g}")
        return Measurement(value=longest, standard_error=None, n=0)


@hookimpl
def robflat_bench_measures():
    return [MeasureInfo("length", "-", "stranger:Length", Limit)]
'''


@pytest.fixture
def measured(finished_copy, tiny, command, tmp_path):
    """`measured("length(limit=1)")`: the result of the measure on a finished run."""
    (tmp_path / "stranger.py").write_text(PLUGIN)

    def measure(text):
        plugin = ("--plugin", tmp_path / "stranger.py", "--protocol", tiny, "--store", finished_copy.store)
        done = command("evaluate", finished_copy.key, "--measure", text, "--examples", "5", *plugin, "--json")
        assert done.code == 0, done.err
        (result,) = done.document["results"].values()
        return result["measures"][text]

    return measure


def test_a_measure_that_declines_leaves_a_reason_and_no_number(measured):
    found = measured("length(limit=0.0)")
    assert found["reason"] == "the move is longer than limit=0"
    assert (found["value"], found["standard_error"]) == (None, None)


def test_a_measure_chooses_the_ball_in_which_weights_move(measured):
    """Uniform draws of a box of half the filter's largest weight: the longest of many is just below one half."""
    found = measured("length(limit=1.0)")
    assert found["reason"] in (None, "")
    assert 0.45 < found["value"] <= 0.5 + 1e-6


def test_the_stranger_imports_the_api_only():
    lines = [line.split()[1] for line in PLUGIN.splitlines() if line.startswith(("from ", "import "))]
    assert set(lines) == {"robflat_bench.api"}
