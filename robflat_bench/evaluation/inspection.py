"""Files of weights seen from outside: what their first bytes and lists of members say. No torch, nothing unpickled."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Literal

from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.registry.validation import did_you_mean

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Names of files of weights end in one of these."""
MAX_BYTES = 8 * 2**30
"""Size limit of a file of weights."""
SAVE = 'save the weights alone where the network was trained: torch.save(model.state_dict(), "weights.pt")'

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_OTHERS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; type `git lfs pull` in its folder"),
    (b"<", "is a web page, not a file of weights; download the file itself"),
    (b"\x1f\x8b", "is compressed; unpack it with `gunzip`, and name what comes out"),
)
"""First bytes of files that are often mistaken for weights, and what to say of them."""


def name_of(path: Path) -> str:
    """The file's name without these endings: ckpt.pth.tar -> ckpt."""
    name = path.name
    while Path(name).suffix.lower() in SUFFIXES:
        name = Path(name).stem
    return name


def inspect(path: Path) -> Literal["safetensors", "torch"]:
    """The library that reads a file of weights.

    Raises
    ------
    UsageError
        There is no such file, or it is another kind of file: TorchScript, a web page, a folder.
    CheckFailed
        It is empty, damaged or larger than it may be.
    """
    size = _size(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:  # its length may begin as a pickle does
        return "safetensors"
    if head.startswith(_ZIP):
        _check_members(path, size)
        return "torch"
    if head.startswith(_PICKLE):
        return "torch"
    if path.suffix.lower() == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    if head[257:262] == b"ustar":
        raise UsageError(f"{path} is a tar archive; unpack it with `tar xf`, and name the file of weights inside")
    for start, says in _OTHERS:
        if head.lstrip().startswith(start):
            raise UsageError(f"{path} {says}")
    raise CheckFailed(f"{path} was written neither by torch.save nor by safetensors, or it is damaged; {SAVE}")


def _size(path: Path) -> int:
    """The file's size; an error unless it is a regular file of at most MAX_BYTES."""
    if not path.exists():
        near = did_you_mean(path.name, _neighbours(path.parent)) or "; `robflat-bench results ls` lists your runs"
        raise UsageError(f"{path}: no such file{near}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is no regular file; name a file of weights ({', '.join(SUFFIXES)})")
    if not found.st_size:
        raise CheckFailed(f"{path} is empty; {SAVE}")
    if found.st_size > MAX_BYTES:
        raise CheckFailed(f"{path} is larger than {MAX_BYTES:,} bytes; {SAVE}")
    return found.st_size


def _neighbours(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES] if folder.is_dir() else []


def _check_members(path: Path, size: int) -> None:
    """An error unless the members of a zip archive are those of torch.save, which compresses none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckFailed(f"{path} is damaged ({error}); copy it again, or {SAVE}") from None
    names = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        raise UsageError(f"{path} is TorchScript, whose passes cannot be counted, nor its layers told apart; {SAVE}")
    if "data.pkl" not in names:
        raise UsageError(f"{path} is a zip archive that torch.save did not write; {SAVE}")
    if (
        any(member.compress_type != zipfile.ZIP_STORED for member in members)
        or sum(m.file_size for m in members) > size
    ):
        raise CheckFailed(f"{path} would unpack to more than its own size, which torch.save never writes; {SAVE}")
