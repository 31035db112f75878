"""Tiny ImageNet: 100,000 + 10,000 photographs, 64x64, 200 classes, from parquet files of the Hugging Face hub.

The pool "test" is the published validation set, since the labels of the test set are not public. Some images are grey
and count as colour images of three equal channels. The files hold JPEGs, whose pixels may differ by a level between
decoders, and no canonical hash is known: the data are labelled non-canonical.
"""

from __future__ import annotations

from robflat_bench.core import DatasetInfo, lazy_imports
from robflat_bench.data.parquet_dataset import HubDataset

with lazy_imports():
    from robflat_bench.data.layouts import Form
    from robflat_bench.data.parquet import Table


INFO = DatasetInfo(
    name="tiny-imagenet",
    summary="110,000 colour photographs, 64x64, 200 classes; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:TinyImageNet",
    citation="Le, Yang 2015, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N",
)


class TinyImageNet(HubDataset):
    """Pools "train" and "test" (the files valid-*.parquet); 1.4 GB of pixels in memory."""

    repeats = True
    hub = "zh-plus/tiny-imagenet"
    hub_files = (
        "data/valid-00000-of-00001-70d52db3c749a935.parquet",
        "data/train-00000-of-00001-1359597a978bc4fa.parquet",
    )

    def table(self) -> Table:
        form = Form("Tiny ImageNet", 64, 3, 200, {"train": 100_000, "test": 10_000})
        return Table(form, {"train": "train-*.parquet", "test": "valid-*.parquet"}, grey=True)
