"""The figure of `surface`: losses above, rises below, each on a scale of its own, and labels that stay apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robflat_bench.experiments import choose, figures, work
from robflat_bench.experiments.landscape import offsets
from robflat_bench.experiments.surface import LossSurface

S = np.array(offsets(21))
BOWL = 1 + 2 * (S[:, None] ** 2 + 0.5 * S[None] ** 2)


def document(*surfaces):
    readings = []
    for k, loss in enumerate(surfaces):
        model = {"label": f"method-{k}", "seed": 1, "checkpoint": "last", "epoch": 1, "best_epoch": 1, "run": "r"}
        values = {"n": 9, "s": S.tolist(), "loss": loss.tolist()}
        readings.append({"model": {**model, "weights": str(k)}, "values": values})
    rest = {"protocol": {"name": "tiny", "version": "1.0", "hash": "0" * 64}, "dataset": "digits"}
    rest |= {"dataset_checksum": "0" * 64, "canonical_data": True, "epsilon": 0.2, "evaluation_seed": 0}
    rest |= {"numerics": 1, "experiment": choose("surface").canonical, "readings": readings}
    return work.document_model(choose("surface")).model_validate(rest)


def panels(*surfaces):
    made = LossSurface.draw(document(*surfaces))
    titled = {axes.get_title(): axes for axes in made.axes if axes.get_title() and axes.get_visible()}
    bars = [axes.get_ylabel() for axes in made.axes if "scale" in axes.get_ylabel()]
    return titled, bars


def shape(axes):
    """The vertices of the contour lines."""
    lines = axes.collections[1]
    return [path.vertices for path in lines.get_paths()]


def test_surfaces_that_differ_by_a_constant_have_equal_rises():
    titled, _ = panels(BOWL, BOWL + 0.37)
    assert list(titled) == ["method-0: loss", "method-1: loss", "method-0: rise", "method-1: rise"]
    first, second = (shape(titled[f"method-{k}: rise"]) for k in (0, 1))
    assert all(np.allclose(a, b) for a, b in zip(first, second, strict=True))
    above = [shape(titled[f"method-{k}: loss"]) for k in (0, 1)]
    assert not all(a.shape == b.shape and np.allclose(a, b) for a, b in zip(*above, strict=True))


def test_the_rise_is_zero_at_the_model_itself():
    values = document(BOWL).values[0]
    assert values.brief["loss at w (nats)"] == 1
    assert values.brief["highest rise (nats)"] == pytest.approx(3)


def test_wide_losses_have_a_logarithmic_scale_and_their_rises_a_linear_one():
    _, bars = panels(BOWL)
    assert bars == ["loss (nats), linear scale", "rise over the loss at w (nats), linear scale"]
    _, bars = panels(np.exp(1.5 * BOWL))
    assert bars == ["loss (nats), log scale", "rise over the loss at w (nats), linear scale"]


def test_no_label_overprints_another_or_leaves_its_panel():
    titled, _ = panels(np.exp(1.3 * BOWL), 1 + 60 * (S[:, None] ** 8 + S[None] ** 8))
    for title, axes in titled.items():
        boxes = [text.get_window_extent() for text in axes.texts if text.get_visible()]
        assert boxes, title
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])], title
        assert all(axes.bbox.contains(*corner) for box in boxes for corner in box.corners()), title


def test_four_models_take_two_rows_of_each_kind():
    titled, _ = panels(BOWL, 1.1 * BOWL, 1.2 * BOWL, 1.3 * BOWL)
    tops = {title: round(axes.get_position().y1, 3) for title, axes in titled.items()}
    assert len(tops) == 8
    assert tops["method-0: loss"] == tops["method-2: loss"] > tops["method-0: rise"] == tops["method-2: rise"]
    assert tops["method-2: rise"] > tops["method-3: loss"] > tops["method-3: rise"]
    assert {*figures.figure_files(document(BOWL))} == {"png", "svg"}
