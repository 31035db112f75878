"""CIFAR-100: 50,000 + 10,000 photographs, 32x32, with the 100 fine labels, from parquet files of the Hugging Face hub.

No canonical hash of the hub's pixels is known here, so the data are labelled non-canonical.
"""

from __future__ import annotations

from robflat_bench.core import DatasetInfo, lazy_imports
from robflat_bench.data.parquet_dataset import HubDataset

with lazy_imports():
    from robflat_bench.data.layouts import Form
    from robflat_bench.data.parquet import Table


INFO = DatasetInfo(
    name="cifar100",
    summary="60,000 colour photographs, 32x32, 100 classes; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:Cifar100",
    citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
)


class Cifar100(HubDataset):
    """Pools "train" and "test". Some test images equal training images (Barz, Denzler 2020, arXiv 1902.00423)."""

    repeats = True
    hub = "uoft-cs/cifar100"
    hub_files = ("cifar100/test-00000-of-00001.parquet", "cifar100/train-00000-of-00001.parquet")

    def table(self) -> Table:
        form = Form("CIFAR-100", 32, 3, 100, {"train": 50_000, "test": 10_000})
        return Table(form, {"train": "train-*.parquet", "test": "test-*.parquet"}, "img", "fine_label")
