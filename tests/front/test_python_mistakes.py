"""Mistakes in a call from Python are answered as those at the command line: what is wrong, and what to give."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import robflat_bench as rb
from robflat_bench.core import UsageError

X, Y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
MARGIN = "margin(coupling=clean)"


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


class Growing(Dataset):
    """Images of different heights."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return torch.rand(1, 8 + place, 8), 1


EVALUATE = {
    "no example": ({"examples": 0}, "--examples 0: there are 30 test examples; ask for 2 at least"),
    "a negative number": ({"examples": -3}, "ask for 2 at least"),
    "too many": ({"examples": 31}, "ask for fewer"),
    "no training example": ({"train": 0}, "--train 0: .*ask for 2 at least"),
    "training examples of one's own data": ({"data": (X, Y), "train": 5}, "there are 0 train examples; leave --train"),
    "code beside a live network": ({"network": "net.py:Net"}, "--model says how to read a file.*'Sequential' is none"),
    "a backbone beside a live network": ({"backbone": "resnet8"}, "leave --backbone out"),
    "a checkpoint of a live network": ({"checkpoint": "best"}, "--checkpoint best is of a run, and 'Sequential' is"),
}


@pytest.mark.parametrize("mistake", EVALUATE)
def test_a_value_of_evaluate_that_is_wrong_is_refused(mistake, net, tiny, tmp_path):
    given, says = EVALUATE[mistake]
    with pytest.raises(UsageError, match=says):
        rb.evaluate(net, **{"protocol": str(tiny), "store": tmp_path, "progress": False, "attacks": "fgsm"} | given)
    assert not list(tmp_path.iterdir())


def test_a_name_in_a_file_does_not_reach_the_terminal_as_it_is(tiny, tmp_path):
    """Python prints an exception's text; the name would clear the screen."""
    torch.save({"\x1b[2J\u202econv": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as told:
        rb.evaluate(tmp_path / "w.pt", protocol=str(tiny), store=tmp_path / "runs", progress=False)
    assert r"\x1b[2J\u202econv" in str(told.value)
    assert str(told.value).isprintable()


def test_a_run_is_its_folder_under_its_own_protocol(finished_copy, tiny):
    here = {"store": finished_copy.store, "progress": False}
    wanted = {"attacks": ["fgsm"], "measures": [MARGIN], **here}
    named = rb.evaluate(finished_copy.folder, protocol=str(tiny), **wanted)
    run = rb.run("at", protocol=str(tiny), **here)
    assert rb.evaluate(run, **wanted).path == named.path
    assert named.path.is_relative_to(finished_copy.folder)


@pytest.mark.parametrize("keep", [-1, -5])
def test_a_negative_number_of_epochs_to_keep_is_refused(tiny, tmp_path, keep):
    with pytest.raises(UsageError, match=f"keep_every={keep}: give a number of epochs, or 0"):
        rb.run("at", protocol=str(tiny), store=tmp_path, keep_every=keep, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("measure", [MARGIN, "worst-case(coupling=clean, steps=2)", "path-norm"])
def test_a_measure_without_adversarial_images_needs_no_epsilon(net, measure):
    found = {rb.measure(net, (X, Y), measure, epsilon=epsilon, progress=False).value for epsilon in (None, 0.3)}
    assert len(found) == 1


def test_a_measure_with_adversarial_images_needs_an_epsilon(net):
    for measure in ("margin", "boundary-thickness", "average-case"):
        with pytest.raises(UsageError, match="give epsilon="):
            rb.measure(net, (X, Y), measure, progress=False)


def test_images_of_different_shapes_are_refused_and_single_items_of_a_loader_are_examples(net):
    with pytest.raises(UsageError, match=r"the images differ in shape, such as \[1, 8, 8\] and \[1, 9, 8\]"):
        rb.measure(net, Growing(), MARGIN, progress=False)
    items = DataLoader(TensorDataset(X, Y), batch_size=None)
    one, other = (rb.measure(net, data, MARGIN, progress=False) for data in (items, (X, Y)))
    assert (one.value, one.n) == (other.value, 12)


def test_batches_and_single_examples_of_any_iterable_are_examples(net):
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    given = (X, Y), loader, iter(loader), batches, zip(X, Y, strict=True), list(zip(X, Y, strict=True))
    found = {(one.value, one.n) for one in (rb.measure(net, data, MARGIN, progress=False) for data in given)}
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32])
def test_labels_of_any_integer_type_are_labels(net, dtype):
    one, other = (rb.measure(net, (X, y), MARGIN, progress=False) for y in (Y, Y.to(dtype)))
    assert one.value == other.value


def test_errors_are_at_the_front_door(net):
    with pytest.raises(rb.UsageError, match="give images that it takes"):
        rb.attack(net, torch.rand(2, 3, 8, 8), Y[:2], "fgsm", epsilon=0.1, progress=False)
    assert issubclass(rb.UsageError, rb.RobflatError)


def test_a_store_of_ones_own_that_is_not_there_is_no_board(tmp_path):
    with pytest.raises(UsageError, match=r"there is no folder .*none here; give store=DIR"):
        rb.board(store=tmp_path / "none")
