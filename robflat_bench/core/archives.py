"""Arrays as .npz and .npy files. Anyone may have sent a file, so its own statements of sizes are never trusted."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping

import numpy as np

from robflat_bench.core.signals import uninterrupted

MAX_MEMBERS = 1000
"""Most arrays in one file."""
MAX_UNPACKED = 512 * 1024 * 1024
"""Most bytes that one file may unpack to."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that unpack piece by piece: Python unpacks bzip2 and LZMA without a limit."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version of an .npy member -> reader of its header."""
CENTRAL_ENTRY = b"PK\x01\x02"
ENCRYPTED = 1
"""The bit of a member's flags that says that it is encrypted."""


def arrays_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed .npz whose bytes depend on its content only: no time stamps, entries sorted by name."""
    with uninterrupted():  # zipfile answers an interruption within an entry by a ValueError, and loses one as it goes
        return _packed(arrays)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            entry = io.BytesIO()
            # ascontiguousarray would make a scalar array one-dimensional
            np.lib.format.write_array(entry, np.asarray(arrays[name], order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, entry.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def unpack_arrays(raw: bytes, limit: int = MAX_UNPACKED) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises
    ------
    ValueError : it is damaged, holds anything but plain arrays with distinct names, has more than `MAX_MEMBERS`
        members, or unpacks to more than `limit` bytes.
    """
    if raw.count(CENTRAL_ENTRY) > MAX_MEMBERS:  # before the directory is read: a directory may be huge
        raise ValueError(f"it has more than {MAX_MEMBERS} members")
    try:
        return _unpacked(raw, limit)
    except ValueError:
        raise
    except Exception as error:  # damage raises nearly anything: BadZipFile, MemoryError, OverflowError, TokenError ...
        raise ValueError(f"it is damaged: {error}") from error


def _unpacked(raw: bytes, limit: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    left = limit
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                raise ValueError(f"{member.filename!r:.100} is no array, or is there twice")
            if member.compress_type not in METHODS or member.flag_bits & ENCRYPTED:
                raise ValueError(f"{name!r:.100} is neither stored nor deflated")
            with archive.open(member) as file:
                data = file.read(left + 1)
            left -= len(data)
            if left < 0:
                raise ValueError(f"it unpacks to more than {limit} bytes")
            arrays[name] = _array(data)
    return arrays


def unpack_array(raw: bytes) -> np.ndarray:
    """The array of an .npy file; ValueError if it is damaged, or no plain array."""
    try:
        return _array(raw)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"it is damaged: {error}") from error


def _array(data: bytes) -> np.ndarray:
    """The array of a whole .npy file; no size of its header is allocated before the data are known to have it."""
    stream = io.BytesIO(data)
    shape, fortran, dtype = HEADERS[np.lib.format.read_magic(stream)](stream)
    body = bytearray(data[stream.tell() :])
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"it is damaged: {dtype}{list(shape)} has not {len(body)} bytes")
    return np.ndarray(shape, dtype, body, order="F" if fortran else "C")
