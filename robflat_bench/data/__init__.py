"""Datasets: what exists. Each class lives in its own file and is imported only when it is used."""

from __future__ import annotations

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import DatasetInfo

CATALOGUE = [
    DatasetInfo(
        name="digits",
        summary="1,797 handwritten digits, 8x8, 17 grey levels; shipped with scikit-learn, needs no download",
        factory="robflat_bench.data.digits:Digits",
        citation="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; via scikit-learn",
    ),
    DatasetInfo(
        name="cifar10",
        summary="60,000 colour photographs, 32x32, 10 classes; from --data DIR or the Hugging Face hub",
        factory="robflat_bench.data.cifar10:Cifar10",
        citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    ),
]


@hookimpl
def robflat_bench_datasets() -> list[DatasetInfo]:
    """The built-in datasets."""
    return CATALOGUE
