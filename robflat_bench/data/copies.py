"""Copies of a dataset: in the folder that a person names and below it, or from the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robflat_bench.core import Source, UsageError
from robflat_bench.data.layouts import Layout, one_line

DEPTH = 2
"""Folders below the root that are searched."""


@dataclass(frozen=True)
class Copy:
    """A copy on disk. `place` is its name in records, without the absolute path; `images` counts training images."""

    layout: Layout
    folder: Path
    place: str
    images: int


@dataclass(frozen=True)
class Search:
    """Where copies of a dataset are looked for.

    Parameters
    ----------
    title
        The dataset's name in error messages.
    classes
        Number of its classes.
    splits
        The pools of a loaded copy.
    layouts
        In which it may lie in a folder; of equally full copies, that of the first layout comes first.
    hub, hub_files
        Repository of the Hugging Face hub and its files, in the last layout; "" where there is none.
    """

    title: str
    classes: int
    splits: tuple[str, ...]
    layouts: tuple[Layout, ...]
    hub: str = ""
    hub_files: tuple[str, ...] = ()

    def sources(self, root: str | None, download: bool) -> list[Callable[[], Source]]:
        """Every copy at `root` (else $ROBFLAT_BENCH_DATA) or up to `DEPTH` folders below, the fullest first; else the
        hub's. UsageError if there is none."""
        root = root or os.environ.get("ROBFLAT_BENCH_DATA")
        copies = self.found(Path(os.path.expanduser(root))) if root else []
        copies = copies or [self.fetched(root, download)]
        return [partial(self.load, copy) for copy in sorted(copies, key=lambda copy: -copy.images)]

    def load(self, copy: Copy) -> Source:
        """Read and check every image; UsageError names the file and its problem."""
        pools = {split: copy.layout.read(copy.folder, split) for split in self.splits}
        sizes = " + ".join(f"{len(pool.y):,}" for pool in pools.values())
        return Source(pools, self.classes, origin=f"{copy.layout.name} {copy.place} ({sizes} images)")

    def found(self, root: Path) -> list[Copy]:
        """The copies at and below `root`, in order of layout, then folder. Hidden and unreadable folders are
        skipped."""
        if not root.is_dir():
            raise self._nothing(f"{root} is not a folder")
        below = (folder for depth in range(1, DEPTH + 1) for folder in root.glob("[!.]*/" * depth))
        folders = [folder for folder in sorted((root, *below)) if os.access(folder, os.R_OK | os.X_OK)]
        name = Path(root.resolve().name)
        return [
            Copy(layout, folder, (name / folder.relative_to(root)).as_posix(), count)
            for layout in self.layouts
            for folder in folders
            if (count := layout.count(folder)) is not None
        ]

    def fetched(self, root: str | None, download: bool) -> Copy:
        """The copy of the Hugging Face hub: from its cache, else over the network."""
        problem = f"no data below {root}" if root else "no data folder was named"
        if not self.hub:
            raise self._nothing(problem)
        try:
            paths = _hub_files(self.hub, self.hub_files, download)
        except Exception as error:  # the hub's client raises whatever its network layer raises
            if download:
                problem += f", and {self.hub} cannot be downloaded ({one_line(error)})"
            raise self._nothing(problem) from error
        return Copy(self.layouts[-1], Path(paths[-1]).parent, f"{self.hub} from the Hugging Face hub", 1)

    def _nothing(self, problem: str) -> UsageError:
        files = " or ".join(layout.files for layout in self.layouts)
        return UsageError(
            f"{self.title} not found: {problem}; name a folder that holds {files}, at most {DEPTH} folders deep, with "
            f"--data DIR or ROBFLAT_BENCH_DATA=DIR{', or run once with a network' * bool(self.hub)}"
        )


def _hub_files(repository: str, names: tuple[str, ...], download: bool) -> list[str]:
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(hf_hub_download, repository, repo_type="dataset")
    try:
        return [fetch(name, local_files_only=True) for name in names]
    except LocalEntryNotFoundError:
        if not download:
            raise
    # One short question first: without a network the client itself would retry for 25 seconds.
    get_session().head(constants.ENDPOINT, timeout=5)
    return [fetch(name) for name in names]
