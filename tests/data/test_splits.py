"""An image has one place: it is in one split once, and no image of the evaluation is among those of training."""

import numpy as np
import pytest

from robflat_bench.config.protocol import Data, Slice
from robflat_bench.core import Dataset, Pool, Source, UsageError
from robflat_bench.data.splits import _splits, select


def pool(n: int, seed: int) -> Pool:
    x = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    return Pool(x, np.arange(n, dtype=np.uint8) % 2, np.arange(n))


class Toy(Dataset):
    """Twenty images to train on and six to test."""

    def __init__(self):
        self.train, self.test = pool(20, 0), pool(6, 1)

    def sources(self, root, download=True):
        return [lambda: Source({"train": self.train, "test": self.test}, 2, "a toy")]

    def canonical(self, source):
        return True


DATA = Data(
    dataset="toy",
    train=Slice(pool="train", start=0, stop=10, count=10),
    heldout=Slice(pool="train", start=10, stop=14, count=4),
    test=Slice(pool="test", start=0, stop=6, count=6),
)


def splits(toy: Toy, data: Data = DATA):
    return _splits(data, "toy", toy, toy.sources(None)[0]())


def test_disjoint_splits_are_loaded_and_training_images_may_be_there_twice():
    toy = Toy()
    toy.train.x[3] = toy.train.x[4]
    toy.train.x[5] = toy.train.x[19]
    assert len(splits(toy).spare.y) == 6


def test_a_dataset_with_repeats_as_published_tells_their_number(monkeypatch):
    toy = Toy()
    assert "two splits" not in splits(toy).ref.origin
    monkeypatch.setattr(Toy, "repeats", True)
    toy.test.x[2], toy.test.x[4], toy.train.x[11] = toy.train.x[3], toy.train.x[3], toy.train.x[5]
    assert splits(toy).ref.origin == "a toy; 3 images are in two splits"


@pytest.mark.parametrize(
    ("copied", "to", "problem"),
    [
        (("train", 3), ("test", 2), "image 3 of 'train' and image 2 of 'test'"),
        (("train", 3), ("train", 11), "image 3 of 'train' and image 11 of 'heldout'"),
        (("train", 12), ("test", 5), "image 12 of 'heldout' and image 5 of 'test'"),
        (("train", 17), ("test", 0), "image 0 of 'test' and image 17 of 'spare'"),
    ],
)
def test_images_of_the_evaluation_among_those_of_training_are_refused(copied, to, problem):
    toy = Toy()
    getattr(toy, to[0]).x[to[1]] = getattr(toy, copied[0]).x[copied[1]]
    with pytest.raises(UsageError, match=f"a toy: {problem} have equal pixels") as caught:
        splits(toy)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_that_is_there_twice_is_refused():
    toy = Toy()
    toy.train.index[7] = 6
    with pytest.raises(UsageError, match="a toy has 1 'train' images twice, the first at 6"):
        select(toy.sources(None)[0](), Slice(pool="train", start=0, stop=10, count=10))


def test_splits_that_share_images_of_one_pool_are_refused():
    shared = DATA.model_copy(update={"heldout": Slice(pool="train", start=8, stop=12, count=4)})
    with pytest.raises(UsageError, match="the splits 'train' and 'heldout' share images"):
        splits(Toy(), shared)
