"""The embedded digits are the ones of scikit-learn, on the 8-bit scale."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from robflat_bench.core import Params, Source
from robflat_bench.data.digits import Digits


@pytest.fixture(scope="module")
def source():
    (load,) = Digits(Params()).sources(None)
    return load()


def test_pool_holds_all_digits_in_order(source):
    pool = source.pools["train"]
    assert list(source.pools) == ["train"]
    assert source.classes == 10
    assert (pool.x.dtype, pool.x.shape) == (np.uint8, (1797, 8, 8, 1))
    assert (pool.y.dtype, pool.y.shape) == (np.uint8, (1797,))
    assert pool.index.dtype == np.int64
    assert pool.index.tolist() == list(range(1797))
    assert source.origin == "scikit-learn digits (1,797 images)"


def test_levels_keep_their_order_and_span_the_range(source):
    raw = load_digits()
    pool = source.pools["train"]
    assert np.array_equal(pool.y, raw.target)
    assert np.array_equal(np.rint(pool.x[..., 0] / 255 * 16), raw.images)
    assert len(np.unique(pool.x)) == 17
    assert (pool.x.min(), pool.x.max()) == (0, 255)
    assert pool.x[..., 0][raw.images == 8].min() == 128


def test_canonical_means_every_pixel_and_label(source):
    digits = Digits(Params())
    assert digits.canonical(source)
    pool = source.pools["train"]
    x = pool.x.copy()
    x[-1, -1, -1] ^= 1
    y = pool.y.copy()
    y[-1] = (y[-1] + 1) % 10
    for other in (dataclasses.replace(pool, x=x), dataclasses.replace(pool, y=y)):
        assert not digits.canonical(dataclasses.replace(source, pools={"train": other}))
    assert not digits.canonical(Source({}, 10, "nothing"))
