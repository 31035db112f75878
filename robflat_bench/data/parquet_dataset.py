"""Any dataset of parquet files with encoded images, and the base of the datasets that the Hugging Face hub has as such.

Files lie below --data. Images are read as they are: none is resized, and a grey image counts as a colour image of three
equal channels. Without stated hashes nothing says that pixels are the canonical ones, so the data are labelled
non-canonical.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from robflat_bench.core import Dataset, DatasetInfo, Params, Source, UsageError, lazy_imports

with lazy_imports():
    from robflat_bench.data.copies import Search
    from robflat_bench.data.layouts import Form, content_digest
    from robflat_bench.data.parquet import Table

MAX_DECODED = 2**33
"""Bytes that the images of one split may have in memory."""


def below(pattern: str) -> str:
    """A pattern of files below a folder; ValueError where it leads out of the folder or through all of it."""
    if pattern.startswith(("/", "~")) or "\\" in pattern or "\0" in pattern:
        raise ValueError("it must be relative to a folder below --data DIR, e.g. 'data/train-*.parquet'")
    if {"..", "**"} & {*pattern.split("/")}:
        raise ValueError("it may not have the parts '..' and '**'; name the files below --data DIR")
    return pattern


Below = Annotated[str, Field(max_length=200), AfterValidator(below)]
"""Path or pattern of files below the folder of the data."""
Hash = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""SHA-256 in hex, or "" where it is not known."""


class ParquetParams(Params):
    classes: int = Field(default=10, ge=2, le=256, description="Number of classes; labels are 0, 1, ..., classes - 1.")
    train: Below = Field(default="train-*.parquet", description="Files of the pool train, below --data.")
    test: Below = Field(default="test-*.parquet", description="Files of the pool test, below --data.")
    image: str = Field(default="image", description="Column of the images, struct{bytes, path}, PNG or JPEG.")
    label: str = Field(default="label", description="Column of the labels, integers.")
    index: str = Field(default="", description='Column of the positions; "": positions are counted.')
    size: int = Field(default=32, ge=1, le=1024, description="Height and width of every image, in pixels.")
    channels: Literal[1, 3] = Field(default=3, description="1: grey images. 3: colour; grey ones are repeated.")
    train_sha256: Hash = Field(
        default="",
        description="SHA-256 of the pixels (uint8 NHWC) and then the labels (uint8) of train, in order of position; "
        "data with another are refused.",
    )
    test_sha256: Hash = Field(
        default="", description="The same of test. Data whose hashes are both stated count as canonical."
    )


INFO = DatasetInfo(
    name="parquet",
    summary="your parquet files with encoded images, as the Hugging Face hub stores them; from --data DIR",
    factory=f"{__name__}:ParquetDataset",
    params=ParquetParams,
)


class HubDataset(Dataset):
    """A dataset of parquet files below --data, else of the Hugging Face hub, of unknown canonical pixels."""

    hub: ClassVar[str] = ""
    hub_files: ClassVar[tuple[str, ...]] = ()

    def table(self) -> Table:
        """The dataset's files, columns and form."""
        raise NotImplementedError

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Every copy at `root` (else $ROBFLAT_BENCH_DATA) or up to two folders below, else the hub's.

        Raises
        ------
        UsageError
            If there is no copy at all.
        """
        table = self.table()
        splits = tuple(table.files)
        form = table.form
        search = Search(form.title, form.classes, splits, (table.layout,), self.hub, self.hub_files)
        return search.sources(root, download)

    def canonical(self, source: Source) -> bool:
        """False: no hash of its canonical pixels is known here."""
        return False


class ParquetDataset(HubDataset):
    """Pools "train" and "test"; files of a pool are read in order of name."""

    params: ParquetParams

    def table(self) -> Table:
        p = self.params
        most = MAX_DECODED // (p.size**2 * p.channels)
        form = Form("parquet", p.size, p.channels, p.classes, {"train": most, "test": most})
        return Table(form, {"train": p.train, "test": p.test}, p.image, p.label, p.index, grey=True)

    @property
    def stated(self) -> dict[str, str]:
        """Pool -> its stated hash, "" where there is none."""
        return {"train": self.params.train_sha256, "test": self.params.test_sha256}

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Every copy at `root` or up to two folders below; loading one refuses it where a stated hash differs."""
        return [partial(self._verified, load) for load in super().sources(root, download)]

    def _verified(self, load: Callable[[], Source]) -> Source:
        source = load()
        for name, wanted in self.stated.items():
            if wanted and (found := content_digest(source.pools[name])) != wanted:
                raise UsageError(
                    f"{source.origin}: pixels and labels of '{name}' have the SHA-256 {found}, not {wanted}; name the "
                    f"right folder with --data DIR, or leave {name}_sha256 out for data that are not canonical"
                )
        return source

    def canonical(self, source: Source) -> bool:
        """Whether both hashes are stated, and pixels and labels have them."""
        return all(wanted == content_digest(source.pools[name]) for name, wanted in self.stated.items())
