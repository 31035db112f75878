"""Experiments: values against naive loops, resumption, files and error messages."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from robflat_bench.config.protocol import load
from robflat_bench.core import CheckFailed, Observer, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments import choose, experiments, figures, work
from robflat_bench.experiments.best_last import BestLast
from robflat_bench.experiments.document import ModelRef, names
from robflat_bench.experiments.landscape import LossLandscape, MovedModel, offsets
from robflat_bench.experiments.surface import LossSurface
from robflat_bench.experiments.trained_model import TrainedModel, find_models, open_model
from robflat_bench.experiments.training import TrainingCurves
from robflat_bench.measures.oracle import Oracle
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.numerics.weights import read_weights, write_weights
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store

QUICK = "landscape(points=3, directions=2, steps=2, adversarial=0.05)"


@dataclass(frozen=True)
class Lab:
    """A store with two tiny runs: AT with two kept epochs, and TRADES."""

    store: Store
    runs: dict[str, Path]
    protocol: Path
    registry: object

    def subjects(self, *methods: str, reads: str = "chosen") -> list[TrainedModel]:
        protocol = load(self.registry, str(self.protocol))
        models = [str(self.runs[method]) for method in methods]
        session = Session(self.registry, protocol, None, self.store, "cpu")
        return [open_model(session, model) for model in find_models(session, models, reads, ModelOptions())]

    def options(self) -> list[object]:
        return ["--protocol", self.protocol, "--store", self.store.root]


@pytest.fixture(scope="module")
def lab(registry, finished, tiny, command, tmp_path_factory, one_thread) -> Lab:
    root = tmp_path_factory.mktemp("lab") / "store"
    shutil.copytree(finished.store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        assert command("run", "--method", "trades", "--protocol", tiny, "--store", root).code == 0
    runs = {method: next(root.glob(f"tiny/{method}/seed-1-*")) for method in ("at", "trades")}
    weights = read_weights(runs["at"] / "checkpoints" / "last.safetensors")
    write_weights(runs["at"] / "checkpoints" / "epoch-0001.safetensors", weights)
    earlier = {name: value * 0.9 if value.ndim > 1 else value for name, value in weights.items()}
    write_weights(runs["at"] / "checkpoints" / "epoch-0000.safetensors", earlier)
    return Lab(Store(root), runs, tiny, registry)


@pytest.fixture(scope="module")
def subject(lab) -> TrainedModel:
    return lab.subjects("at")[0]


def journal(folder: Path) -> StoredJournal:
    return StoredJournal(folder / "work")


def robust_loss(subject: TrainedModel, params, model) -> float:
    """By the oracle, from a journal that keeps nothing."""
    oracle, examples = Oracle(subject.threat, params), subject.examples("test", params.examples)
    oracle.freeze(subject.load(), examples, Workspace(250, 0))
    return float(oracle.losses(model, examples, Workspace(250, 0)).mean())


# ---------------------------------------------------------------------------------------------------------
# Directions
# ---------------------------------------------------------------------------------------------------------


def moving(model) -> dict[str, torch.Tensor]:
    """Tensors that move, by hand: no normalisation, nothing of zero norm."""
    modules = dict(model.named_modules())
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not isinstance(modules[name.rpartition(".")[0]], torch.nn.BatchNorm2d) and parameter.abs().sum() > 0
    }


def test_points_are_even_and_the_middle_is_the_model_itself():
    assert offsets(5) == (-1.0, -0.5, 0.0, 0.5, 1.0)
    for points in (3, 7, 25, 51, 999):
        s = offsets(points)
        assert len(s) == points
        assert s[points // 2] == 0.0
        assert s == tuple(-value for value in reversed(s))
        assert np.allclose(np.diff(s), 2 / (points - 1))


def test_a_random_direction_has_half_of_each_layers_norm(subject, tmp_path):
    here = MovedModel(subject, choose("landscape(steps=2)").params, journal(tmp_path))
    direction = here.random(3)
    assert {*direction} == {*moving(here.network)}
    for name, weight in moving(here.network).items():
        assert float(direction[name].norm() / weight.norm()) == pytest.approx(0.5, rel=1e-5)


def test_a_filter_normalised_direction_has_half_of_each_filters_norm(subject, tmp_path):
    here = MovedModel(subject, choose("landscape(steps=2, normalisation=filter)").params, journal(tmp_path))
    direction = here.random(0)
    for name, weight in moving(here.network).items():
        for moved, filter in zip(direction[name], weight, strict=True):
            assert float(moved.norm()) == pytest.approx(0.5 * float(filter.norm()), rel=1e-4, abs=1e-9)
    layerwise = MovedModel(subject, choose("landscape(steps=2)").params, journal(tmp_path)).random(0)
    assert any(not torch.allclose(layerwise[name], direction[name], rtol=1e-2) for name in direction)


def test_two_models_meet_the_same_random_numbers(lab, tmp_path):
    one, two = (
        MovedModel(s, choose("landscape(steps=2)").params, journal(tmp_path)) for s in lab.subjects("at", "trades")
    )
    for name in one.space.layers.keys() & two.space.layers.keys():
        z_one, z_two = (here.random(0)[name] / here.space.norms[name] for here in (one, two))
        assert torch.allclose(z_one, z_two, rtol=1e-5)
        assert not torch.allclose(z_one, one.random(1)[name] / one.space.norms[name], rtol=1e-5)


def test_the_adversarial_direction_is_a_normalised_ascent_at_fixed_adversarial_examples(subject, tmp_path):
    """Against the loop of the docstring, written with plain autograd."""
    params = choose("landscape(steps=2, adversarial=0.05, ascent=3)").params
    here = MovedModel(subject, params, journal(tmp_path))
    direction = here.adversarial(journal(tmp_path))

    model, examples = subject.load(), subject.examples("test", 0)
    frozen = Oracle(subject.threat, params.model_copy(update={"coupling": "frozen"}))
    frozen.freeze(model, examples, Workspace(250, 0))
    x = frozen.points(examples).x
    w = {name: weight.clone() for name, weight in moving(model).items()}
    nu = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in w.items()}
    for _ in range(3):
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in w:
                parameters[name].copy_(w[name] + nu[name])
        loss = F.cross_entropy(model(x), examples.y)
        for name, gradient in zip(w, torch.autograd.grad(loss, [parameters[name] for name in w]), strict=True):
            size = float(w[name].double().norm())
            nu[name] += 0.05 * size * gradient.double() / gradient.double().norm()
            nu[name] *= min(1.0, 0.025 * size / float(nu[name].norm()))
    for name in w:
        expected = nu[name] * (0.05 * w[name].double().norm() / nu[name].norm())
        assert float(direction[name].norm() / w[name].norm()) == pytest.approx(0.05, rel=1e-5)
        assert float((direction[name] - expected).norm() / expected.norm()) < 2e-2, name

    at_w, uphill, random = (
        here.losses((s, d)).mean() for s, d in ((0, direction), (1, direction), (0.1, here.random(0)))
    )
    assert uphill > at_w
    assert uphill > random  # which has the same length: 0.1 x 0.5


# ---------------------------------------------------------------------------------------------------------
# Landscape and surface
# ---------------------------------------------------------------------------------------------------------


def by_hand(subject: TrainedModel, *moves: tuple[float, int]):
    """The model at w + sum of s D_k, with directions drawn here."""
    model = subject.load()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        steps = {}
        for name, weight in moving(model).items():
            steps[name] = torch.zeros_like(weight, dtype=torch.float64)
            for s, k in moves:
                z = torch.randn(
                    weight.shape, generator=generator(0, "landscape", k, name, *weight.shape), dtype=torch.float64
                )
                steps[name] += s * 0.5 * weight.double().norm() * z / z.norm()
        for name, step in steps.items():
            parameters[name].add_(step.float())
    return model


def test_landscape_at_zero_is_the_oracles_loss_and_elsewhere_that_of_the_moved_model(subject, tmp_path):
    params = choose(QUICK).params
    row = LossLandscape.read(subject, params, journal(tmp_path))
    assert row.n == 30
    exactly = robust_loss(subject, params, subject.load())
    assert row.random.loss[1] == row.adversarial.loss[0] == exactly
    assert row.random.s == (-1.0, 0.0, 1.0)
    assert row.adversarial.s == (0.0, 1.0)
    for k in (0, 1):
        for s, found in zip(row.random.s, row.random.directions[k], strict=True):
            assert found == pytest.approx(robust_loss(subject, params, by_hand(subject, (s, k))), abs=1e-5)
    assert row.random.loss[2] == pytest.approx(np.mean([curve[2] for curve in row.random.directions]))
    assert row.random.standard_error[1] == row.adversarial.standard_error[0] == 0.0
    here = MovedModel(subject, params, journal(tmp_path))
    uphill = here.adversarial(journal(tmp_path))
    rise = here.losses((1.0, uphill)) - here.losses((0.0, uphill))
    assert row.adversarial.loss[1] - row.adversarial.loss[0] == pytest.approx(rise.mean())
    assert row.adversarial.standard_error[1] == pytest.approx(rise.std(ddof=1) / np.sqrt(30))
    ends = np.array(row.random.directions)[:, 2]
    assert row.random.standard_error[2] >= ends.std(ddof=1) / np.sqrt(2) > 0


def test_the_adversary_follows_as_the_coupling_says(subject, tmp_path):
    rows = {
        coupling: LossLandscape.read(
            subject, choose(QUICK.replace(")", f", coupling={coupling})")).params, journal(tmp_path / coupling)
        )
        for coupling in ("clean", "frozen", "reattack")
    }
    clean, frozen, reattack = (np.array(row.random.loss) for row in rows.values())
    assert frozen[1] == reattack[1] > clean[1]
    assert (frozen[[0, 2]] != reattack[[0, 2]]).all()


def test_reading_losses_leaves_the_model_unchanged(subject, tmp_path):
    here = MovedModel(subject, choose(QUICK).params, journal(tmp_path))
    before = copy.deepcopy(here.network.state_dict())
    here.losses((1.0, here.random(0)), (-0.5, here.adversarial(journal(tmp_path))))
    assert all(torch.equal(value, before[name]) for name, value in here.network.state_dict().items())


def test_surface_is_the_loss_over_two_random_directions(subject, tmp_path):
    params = choose("surface(points=3, steps=2)").params
    row = LossSurface.read(subject, params, journal(tmp_path))
    assert row.loss[1][1] == robust_loss(subject, params, subject.load())
    for i, j in ((0, 0), (0, 2), (1, 2)):
        moved = by_hand(subject, (row.s[j], 0), (row.s[i], 1))
        assert row.loss[i][j] == pytest.approx(robust_loss(subject, params, moved), abs=1e-5)
    uphill = LossSurface.read(
        subject, choose("surface(points=3, steps=2, second=adversarial)").params, journal(tmp_path / "a")
    )
    assert uphill.loss[1] == row.loss[1]
    assert uphill.loss[2][1] > uphill.loss[1][1]


# ---------------------------------------------------------------------------------------------------------
# Readings: training, best-last
# ---------------------------------------------------------------------------------------------------------


def test_best_last_takes_its_values_from_the_record(lab, monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise AssertionError("computed again what the record holds")

    record = json.loads((lab.runs["at"] / "record.json").read_text())["results"]
    best, last = lab.subjects("at", reads="both")
    average = best.fixed.measures[0].measure
    monkeypatch.setattr("robflat_bench.experiments.losses.evaluate", refuse)
    params = choose(f"best-last(measures=['{average}'])").params
    for subject, checkpoint in ((best, "best"), (last, "last")):
        row = BestLast.read(subject, params, journal(tmp_path))
        assert row.robust_loss["test"].value == record[checkpoint]["robust_loss"]["test"]
        assert row.robust_loss["train"].value == record[checkpoint]["robust_loss"]["train"]
        assert row.measures[average].value == record[checkpoint]["measures"][average]["value"]
        assert row.measures[average].standard_error == record[checkpoint]["measures"][average]["standard_error"]
    losses = np.load(lab.runs["at"] / "outcomes.npz")[f"last/test/{last.fixed.attacks[0].attack}/loss"]
    assert row.robust_loss["test"].standard_error == pytest.approx(losses.std(ddof=1) / np.sqrt(30))


def test_values_missing_in_the_record_are_those_of_evaluate(lab, command, tmp_path):
    """The tiny protocol reads the worst case at the last checkpoint only, and kept epochs not at all."""
    best, _ = lab.subjects("at", reads="both")
    early, late = lab.subjects("at", reads="kept")
    assert [(s.ref.checkpoint, s.ref.epoch) for s in (early, late)] == [("epoch-0000", 0), ("epoch-0001", 1)]
    params = choose("training").params
    for subject in (best, early):
        row = TrainingCurves.read(subject, params, journal(tmp_path / subject.weights[:8]))
        assert [*row.measures] == [measure.measure for measure in subject.fixed.measures]
        arguments = [part for name in row.measures for part in ("--measure", name)]
        arguments += ["--attack", subject.fixed.attacks[0].attack]
        file = subject.found.weights
        done = command("evaluate", file, *arguments, "--protocol", lab.protocol, "--store", tmp_path / "s", "--json")
        (expected,) = done.document["results"].values()
        assert row.robust_loss["test"].value == expected["robust_loss"]["test"]
        assert {k: v.value for k, v in row.measures.items()} == {k: v["value"] for k, v in expected["measures"].items()}
    recorded = json.loads((lab.runs["at"] / "record.json").read_text())["results"]["last"]
    assert (
        TrainingCurves.read(late, params, journal(tmp_path)).robust_loss["test"].value
        == recorded["robust_loss"]["test"]
    )


def test_legend_names_add_only_what_distinguishes_models():
    def about(label="at", seed=1, checkpoint="last", weights="a"):
        return ModelRef(
            label=label, seed=seed, checkpoint=checkpoint, epoch=None, best_epoch=None, run=None, weights=weights
        )

    assert names([about("at"), about("trades", seed=2)]) == ["at", "trades"]
    assert names([about(seed=1), about(seed=2)]) == ["at, seed 1", "at, seed 2"]
    assert names([about(checkpoint="best"), about()]) == ["at, best", "at, last"]
    assert names([about(weights="a"), about(weights="b")]) == ["at, a", "at, b"]


# ---------------------------------------------------------------------------------------------------------
# Resumption and sharing
# ---------------------------------------------------------------------------------------------------------


class Stop(Observer):
    """Counts units, and is Ctrl-C at one of them."""

    def __init__(self, at: int = 0) -> None:
        self.units, self.at = 0, at

    def unit_ends(self) -> None:
        self.units += 1
        if self.units == self.at:
            raise KeyboardInterrupt


def test_an_interrupted_experiment_goes_on_bit_for_bit(lab, tmp_path, monkeypatch):
    chosen, subjects = choose(QUICK), lab.subjects("at", "trades")
    undisturbed = work.run_experiment(chosen, subjects, Store(tmp_path / "one"), Observer())
    for at in (1, 4, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            work.run_experiment(chosen, subjects, Store(tmp_path / "two"), Stop(at))
    asked = []
    losses = MovedModel.losses
    monkeypatch.setattr(MovedModel, "losses", lambda *a: asked.append(1) or losses(*a))
    assert work.run_experiment(chosen, subjects, Store(tmp_path / "two"), Observer()) == undisturbed
    assert 0 < len(asked) < 8  # of 16 points
    asked.clear()
    assert work.run_experiment(chosen, subjects, Store(tmp_path / "two"), Observer()) == undisturbed
    assert not asked


def test_one_more_model_reads_that_model_only(lab, tmp_path):
    chosen, (at, trades) = choose(QUICK), lab.subjects("at", "trades")
    alone, both = Stop(), Stop()
    work.run_experiment(chosen, [at], Store(tmp_path), alone)
    work.run_experiment(chosen, [at, trades], Store(tmp_path), both)
    assert alone.units == both.units > 0
    other = Stop()
    work.run_experiment(choose(QUICK.replace("steps=2", "steps=3")), [at], Store(tmp_path), other)
    assert other.units == alone.units


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "models"),
    [(QUICK, ("at", "trades")), ("surface(points=3, steps=2)", ("at",)), ("best-last", ("at",)), ("training", ("at",))],
)
def test_a_command_writes_data_and_figure(lab, command, tmp_path, text, models):
    done = command(
        "experiment", text, *(lab.runs[m] for m in models), *lab.options(), "--out", tmp_path / "a", "--json"
    )
    assert done.code == 0, done.err
    name = text.partition("(")[0]
    data, png, svg = (tmp_path / "a" / f"{name}.{suffix}" for suffix in ("json", "png", "svg"))
    assert json.loads(data.read_text()) == done.document
    assert {reading["model"]["label"] for reading in done.document["readings"]} == {*models}
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_text().rstrip().endswith("</svg>")

    again = command("experiment", "redraw", data, "--out", tmp_path / "b")
    assert again.code == 0, again.err
    assert again.out.split() == [str(tmp_path / "b" / path.name) for path in (png, svg)]
    for path in (png, svg):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_the_landscape_command_writes_its_figure_into_the_store(lab, command, monkeypatch):
    toy = LossLandscape.model_validate(TOY)
    monkeypatch.setattr(LossLandscape, "read", lambda *_: toy)
    done = command("landscape", lab.runs["at"], *lab.options())
    assert done.code == 0, done.err
    assert "loss at w (nats)" in done.out
    paths = [Path(line) for line in done.out.splitlines()[-3:]]
    assert [path.name for path in paths] == ["landscape.json", "landscape.png", "landscape.svg"]
    assert all(path.is_file() and lab.store.root / "experiments" in path.parents for path in paths)
    assert json.loads(paths[0].read_text())["experiment"] == choose("landscape").canonical


CURVE = {"s": [-1, 0, 1], "loss": [2, 1, 2], "standard_error": [0.1, 0, 0.1], "directions": [[2, 1, 2]]}
TOY = {"n": 30, "random": CURVE, "adversarial": CURVE}


@pytest.fixture
def toy(lab, tmp_path) -> Path:
    """The JSON of a landscape."""
    subject = lab.subjects("at")[0]
    document = work.document_model(choose("landscape"))(
        experiment=choose("landscape").canonical,
        protocol={"name": "tiny", "version": "1.0", "hash": "0" * 64},
        dataset="digits",
        dataset_checksum="0" * 64,
        canonical_data=True,
        epsilon=0.2,
        evaluation_seed=0,
        numerics=1,
        readings=[{"model": subject.ref.model_dump(), "values": TOY}],
    )
    path = tmp_path / "toy.json"
    path.write_text(document.model_dump_json())
    return path


def changed(path: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_figures_carry_no_date_and_no_setting_of_the_user(toy):
    import matplotlib

    document = work.document_model(choose("landscape")).model_validate_json(toy.read_bytes())
    first = figures.figure_files(document)
    with matplotlib.rc_context({"axes.facecolor": "pink", "svg.hashsalt": None, "lines.linewidth": 9}):
        assert figures.figure_files(document) == first
    assert b"<dc:date>" not in first["svg"]
    assert b"tEXtSoftware" not in first["png"]
    caption = " ".join(text.get_text() for text in LossLandscape.draw(document).findobj(matplotlib.text.Text)).split()
    assert " ".join(caption).count("n = 30 test images") == 1
    assert "(nats)" in caption


def test_wide_ranges_are_drawn_on_a_log_scale(toy):
    draw, model = LossLandscape.draw, work.document_model(choose("landscape"))
    assert draw(model.model_validate_json(toy.read_bytes())).axes[0].get_yscale() == "linear"
    changed(toy, lambda content: content["readings"][0]["values"]["random"].update(loss=[80, 1, 2]))
    wide = draw(model.model_validate_json(toy.read_bytes()))
    assert [axes.get_yscale() for axes in wide.axes] == ["log", "linear"]


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.6, 3.7, False), (1.0, 1.0, False), (0.5, 40, True), (1e-3, 9e4, True)]
)
def test_contour_levels_are_few_round_and_cover_the_surface(low, high, log):
    levels, logarithmic = figures.round_levels(low, high)
    assert logarithmic == log
    assert levels[0] <= low
    assert levels[-1] >= high
    assert 2 <= len(levels) <= 13
    assert (np.diff(levels) > 0).all()


def test_an_invalid_document_is_refused_before_it_is_drawn(toy, command):
    changed(toy, lambda content: content["readings"][0]["model"].update(label="$\\frac{$"))
    assert command("experiment", "redraw", toy).code == 0  # a name is never read as mathematics

    mistakes = {
        "unknown key 'extra'": lambda content: content.update(extra=1),
        "'readings.0.values.n'": lambda content: content["readings"][0]["values"].update(n="many"),
        "cannot be drawn": lambda content: content["readings"][0]["values"]["random"].update(loss=[1]),
        "unknown experiment '../evil'": lambda content: content.update(experiment="../evil"),
        "at most 300 characters": lambda content: content["readings"][0]["model"].update(label="x" * 301),
        "should have at least 1 item": lambda content: content.update(readings=[]),
    }
    good = toy.read_bytes()
    for message, change in mistakes.items():
        toy.write_bytes(good)
        done = command("experiment", "redraw", changed(toy, change))
        assert done.code in (2, 3), message
        assert message in done.complaint or "is not a component" in done.complaint
    toy.write_bytes(good.replace(b"0.2", b"NaN"))
    assert command("experiment", "redraw", toy).code == 3
    toy.write_bytes(b" " * (16 * 1024 * 1024 + 1))
    assert "larger than" in command("experiment", "redraw", toy).complaint
    assert "no such file" in command("experiment", "redraw", toy.parent / "none.json").complaint.lower()


def test_mistakes_are_answered_with_the_next_command(lab, command, tiny):
    at, trades = lab.runs["at"], lab.runs["trades"]

    def complaint(*arguments: object) -> str:
        done = command("experiment", *arguments, *lab.options())
        assert done.code == 2
        return done.err.splitlines()[-1]

    missing = complaint("training", trades)
    assert "kept no checkpoints" in missing
    assert f"robflat-bench run --method trades --protocol FILE.toml --seed 1 --store {lab.store.root}" in missing
    assert missing.endswith("--keep-every 5 --fresh")
    assert "did you mean 'landscape'" in complaint("landscpe", at)
    assert "list experiments" in complaint("landscpe", at)
    assert "'points'" in complaint("landscape(points=4)", at)
    assert "has 30 test examples" in complaint("landscape(points=3, examples=31)", at)
    assert "is not a run" in complaint("best-last", at / "checkpoints" / "last.safetensors")
    assert "results ls" in complaint("landscape", "0000000000000000")
    assert "unknown measure 'flatnes'" in complaint("best-last(measures=['flatnes'])", at)


def test_models_of_two_protocols_in_one_figure_are_refused(lab, command, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(lab.protocol.read_text().replace('"tiny"', '"other"').replace("epsilon = 0.2", "epsilon = 0.1", 1))
    assert command("run", "--method", "standard", "--protocol", other, "--store", lab.store.root).code == 0
    (run,) = lab.store.root.glob("other/standard/seed-1-*")
    done = command("experiment", QUICK, lab.runs["at"], run, *lab.options())
    assert done.code == 2
    assert "--protocol" in done.complaint or "one figure for each protocol" in done.complaint


def test_every_experiment_is_listed_and_complete(command):
    rows = command("list", "experiments", "--json").document
    assert [row["name"] for row in rows] == sorted(experiments()) == list(experiments())
    assert all({"name", "summary", "provider", "parameters"} <= {*row} for row in rows)
    for name, experiment in experiments().items():
        assert not experiment.__abstractmethods__, name
        assert experiment.__module__.endswith(f".{name.replace('-', '_')}")
    assert command("info", "surface", "--json").document["parameters"]


def pair(best: tuple[float | None, float], last: tuple[float | None, float], error: float = 0.1):
    """The document of a best-last figure: (flatness, robust loss) of both checkpoints."""

    def reading(checkpoint: str, flatness: float | None, loss: float):
        model = ModelRef(label="at", seed=1, checkpoint=checkpoint, epoch=0, best_epoch=0, run="r", weights=checkpoint)
        value = {"standard_error": error, "n": 9}
        values = {"n": 9, "attack": "pgd", "titles": {"m": "m"}, "measures": {"m": {**value, "value": flatness}}}
        return {"model": model.model_dump(), "values": values | {"robust_loss": {"test": {**value, "value": loss}}}}

    rest = {
        "protocol": {"name": "tiny", "version": "1.0", "hash": "0" * 64},
        "dataset": "digits",
        "dataset_checksum": "0" * 64,
    }
    rest |= {"canonical_data": True, "epsilon": 0.2, "evaluation_seed": 0, "numerics": 1, "experiment": "best-last"}
    readings = [reading("best", *best), reading("last", *last)]
    return work.document_model(choose("best-last")).model_validate({**rest, "readings": readings})


def arrows(document):
    return [text for text in BestLast.draw(document).axes[0].texts if text.arrow_patch is not None]


def test_an_arrow_leads_from_best_to_last_where_they_are_apart():
    (arrow,) = arrows(pair((1.0, 1.0), (2.0, 2.0)))
    assert arrow.xyann == (1.0, 1.0)
    assert arrow.xy == (2.0, 2.0)
    assert not arrows(pair((1.0, 1.0), (1.01, 1.01)))
    assert not arrows(pair((1.0, 1.0), (2.0, 2.0), error=50.0))  # beside their bars they are close


def test_a_measure_without_a_value_leaves_a_gap():
    document = pair((None, 1.0), (2.0, 2.0))
    assert not arrows(document)
    assert {*figures.figure_files(document)} == {"png", "svg"}
    assert TrainingCurves.draw(document).axes


def test_damaged_values_of_a_model_are_refused(lab, tmp_path):
    chosen, subjects = choose("best-last"), lab.subjects("at", reads="both")
    work.run_experiment(chosen, subjects, Store(tmp_path), Observer())
    for path in (tmp_path / "experiments" / "models").glob("*/row.json"):
        path.write_text("{}")
    with pytest.raises(CheckFailed, match=r"row\.json"):
        work.run_experiment(chosen, subjects, Store(tmp_path), Observer())


def test_layers_with_zero_norm_and_normalisation_do_not_move(subject):
    assert {*WeightSpace(subject.load()).layers} == {*moving(subject.load())}
