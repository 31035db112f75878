"""Catalogue rows of measures: declared passes equal the passes made, declared couplings are those accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.measures import REGISTRY
from torch import nn

from robflat_bench.config.cost import passes_of
from robflat_bench.config.protocol import load
from robflat_bench.core import MeasureInfo, NoValue, UsageError, Workspace
from robflat_bench.evaluation.keyed import KeyedJournal
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.measures.norms.distance_from_init import DistanceFromInit
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.records.journal import StoredJournal
from robflat_bench.registry.components import Component, resolve
from robflat_bench.testing.fixtures import COUNT, THREAT, world

ALL = [row.measure for row in choose_plan(REGISTRY, load(REGISTRY).fixed, "last", (), ("*",), None).measures]
SEARCHES = {"basin-width", "hessian-lambda-max", "keskar", "pac-bayes-sharpness", "pac-bayes-sigma"}
SEARCHES |= {"soft-rank", "weighted-curvature"}


def brief(text: str) -> Component:
    """With the parameters of a quick trial."""
    found = resolve(REGISTRY, "measure", text)
    quick = dict(found.info.example)
    return Component(found.offer, found.info.params(**{**found.params.model_dump(), **quick}))


def test_a_pattern_names_every_measure_under_every_coupling():
    infos = [REGISTRY.get("measure", name).info for name in REGISTRY.names("measure")]
    assert len(infos) >= 30
    named = [resolve(REGISTRY, "measure", text) for text in ALL]
    assert {(part.name, getattr(part.params, "coupling", None)) for part in named} == {
        (info.name, coupling)
        for info in infos
        for coupling in (info.couplings if "coupling" in info.params.model_fields else (None,))
    }
    with pytest.raises(UsageError, match="no measure matches 'flat\\*'"):
        choose_plan(REGISTRY, load(REGISTRY).fixed, "last", (), ("flat*",), None)


@pytest.mark.parametrize("text", ALL)
def test_a_measure_takes_the_passes_that_it_declares(one_thread, text, tmp_path):
    measure, place = brief(text), world()
    counter = PassCounter(place.model.eval())
    initial = {name: torch.zeros_like(tensor) for name, tensor in place.state.items()}
    journal = StoredJournal(tmp_path, counter=counter)
    found = measure.build(THREAT).measure(place.model, place.examples, Workspace(COUNT, 0, journal, initial))
    assert not any("spent" in name for name in {*found.details, *found.arrays})
    spent = journal.spent
    assert (spent.forward, spent.backward) == (counter.forward, counter.backward), "every pass is in a unit"
    declared = passes_of(measure)
    if measure.name in SEARCHES:
        assert declared is None
    else:
        assert declared is not None
        assert (counter.forward, counter.backward) == (declared[0] * COUNT, declared[1] * COUNT)


OTHERWISE = [
    "average-case(draws=3, logits=normalised)",
    "average-case(draws=3, logits=normalised, full_draws=2)",
    "average-case(draws=3, logits=normalised, warm=true)",
    "average-case(draws=3, reference=paper, reference_restarts=2)",
    "worst-case(logits=normalised)",
    "worst-case(warm=true)",
    "worst-case(reference=paper, reference_restarts=2)",
    "worst-case(coupling=frozen, logits=normalised)",
]


@pytest.mark.parametrize("text", OTHERWISE)
def test_other_parameters_take_the_passes_that_they_declare(one_thread, text):
    name, place = text.partition("(")[0], world()
    measure = resolve(
        REGISTRY, "measure", text[:-1] + {"worst-case": ", restarts=2, strong_steps=3"}.get(name, "") + ", steps=5)"
    )
    counter = PassCounter(place.model.eval())
    measure.build(THREAT).measure(place.model, place.examples, Workspace(COUNT))
    assert passes_of(measure) == (counter.forward / COUNT, counter.backward / COUNT)


@pytest.mark.parametrize("text", ALL)
def test_an_interrupted_measure_ends_with_the_numbers_and_passes_of_one_that_was_not(one_thread, text, tmp_path):
    """The numbers too, where the network draws random numbers."""
    measure, place = brief(text).build(THREAT), world()
    with torch.no_grad():
        place.examples.y[1:] = place.model.eval()(place.examples.x[1:]).argmax(1)  # so that searches have to search
    place.model.register_forward_hook(lambda module, images, logits: logits + 0.01 * torch.randn_like(logits))
    counter = PassCounter(place.model)

    def resumed(folder: Path, lives: int) -> tuple[object, ...]:
        left = iter(range(lives))

        def dies() -> None:
            if next(left, None) is None:
                raise InterruptedError

        initial = {name: torch.zeros_like(tensor) for name, tensor in place.state.items()}
        journal = StoredJournal(folder, dies, counter)
        try:
            found = measure.measure(place.model, place.examples, Workspace(6, 0, KeyedJournal(journal, 0), initial))
        except NoValue as reason:  # some read the layers only, and meet the noise
            return (str(reason),)
        return found.value, found.standard_error, found.details, journal.spent.forward, journal.spent.backward

    whole = resumed(tmp_path / "whole", 1000)
    units = len([*(tmp_path / "whole").rglob("*.npz")])
    for lives in sorted({units // 2, units - 1} - {-1, 0}):
        folder = tmp_path / f"after-{lives}"
        with pytest.raises(InterruptedError):
            resumed(folder, lives)
        assert resumed(folder, 1000) == whole


@pytest.mark.parametrize("name", REGISTRY.names("measure"))
def test_a_measure_takes_the_couplings_that_it_declares_and_no_other(name):
    info = REGISTRY.get("measure", name).info
    assert isinstance(info, MeasureInfo)
    for coupling in ("clean", "frozen", "reattack", "joint"):
        text = f"{name}(coupling={coupling})"
        if coupling in info.couplings and "coupling" in info.params.model_fields:
            resolve(REGISTRY, "measure", text)
        else:
            with pytest.raises(UsageError):
                resolve(REGISTRY, "measure", text)


def test_distance_from_init_is_the_length_of_what_training_moved():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    initial = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        net[0].weight += torch.tensor([[3.0, 0.0], [0.0, 0.0]])
        net[0].bias += torch.tensor([0.0, 4.0])
        net[1].weight += 7.0  # a normalisation layer's: does not count
    measure = DistanceFromInit(resolve(REGISTRY, "measure", "distance-from-init").params, THREAT)
    found = measure.measure(net, world().examples, Workspace(initial=initial))
    assert found.value == pytest.approx(5.0, rel=1e-12)
    assert found.details["distance/0.weight"] == pytest.approx(3.0, rel=1e-12)
    begun = sum(float(initial[name].square().sum()) for name in ("0.weight", "0.bias")) ** 0.5
    assert found.details["relative"] == pytest.approx(5.0 / begun, rel=1e-12)
    with pytest.raises(NoValue, match="not known"):
        measure.measure(net, world().examples, Workspace())
