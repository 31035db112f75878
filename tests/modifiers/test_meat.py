"""MEAT against medians that are counted one number at a time, and swa's key, which stays as it was."""

from __future__ import annotations

import pytest
import torch
from helpers.naive import network, training
from torch import Tensor

from robflat_bench.core import Moment
from robflat_bench.core.randomness import generator
from robflat_bench.modifiers.meat import median
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")


def naive_median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_medians_equal_those_of_sorted_lists(count):
    values = torch.randn(count, 3, 2, generator=generator("median", count), dtype=torch.float64)
    found = median(values)
    for i in range(3):
        for j in range(2):
            assert found[i, j].item() == naive_median(values[:, i, j].tolist())


def epochs_of(registry, text: str, count: int, interrupt: int | None = None) -> tuple[list[dict], list[dict]]:
    """Weights at the end of each epoch, moved at random, and the weights evaluated there."""
    model = network()

    def built() -> Composition:
        made = Composition(compose(registry, text))
        made.setup(training(model))
        return made

    composition, states, evaluated = built(), [], []
    for epoch in range(count):
        if epoch == interrupt:
            saved = composition.state_dict()
            composition = built()
            composition.load_state_dict(saved)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator(name, epoch), dtype=torch.float64)
                parameter.add_(0.1 * noise)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        evaluated.append(composition.evaluated(model, Moment(7, epoch, 2, (epoch + 1) / count)))
        assert all(torch.equal(tensor, states[-1][name]) for name, tensor in model.state_dict().items())
    return states, evaluated


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_meat_evaluates_the_median_of_late_epochs_and_leaves_the_network_alone(registry):
    states, evaluated = epochs_of(registry, "at+meat(start=0.4, calibrate=false)", 5)
    names = [name for name, _ in network().named_parameters()]
    assert same(evaluated[0], states[0])
    for last in (1, 2, 3, 4):
        late = [states[epoch] for epoch in range(1, last + 1)]
        for name, tensor in evaluated[last].items():
            if name not in names:
                assert torch.equal(tensor, states[last][name])
                continue
            columns = zip(*(state[name].flatten().tolist() for state in late), strict=True)
            assert tensor.flatten().tolist() == [naive_median([*column]) for column in columns]


def test_meat_calibrates_statistics_as_swa_does(registry):
    """Over one epoch, the median and the mean are the weights themselves."""
    found = [epochs_of(registry, f"at+{name}(start=1)", 2)[1][1] for name in ("meat", "swa")]
    plain, _ = epochs_of(registry, "at", 2)
    assert same(*found)
    assert not same(found[0], plain[1])


def test_interrupted_meat_evaluates_the_same_weights(registry):
    text = "at+meat(start=0.4)"
    _, whole = epochs_of(registry, text, 5)
    for epoch in (1, 2, 4):
        _, resumed = epochs_of(registry, text, 5, interrupt=epoch)
        assert all(same(one, two) for one, two in zip(whole, resumed, strict=True))


def test_swa_keeps_its_canonical_text_and_so_its_run_keys(registry):
    assert compose(registry, "at+swa").canonical == "at+swa(calibrate=true, start=0.5)"
