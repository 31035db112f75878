"""Street View House Numbers, cropped digits, 32x32: 73,257 + 26,032 images and 531,131 extra ones.

From the parquet files of the Hugging Face hub, in which the digit 0 has the label 0. No canonical hash of the hub's
pixels is known here, so the data are labelled non-canonical.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import DatasetInfo, Params, lazy_imports
from robflat_bench.data.parquet_dataset import HubDataset

with lazy_imports():
    from robflat_bench.data.layouts import Form
    from robflat_bench.data.parquet import Table

SIZES = {"train": 73_257, "test": 26_032, "extra": 531_131}
"""Pool -> number of images."""


class SvhnParams(Params):
    extra: bool = Field(
        default=False,
        description="Also read the pool extra (1.6 GB of pixels), from extra-*.parquet beside the others; the hub's "
        "are not downloaded.",
    )


INFO = DatasetInfo(
    name="svhn",
    summary="99,289 house number digits, 32x32, 10 classes, and extra ones; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:Svhn",
    params=SvhnParams,
    citation="Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning",
)


class Svhn(HubDataset):
    """Pools "train", "test" and, on request, "extra"."""

    params: SvhnParams
    repeats = True
    hub = "ufldl-stanford/svhn"
    hub_files = ("cropped_digits/test-00000-of-00001.parquet", "cropped_digits/train-00000-of-00001.parquet")

    def table(self) -> Table:
        pools = [pool for pool in SIZES if pool != "extra" or self.params.extra]
        return Table(Form("SVHN", 32, 3, 10, SIZES), {pool: f"{pool}-*.parquet" for pool in pools})
