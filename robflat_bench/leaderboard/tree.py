"""The files of a leaderboard. Anyone may have sent them, so each is looked at before it is opened.

leaderboard/board.json                                                 written by `leaderboard build`
leaderboard/records/<protocol>/<label>/seed-<n>-<key>/                 one entry
leaderboard/references/<protocol>.toml   pages/<name>.md   experiments/<name>.json   site.toml
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from robflat_bench.config import protocol
from robflat_bench.core import CheckFailed, Strict, UsageError
from robflat_bench.records import record
from robflat_bench.registry.validation import validate

T = TypeVar("T", bound=Strict)
RECORDS, REFERENCES, PAGES, EXPERIMENTS = "records", "references", "pages", "experiments"
ENTRY = "entry.json"
MAX_OUTCOMES = 64 * 1024 * 1024
"""Size limit, in bytes, of a submitted file of outcomes, packed or unpacked."""

NAME, SLUG, KEY = r"[a-z0-9][a-z0-9-]{0,72}", r"[a-z0-9][a-z0-9.=+-]{0,79}", r"[0-9a-f]{16}"
RUN = rf"{RECORDS}/{NAME}/{SLUG}/seed-\d{{1,19}}-{KEY}"
FOLDERS = re.compile(rf"{RECORDS}(/{NAME}(/{SLUG})?)?|{RUN}(/evaluations)?|{REFERENCES}|{PAGES}|{EXPERIMENTS}")
FILES = {
    re.compile(pattern): limit
    for pattern, limit in {
        rf"{RUN}/(record|entry|evaluations/{KEY})\.json": record.MAX_BYTES,
        rf"{RUN}/(outcomes|evaluations/{KEY})\.npz": MAX_OUTCOMES,
        rf"{REFERENCES}/{NAME}\.toml": protocol.MAX_BYTES,
        rf"{PAGES}/{NAME}\.md": protocol.MAX_BYTES,
        rf"{EXPERIMENTS}/{NAME}\.json": record.MAX_BYTES,
        r"board\.json": MAX_OUTCOMES,
        r"site\.toml": protocol.MAX_BYTES,
    }.items()
}
"""Path below the root -> most bytes of the file."""


class Problem(NamedTuple):
    """A reason not to trust a leaderboard. place: the entry's folder, or another file or folder. line: for people."""

    place: Path
    line: str


class Found(NamedTuple):
    """A file, or anything that does not belong. place: path below the root. problem: "" for a file that belongs."""

    place: str
    problem: str

    @property
    def entry(self) -> str:
        """The entry's folder that it lies in; "" for none."""
        match = re.match(rf"{RUN}(?=/)", self.place)
        return match[0] if match else ""


def walk(root: Path, folder: str = "") -> Iterator[Found]:
    """Everything below a folder of a leaderboard, by path. No link is followed and no file is opened."""
    try:
        names = {name: (root / folder / name).lstat() for name in sorted(os.listdir(root / folder))}
    except OSError as error:
        yield Found(folder, f"{root / folder} cannot be read: {error.strerror}")
        return
    for name, found in names.items():
        place = f"{folder}/{name}" if folder else name
        limit = next((limit for pattern, limit in FILES.items() if pattern.fullmatch(place)), None)
        if stat.S_ISDIR(found.st_mode) and FOLDERS.fullmatch(place):
            yield from walk(root, place)
        elif limit is None or not stat.S_ISREG(found.st_mode):
            yield Found(place, f"{str(root / place)!r} does not belong to a leaderboard; remove it")
        else:
            yield Found(place, f"{root / place} is larger than {limit} bytes" if found.st_size > limit else "")


def read_toml(path: Path, what: str, model: type[T]) -> T:
    """A TOML file of a leaderboard; the model's defaults where there is none. Raises CheckFailed if it is not valid."""
    if not path.is_file():
        return model()
    try:
        return validate(model, protocol.parse_toml(protocol.read_text(path, what), str(path)), str(path))
    except UsageError as error:
        raise CheckFailed(str(error)) from None


def entry_place(root: Path, path: Path) -> str:
    """The folder below `root` of the entry that a person names: by its folder or its record.json, from anywhere.

    Raises UsageError where `root` has no such entry.
    """
    named = Path(os.path.abspath(path))
    if named.name in ("record.json", ENTRY):
        named = named.parent
    place, home = named.parent.resolve() / named.name, root.resolve()
    if home in place.parents and os.path.lexists(place):
        found = place.relative_to(home).as_posix()
        if re.fullmatch(RUN, found) and any(walk(root, found)):  # a folder without files is no entry
            return found
    raise UsageError(
        f"{path} is no entry of {root}; an entry is a folder {root / RECORDS}/PROTOCOL/LABEL/seed-N-KEY. "
        "Name another leaderboard with --leaderboard DIR"
    )
