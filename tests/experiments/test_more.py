"""The experiments about the measures themselves: against direct use of the measures, known powers, shared units."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from helpers.commands import REPOSITORY
from torch import nn

from robflat_bench.config.protocol import load
from robflat_bench.core import Observer, UsageError, Workspace
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments import ablation, choose, figures, scaling, spectrum, work
from robflat_bench.experiments.trained_model import TrainedModel, find_models, open_model
from robflat_bench.measures import rescaling
from robflat_bench.measures.flatness.worst_case import WorstCase
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve

SCALING = (
    "scaling(examples=12, measures=['average-case(draws=2, steps=2)', 'hessian-trace(probes=3, steps=2)', 'margin'])"
)
SPECTRUM = "spectrum(steps=2, density=2, nodes=6, probes=3, tolerance=0.1, examples=12)"
SPLITS = "splits(measure='average-case(draws=2, steps=2)', examples=12)"
ABLATION = (
    "ablation(measures=['worst-case(xi=0.03, steps=2, strong_steps=2)'], axis=restarts, values=[1, 2, 3], examples=12)"
)


@pytest.fixture(scope="module")
def subject(registry, finished, tiny, one_thread) -> TrainedModel:
    protocol = load(registry, str(tiny))
    session = Session(registry, protocol, None, Store(finished.store), "cpu")
    (found,) = find_models(session, [str(finished.folder)], "chosen", ModelOptions())
    return open_model(session, found)


def read(text: str, subject: TrainedModel, folder):
    chosen = choose(text)
    return chosen.experiment.read(subject, chosen.params, StoredJournal(folder / "work"))


def direct(subject: TrainedModel, text: str, model: nn.Module | None = None, split: str = "test", count: int = 12):
    """The measure itself, from a journal that keeps nothing."""
    examples = subject.examples(split, count)
    measure = resolve(subject.registry, "measure", text).build(subject.threat)
    return measure.measure(model or subject.load(), examples, Workspace(250, subject.fixed.seed))


def same(found, expected) -> bool:
    return (found.value, found.standard_error, found.n) == (expected.value, expected.standard_error, expected.n)


# ---------------------------------------------------------------------------------------------------------
# Scaling
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.5, 2.0, 0.3, 7.0])
def test_scaled_convolutions_leave_the_function_and_a_louder_head_multiplies_it(subject, c):
    model, examples = subject.load(), subject.examples("test", 20)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        before = model(examples.x)
        scaled, louder = rescaling.rescaled(model, examples.x, c), rescaling.louder(model, examples, c)
        assert (scaled(examples.x) - before).abs().max() < 1e-6 * max(1.0, float(before.abs().max()))
        # a logit near 0 is a sum of larger terms, whose rounding it keeps
        rounding = 1e-6 * c * float(before.abs().max())
        assert torch.allclose(louder(examples.x), c * before, rtol=1e-5, atol=rounding)
        assert torch.equal(model(examples.x), before)
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions
    for name, convolution in convolutions.items():
        assert torch.equal(scaled.get_submodule(name).weight, convolution.weight * c)


def test_only_the_scaled_tensors_move_alone(subject):
    model, x = subject.load(), subject.examples("test", 2).x
    held = rescaling.alone(rescaling.rescaled(model, x, 1.0), x)
    assert torch.equal(held(x), model(x))
    everything, few = WeightSpace(model).layers, WeightSpace(held).layers
    assert {*everything} - {*few} == {name for name in everything if "head" in name} != set()


def test_scaling_finds_the_known_powers(subject, tmp_path):
    """Exactly: powers of two change no digit of a float."""
    row = read(SCALING, subject, tmp_path)
    average, trace, margin = row.measures.values()
    assert row.factors == (1.0, 0.5, 2.0)
    assert row.logits_moved == 0
    for moved in (average, margin):
        assert moved.exponent("layers", row.factors) == (0, 0, 0)
        assert moved.stays(row.factors)
        assert "alone" not in moved.found
    assert not trace.stays(row.factors)
    assert trace.exponent("alone", row.factors) == pytest.approx((-2, -2, -2), abs=1e-4)
    assert trace.declared["layers"] == -2
    low, high = trace.exponent("layers", row.factors)[1:]
    assert high - low > 0.01  # the last layer is not scaled and keeps its share of the trace: no one power
    assert row.brief == {"measures": 3, "stay": 2, "move": 1, "function moved": 0}


def test_scaling_values_are_the_measures_own(subject, tmp_path):
    row = read(SCALING, subject, tmp_path)
    examples = subject.examples("test", 12)
    for text, moved in row.measures.items():
        for kind, change in {
            "layers": lambda c: rescaling.rescaled(subject.load(), examples.x, c),
            "logits": lambda c: rescaling.louder(subject.load(), examples, c),
        }.items():
            for c, found in zip(row.factors, moved.found[kind], strict=True):
                assert same(found, direct(subject, text, change(c))), (text, kind, c)
    assert [*row.measures] == [
        resolve(subject.registry, "measure", text).canonical
        for text in (
            "average-case(draws=2, steps=2, coupling=frozen)",
            "hessian-trace(probes=3, steps=2)",
            "margin",
        )
    ]


def moved(*values: float | None) -> scaling.Moved:
    found = tuple({"value": value, "standard_error": None, "n": 1} for value in values)
    return scaling.Moved.model_validate({"name": "m", "declared": {}, "found": {"layers": found}})


def test_exponents_are_slopes_and_need_one_sign():
    factors = (1.0, 0.5, 2.0, 3.0)
    assert moved(*(5 * c**-1.5 for c in factors)).exponent("layers", factors) == pytest.approx((-1.5,) * 3)
    assert moved(*(-(c**2) for c in factors)).exponent("layers", factors) == pytest.approx((2,) * 3)
    middle, low, high = moved(1, 0.5, 4, 3).exponent("layers", factors)
    assert (low, high) == pytest.approx((1, 2))
    assert low < middle < high
    for values in ((1, -1, 1, 1), (0, 1, 1, 1), (1, None, 1, 1), (1, 0, 1, 1)):
        assert moved(*values).exponent("layers", factors) is None
        assert not moved(*values).stays(factors)


def test_scaling_refuses_a_model_without_normalisation(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainedModel, "load", lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UsageError, match="no normalisation undoes"):
        read(SCALING, subject, tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Spectrum
# ---------------------------------------------------------------------------------------------------------


def test_spectrum_is_what_the_measures_say(subject, tmp_path):
    row = read(SPECTRUM, subject, tmp_path)
    top = direct(subject, "hessian-lambda-max(steps=2, density=2, nodes=6, tolerance=0.1)")
    assert same(row.lambda_max, top)
    assert row.lambda_max.details == dict(top.details)
    assert same(row.trace, direct(subject, "hessian-trace(steps=2, probes=3)"))
    assert np.array_equal(row.nodes, top.arrays["density_nodes"])
    assert np.array_equal(row.shares, top.arrays["density_weights"])
    assert np.sum(row.shares, 1) == pytest.approx(1)
    assert row.size == sum(layer.numel() for layer in WeightSpace(subject.load()).layers.values())
    assert row.brief["convexity ratio"] == pytest.approx(abs(row.brief["lambda min"]) / row.brief["lambda max"])


def test_the_axis_is_logarithmic_beyond_its_scale_and_passes_zero():
    u = spectrum.decades(np.array([0.0, 10.0, 100.0, -100.0]), 0.1)
    assert u[0] == 0
    assert u[2] - u[1] == pytest.approx(1, abs=1e-4)
    assert u[3] == -u[2]
    assert u[2] == pytest.approx(3, abs=1e-4)  # decades above the scale


def test_the_drawn_density_holds_every_eigenvalue(subject, tmp_path):
    document = work.run_experiment(choose(SPECTRUM), [subject], Store(tmp_path), Observer())
    (curve,) = [line for line in spectrum.HessianSpectrum.draw(document).axes[0].lines if len(line.get_xdata()) > 100]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------------------------------------
# Splits
# ---------------------------------------------------------------------------------------------------------


def test_splits_are_the_measure_on_either_split_and_the_loss_adds_up(subject, tmp_path):
    row = read(SPLITS, subject, tmp_path)
    assert [*row.found] == ["test", "train"]
    assert {tuple(found) for found in row.found.values()} == {("clean", "frozen", "reattack")}
    for split, found in row.found.items():
        for coupling, value in found.items():
            expected = direct(subject, f"average-case(draws=2, steps=2, coupling={coupling})", split=split)
            assert same(value, expected), (split, coupling)
    test, train = row.robust_loss["test"], row.robust_loss["train"]
    assert train.value + row.gap.value == pytest.approx(test.value, abs=1e-12)
    recorded = json.loads((subject.home.path / "record.json").read_text())["results"]["last"]
    assert row.gap.value == pytest.approx(recorded["gap"]["robust_loss"], abs=1e-12)
    assert row.gap.standard_error == pytest.approx(math.sqrt(test.standard_error**2 + train.standard_error**2))
    assert row.gap.standard_error > max(test.standard_error, train.standard_error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("splits(couplings=['joint'])", "no coupling joint"),
        ("splits(measure=path-norm)", "no coupling at all"),
        ("splits(measure=local-lipschitz)", "no coupling at all"),
        ("splits(examples=31)", "has 30 test examples"),
        ("ablation(axis=rho)", "no parameter 'rho'"),
        ("ablation(axis=reference)", "no usual values of reference"),
        ("ablation(measures=['margin'])", "no usual values of any parameter"),
        ("ablation(values=[1])", "axis=xi"),
        ("scaling(factors=[1])", "rescales nothing"),
        ("scaling(factors=[-2])", "must be positive"),
        ("scaling(measures=['flatnes'])", "unknown measure 'flatnes'"),
    ],
)
def test_mistakes_say_what_to_do(subject, tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read(text, subject, tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Ablation
# ---------------------------------------------------------------------------------------------------------


def test_shorter_runs_are_the_beginning_of_the_longest_bit_for_bit(subject, tmp_path, monkeypatch):
    ascents = []
    ascend = WorstCase.ascend
    monkeypatch.setattr(WorstCase, "ascend", lambda self, *a: ascents.append(a[3:5]) or ascend(self, *a))
    (line,) = read(ABLATION, subject, tmp_path).lines
    once = [(xi, restart) for xi in (0.0, 0.03) for restart in range(3)]
    assert sorted(set(ascents)) == once
    assert len(ascents) <= len(once) + 2, "the highest of fewer restarts may be climbed again, for its strong attack"
    assert line.settings == (1, 2, 3)
    for restarts, found in zip(line.settings, line.found, strict=True):
        expected = direct(subject, f"worst-case(xi=0.03, steps=2, strong_steps=2, restarts={restarts})")
        assert same(found, expected)
        assert found.details == dict(expected.details)
    text = "ablation(measures=['average-case(steps=2)'], axis=draws, values=[2, 4, 3], examples=12)"
    (line,) = read(text, subject, tmp_path / "draws").lines
    assert line.settings == (2, 4, 3)
    for draws, found in zip(line.settings, line.found, strict=True):
        assert same(found, direct(subject, f"average-case(steps=2, draws={draws})"))
    assert len({found.value for found in line.found}) == 3


@pytest.mark.parametrize(
    ("measure", "axis", "settings", "texts"),
    [
        ("worst-case(steps=2, strong_steps=2, restarts=1)", "xi", "0.01, 0.1", ("{0}, xi=0.01)", "{0}, xi=0.1)")),
        ("average-case(draws=2, steps=2)", "xi", "0.1, 0.5", ("{0}, xi=0.1)", "{0}, xi=0.5)")),
        ("average-case(draws=2, steps=2)", "ball", "filter-l2, layer-linf",
         ("{0}, ball=filter)", "{0}, ball=layer, norm=linf)")),
        ("average-case(draws=2)", "steps", "1, 3", ("{0}, steps=1)", "{0}, steps=3)")),
        ("worst-case(steps=2, strong_steps=2, warm=true)", "restarts", "1, 2",
         ("{0}, restarts=1)", "{0}, restarts=2)")),
        ("worst-case(steps=2, strong_steps=2, restarts=1)", "weight_step", "0.001, 0.1",
         ("{0}, weight_step=0.001)", "{0}, weight_step=0.1)")),
        ("adaptive-average(draws=2, steps=2)", "rho", "0.1, 0.3", ("{0}, rho=0.1)", "{0}, rho=0.3)")),
    ],
)  # fmt: skip
def test_every_point_is_the_measure_at_that_setting(subject, tmp_path, measure, axis, settings, texts):
    text = f'ablation(measures=["{measure}"], axis={axis}, values=[{settings}], examples=12)'
    text = text if axis != "ball" else text.replace(settings, ", ".join(f'"{s}"' for s in settings.split(", ")))
    (line,) = read(text, subject, tmp_path).lines
    for spelled, found in zip(texts, line.found, strict=True):
        assert same(found, direct(subject, spelled.format(measure[:-1]))), spelled
    assert line.found[0].value != line.found[1].value


def test_all_axes_are_those_with_usual_values(subject):
    params = choose("ablation").params
    for text, name in (("average-case", "average-case"), ("worst-case(xi=0.03, restarts=3)", "worst-case")):
        measure = resolve(subject.registry, "measure", text)
        axes = ablation.axes_of(measure, params)
        assert axes == ablation.GRIDS[name]
        for axis, settings in axes.items():
            for setting in settings:
                subject.variant(measure, **ablation.values(axis, setting))


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SCALING, SPECTRUM, SPLITS, ABLATION])
def test_a_command_writes_data_and_figure(finished, tiny, command, tmp_path, text):
    where = ("--protocol", tiny, "--store", tmp_path / "s")
    done = command("experiment", text, finished.folder, *where, "--out", tmp_path / "a", "--json")
    assert done.code == 0, done.err
    name = text.partition("(")[0]
    data, png, svg = (tmp_path / "a" / f"{name}.{suffix}" for suffix in ("json", "png", "svg"))
    assert json.loads(data.read_text()) == done.document
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_text().rstrip().endswith("</svg>")
    again = command("experiment", "redraw", data, "--out", tmp_path / "b")
    assert again.code == 0, again.err
    for path in (png, svg):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    shown = command("experiment", text, finished.folder, *where)
    assert shown.code == 0, shown.err


def test_measures_without_a_value_leave_gaps(subject, tmp_path):
    text = "scaling(examples=12, measures=['local-entropy(draws=6, gamma=0.001, steps=2)', 'margin'])"
    document = work.run_experiment(choose(text), [subject], Store(tmp_path), Observer())
    entropy, margin = document.readings[0].values.measures.values()
    assert entropy.found["layers"][0].value is None
    assert "effective sample size" in entropy.found["layers"][0].reason
    assert margin.found["layers"][0].value is not None
    assert {*figures.figure_files(document)} == {"png", "svg"}


def test_spectrum_without_an_eigenvalue_is_one_line_and_no_traceback(command, tmp_path):
    document = json.loads((REPOSITORY / "docs" / "figures" / "spectrum.json").read_text("utf-8"))
    for reading in document["readings"]:
        reading["values"]["lambda_max"] |= {"value": None, "standard_error": None, "details": {}, "reason": "none"}
    file = tmp_path / "spectrum.json"
    file.write_text(json.dumps(document))
    done = command("experiment", "redraw", file)
    assert done.code == 1
    assert "no model has an eigenvalue to draw" in done.complaint
