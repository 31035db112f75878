"""The scatter of flatness and robustness: closed-form lines, values of the record, names that stay clear."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.text import Text

from robflat_bench.config.protocol import load
from robflat_bench.core import UsageError
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments import choose, figures, labels, work
from robflat_bench.experiments.flatness_vs_robustness import OUTCOMES, FlatnessVsRobustness, fitted
from robflat_bench.experiments.trained_model import find_models, open_model
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store

T_1, T_3 = 12.706204736, 3.182446305
"""97.5 % quantiles of Student's t with 1 and 3 degrees of freedom."""


def document(points, text="flatness-vs-robustness", error=0.01):
    """Its points are (label, seed, flatness, gap): the training loss is 1, the robust error half the gap."""

    def value(number):
        return {"value": number, "standard_error": error, "n": 9}

    readings = []
    for label, seed, flatness, gap in points:
        model = {"label": label, "seed": seed, "checkpoint": "last", "epoch": 1, "best_epoch": 1, "run": "r"}
        values = {"n": 9, "attack": "PGD-2", "titles": {"m": "m"}, "measures": {"m": value(flatness)}}
        values |= {"robust_loss": {"test": value(1 + gap), "train": value(1.0)}}
        values |= {"robust_error": {"test": value(gap / 2)}}
        readings.append({"model": {**model, "weights": f"{label}{seed}"}, "values": values})
    rest = {"protocol": {"name": "tiny", "version": "1.0", "hash": "0" * 64}, "dataset": "digits"}
    rest |= {"dataset_checksum": "0" * 64, "canonical_data": True, "epsilon": 0.2, "evaluation_seed": 0}
    rest |= {"numerics": 1, "experiment": choose(text).canonical, "readings": readings}
    return work.document_model(choose(text)).model_validate(rest)


def axes_of(*args, **named):
    made = FlatnessVsRobustness.draw(document(*args, **named))
    made.draw_without_rendering()
    return made.axes[0]


def line_of(axes):
    (line,) = (each for each in axes.lines if len(each.get_xdata()) > 50)
    return line


# ---------------------------------------------------------------------------------------------------------
# The line
# ---------------------------------------------------------------------------------------------------------


def test_a_line_and_its_band_of_three_points_by_hand():
    """x - 1 = -1, 0, 1: slope (2 * 1 + 0 + 3) / 2; residuals 0.5, -1, 0.5; s^2 = 1.5 with one degree of freedom."""
    line = fitted([0, 1, 2], [0, 1, 5])
    assert line is not None
    assert (line.intercept, line.slope) == pytest.approx((-0.5, 2.5))
    assert line.at(np.array([2.0])) == pytest.approx([4.5])
    expected = [T_1 * math.sqrt(1.5 / 3), T_1 * math.sqrt(1.5 * (1 / 3 + 1 / 2))]
    assert line.half_width(np.array([1.0, 2.0])) == pytest.approx(expected)


def test_points_on_a_line_have_a_band_of_no_width():
    line = fitted([1, 2, 4, 8, 9], [5, 7, 11, 19, 21])
    assert line is not None
    assert (line.intercept, line.slope) == pytest.approx((3, 2))
    assert line.half_width(np.array([3.0])) == pytest.approx([0], abs=1e-6)


def test_the_band_holds_the_true_line_in_95_of_100_samples():
    chance, x, held = np.random.default_rng(0), np.array([0.0, 1, 2, 3, 7]), 0
    for _ in range(2000):
        line = fitted(x, 1 + 0.5 * x + chance.normal(size=5))
        assert line is not None
        held += abs(line.at(np.array(2.0)) - 2) <= line.half_width(np.array(2.0))
    assert 0.93 < held / 2000 < 0.97
    assert line.half_width(np.array(2.6)) == pytest.approx(T_3 * line.noise / math.sqrt(5))


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3])])
def test_two_points_or_equal_abscissas_have_no_line(x, y):
    assert fitted(x, y) is None


# ---------------------------------------------------------------------------------------------------------
# The figure
# ---------------------------------------------------------------------------------------------------------

LINEAR = [("at", 1, 1.0, 0.5), ("trades", 1, 2.0, 0.7), ("mart", 1, 3.0, 0.9)]


def test_the_line_is_drawn_through_the_points_with_a_band():
    axes = axes_of(LINEAR)
    line = line_of(axes)
    assert line.get_xdata()[[0, -1]] == pytest.approx([1, 3])
    assert line.get_ydata()[[0, 50, -1]] == pytest.approx([0.5, 0.7, 0.9])
    assert any(len(each.get_paths()[0].vertices) > 200 for each in axes.collections)
    assert axes.get_xlabel().endswith("lower is flatter")


def test_two_points_are_drawn_without_a_line():
    assert not [line for line in axes_of(LINEAR[:2]).lines if len(line.get_xdata()) > 50]


def test_on_logarithmic_axes_the_line_is_straight_in_the_logarithm():
    points = [("at", 1, 0.1, 0.2), ("trades", 1, 1.0, 2.0), ("mart", 1, 10.0, 20.0)]
    axes = axes_of(points, error=0.001)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert np.asarray(line_of(axes).get_ydata()) == pytest.approx(2 * np.asarray(line_of(axes).get_xdata()))


@pytest.mark.parametrize(("outcome", "heights"), [("gap", (0.5, 0.9)), ("loss", (1.5, 1.9)), ("error", (0.25, 0.45))])
def test_the_parameter_chooses_the_vertical_axis(outcome, heights):
    axes = axes_of(LINEAR, text=f"flatness-vs-robustness(outcome={outcome})")
    assert line_of(axes).get_ydata()[[0, -1]] == pytest.approx(heights)
    assert axes.get_ylabel() == f"{OUTCOMES[outcome]}; lower is better"


def test_a_measure_without_a_value_leaves_its_point_out():
    points = [*LINEAR, ("awp", 1, None, 0.9)]
    axes = axes_of(points)
    assert line_of(axes).get_ydata()[-1] == pytest.approx(0.9)
    assert "awp" not in {text.get_text() for text in axes.texts}
    assert {*figures.figure_files(document(points))} == {"png", "svg"}
    assert {*figures.figure_files(document([("at", 1, None, 0.5)]))} == {"png", "svg"}


def crowd():
    places = np.random.default_rng(1).normal(1, 0.05, (14, 2))
    return [(f"at(epochs={k})", 1, *place) for k, place in enumerate(places.tolist())]


def test_no_name_covers_another_name_a_point_or_the_line():
    axes = axes_of(crowd())
    names = [text for text in axes.texts if text.get_text()]
    assert len(names) == 14
    boxes = [Text.get_window_extent(text) for text in names]  # an annotation's own would hold its line, too
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners())
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    drawn = [*(line.get_xydata() for line in axes.lines if len(line.get_xdata()) in (1, 101))]
    dots = axes.transData.transform(np.concatenate(drawn))
    assert not [box for box in boxes for dot in dots if box.contains(*dot)]


def test_a_method_with_several_seeds_is_named_once_at_its_middle_network():
    axes = axes_of([("at", k, flatness, 0.5) for k, flatness in enumerate((1.0, 1.4, 3.0))])
    (name,) = (text for text in axes.texts if text.get_text())
    assert (name.get_text(), name.xy[0]) == ("at", 1.4)


def test_a_name_without_a_free_place_is_left_out(monkeypatch):
    monkeypatch.setattr(labels, "RINGS", 1)
    assert 0 < len([text for text in axes_of(crowd()).texts if text.get_text()]) < 14


# ---------------------------------------------------------------------------------------------------------
# The values
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(registry, finished, tiny, one_thread):
    session = Session(registry, load(registry, str(tiny)), None, Store(finished.store), "cpu")
    (found,) = find_models(session, [str(finished.folder)], "chosen", ModelOptions())
    return open_model(session, found)


def test_values_are_those_of_the_record(subject, finished, monkeypatch, tmp_path):
    monkeypatch.setattr("robflat_bench.experiments.losses.evaluate", None)
    record = json.loads((finished.folder / "record.json").read_text())["results"]["last"]
    average = subject.fixed.measures[0].measure
    params = choose(f"flatness-vs-robustness(measures=['{average}'])").params
    row = FlatnessVsRobustness.read(subject, params, StoredJournal(tmp_path))
    attack = subject.fixed.attacks[0].attack
    error = record["robust_error"][attack]["test"]
    assert row.robust_error["test"].value == error
    found = {name: value.value for name, value in row.outcomes.items() if value}
    assert found == {
        "gap": pytest.approx(record["gap"]["robust_loss"]),
        "loss": record["robust_loss"]["test"],
        "error": error,
    }
    assert row.measures[average].value == record["measures"][average]["value"]
    assert row.brief["gap in robust loss, test - train (nats)"] == found["gap"]


def test_a_gap_needs_attacked_training_images(subject, tmp_path, monkeypatch):
    attack = subject.fixed.attacks[0].model_copy(update={"train": 0})
    fixed = subject.fixed.model_copy(update={"attacks": (attack,)})
    monkeypatch.setattr(type(subject), "fixed", fixed)
    with pytest.raises(UsageError, match="outcome=loss"):
        FlatnessVsRobustness.read(subject, choose("flatness-vs-robustness").params, StoredJournal(tmp_path))


def test_the_command_writes_table_data_and_figure(finished, tiny, command, tmp_path):
    where = ("--protocol", tiny, "--store", tmp_path / "s", "--out", tmp_path / "a", "--json")
    done = command("experiment", "flatness-vs-robustness", finished.folder, *where)
    assert done.code == 0, done.err
    data = tmp_path / "a" / "flatness-vs-robustness.json"
    assert json.loads(data.read_text()) == done.document
    again = command("experiment", "redraw", data, "--out", tmp_path / "b")
    assert again.code == 0, again.err
    svg = "flatness-vs-robustness.svg"
    assert (tmp_path / "b" / svg).read_bytes() == (tmp_path / "a" / svg).read_bytes()
