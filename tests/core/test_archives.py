"""Archives of arrays come from strangers: their sizes are counted, not believed."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from robflat_bench.core.archives import MAX_MEMBERS, arrays_bytes, unpack_arrays

MEGABYTE = 1024 * 1024


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(*members, method=zipfile.ZIP_DEFLATED):
    """An archive of (file name, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return buffer.getvalue()


def peak(call):
    """The most bytes that Python held while `call` was refused, and the reason."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r".") as refused:
            call()
        return tracemalloc.get_traced_memory()[1], str(refused.value)
    finally:
        tracemalloc.stop()


def test_the_limit_holds_for_all_members_together():
    raw = arrays_bytes({"x": np.zeros(200_000), "y": np.zeros(200_000)})
    assert len(raw) < 10_000
    assert {*unpack_arrays(raw, 4_000_000)} == {"x", "y"}
    with pytest.raises(ValueError, match="unpacks to more than 3000000 bytes"):
        unpack_arrays(raw, 3_000_000)


def test_a_bomb_is_unpacked_no_further_than_the_limit():
    raw = archive(("x.npy", bytes(100 * MEGABYTE)))
    used, reason = peak(lambda: unpack_arrays(raw, MEGABYTE))
    assert "unpacks to more than" in reason
    assert used < 4 * MEGABYTE


def test_a_size_in_the_directory_is_not_believed():
    """The directory and the member both say 128 bytes; the stream has 100 MB."""
    raw = bytearray(archive(("x.npy", bytes(100 * MEGABYTE))))
    truth = struct.pack("<I", 100 * MEGABYTE)
    assert raw.count(truth) == 2
    used, reason = peak(lambda: unpack_arrays(bytes(raw.replace(truth, struct.pack("<I", 128))), MEGABYTE))
    assert "damaged" in reason
    assert used < 4 * MEGABYTE


def test_a_shape_in_the_header_is_not_allocated_before_the_data_are_counted():
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (12500000,), }"
    raw = archive(("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header))
    used, reason = peak(lambda: unpack_arrays(raw))
    assert "damaged" in reason
    assert used < 4 * MEGABYTE


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_compressions_that_python_unpacks_without_a_limit_are_refused(method):
    raw = archive(("x.npy", npy(np.zeros(3))), method=method)
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        unpack_arrays(raw)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_and_deflated_arrays_of_either_order_are_read(method, order):
    array = np.array(np.arange(6.0).reshape(2, 3), order=order)
    found = unpack_arrays(archive(("a/b.npy", npy(array)), method=method))["a/b"]
    assert np.array_equal(found, array)
    found += 1  # arrays are the caller's own


def test_at_most_a_thousand_members_are_read():
    def of(count):
        return archive(*((f"{k}.npy", npy(np.zeros(1, bool))) for k in range(count)), method=zipfile.ZIP_STORED)

    assert len(unpack_arrays(of(MAX_MEMBERS))) == 1000
    with pytest.raises(ValueError, match="more than 1000 members"):
        unpack_arrays(of(MAX_MEMBERS + 1))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "members",
    [
        [("x.npy", npy(np.zeros(1))), ("x.npy", npy(np.ones(1)))],
        [("folder/", b"")],
        [("x.txt", npy(np.zeros(1)))],
        [("x.npy", npy(np.zeros(1)) + b"more")],
        [("x.npy", npy(np.zeros(1))[:-1])],
        [("x.npy", b"\x93NUMPY\x03\x00" + npy(np.zeros(1))[8:])],
    ],
    ids=["twice", "folder", "another file", "data after the array", "too few data", "another version"],
)
def test_members_that_are_no_plain_array_are_refused(members):
    with pytest.raises(ValueError, match=r"."):
        unpack_arrays(archive(*members))


def test_encrypted_members_are_refused():
    raw = bytearray(archive(("x.npy", npy(np.zeros(1)))))
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 8] |= 1
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        unpack_arrays(bytes(raw))
