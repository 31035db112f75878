"""The experiment `radii`: its errors are the attack's own at each radius, its area is the trapezoidal rule's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robflat_bench.config.protocol import load
from robflat_bench.core import CheckFailed, Observer, Threat, UsageError, Workspace
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments import choose, work
from robflat_bench.experiments.trained_model import TrainedModel, find_models, open_model
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve

TEXT = "radii(radii=[0.1, 0.05, 0.4], attack='pgd(steps=3)', examples=20)"


def opened(registry, finished, tiny, *settings: str) -> TrainedModel:
    session = Session(registry, load(registry, str(tiny), settings), None, Store(finished.store), "cpu")
    (found,) = find_models(
        session, [str(finished.folder / "checkpoints" / "last.safetensors")], "chosen", ModelOptions()
    )
    return open_model(session, found)


@pytest.fixture(scope="module")
def subject(registry, finished, tiny, one_thread) -> TrainedModel:
    return opened(registry, finished, tiny)


def read(text: str, subject: TrainedModel, folder):
    chosen = choose(text)
    return chosen.experiment.read(subject, chosen.params, StoredJournal(folder / "work"))


def errors(subject: TrainedModel, threat: Threat) -> np.ndarray:
    model, examples = subject.load(), subject.examples("test", 20)
    attack = resolve(subject.registry, "attack", "pgd(steps=3)").build(threat)
    x_adv = attack.run(model, examples, Workspace(250, subject.fixed.seed))
    with torch.no_grad():
        return (model(x_adv).argmax(1) != examples.y).numpy()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_radius_is_attacked_in_the_protocols_norm_and_no_curve_falls(registry, finished, tiny, tmp_path, norm):
    subject = opened(registry, finished, tiny, f"fixed.threat.norm={norm}")
    found = read(TEXT, subject, tmp_path)
    assert found.radii == (0.0, 0.05, 0.1, 0.4)
    wrong = [errors(subject, Threat(0.0, norm))]
    for radius in found.radii[1:]:
        wrong.append(wrong[-1] | errors(subject, Threat(radius, norm)))
    means = [row.mean() for row in wrong]
    assert [error.value for error in found.errors] == pytest.approx(means)
    assert means == sorted(means)
    areas = np.trapezoid(np.array(wrong, float), found.radii, axis=0) / 0.4
    assert found.area.value == pytest.approx(areas.mean())
    assert found.area.standard_error == pytest.approx(areas.std(ddof=1) / 20**0.5)
    assert found.brief["area"] == found.area.value


def test_radii_reach_twice_epsilon_in_equal_steps_by_default(subject, tmp_path):
    found = read("radii(points=2, attack='fgsm', examples=10)", subject, tmp_path)
    assert found.radii == pytest.approx((0.0, 0.2, 0.4))


def test_attacks_of_another_norm_and_radii_beyond_the_pixels_are_refused(registry, finished, tiny, subject, tmp_path):
    under_l1 = "radii(radii=[1.5], examples=10)"
    with pytest.raises(UsageError, match=r"'epsilon' = 1.5: pixels are in \[0,1\]"):
        read(under_l1, subject, tmp_path)
    still = opened(registry, finished, tiny, "fixed.threat.epsilon=0.0")
    with pytest.raises(UsageError, match="has epsilon 0; name radii"):
        read("radii(examples=10)", still, tmp_path)


def test_the_figure_is_drawn_from_the_document_and_damaged_documents_are_refused(subject, tmp_path):
    chosen = choose("radii(radii=[0.1], attack='fgsm', examples=10)")
    document = work.run_experiment(chosen, [subject], Store(tmp_path / "store"), Observer())
    files = {path.suffix: path for path in work.write_document(document, Store(tmp_path / "store"), None)}
    assert {*files} == {".json", ".png", ".svg"}
    assert "linf radius" in files[".svg"].read_text() or files[".svg"].stat().st_size > 10_000
    content = json.loads(files[".json"].read_text())
    assert content["norm"] == "linf"
    content["readings"][0]["values"]["radii"] = [0.1, 0.0]
    files[".json"].write_text(json.dumps(content))
    with pytest.raises(CheckFailed, match="radii must increase"):
        work.redraw(files[".json"], None)
