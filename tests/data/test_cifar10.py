"""CIFAR-10: real files where they are at hand, hand-made and hostile ones everywhere."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robflat_bench.core import Params, Pool, Source, UsageError
from robflat_bench.data import batches, parquet
from robflat_bench.data.cache import cached
from robflat_bench.data.cifar10 import Cifar10

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not (SHARED / "cifar10-subset").is_dir(), reason="no ../shared/data beside the repository"
)
TRAIN_SHA256 = "8ed800dfd8f17bb9d8922112293045c000f29a0128707d972c74f3ca5ce949d2"
TEST_SHA256 = "da362006b99671213d1a5d856cab2bedf64d40bad4501630ee60f4ceb2d3ec7f"
IMG = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def sources(root):
    return Cifar10(Params()).sources(None if root is None else str(root))


def load(root):
    return sources(root)[0]()


def refusal(root):
    """The one line with which the only copy at `root` is refused."""
    (found,) = sources(root)
    with pytest.raises(UsageError) as caught:
        found()
    message = str(caught.value)
    assert "\n" not in message
    assert "--data DIR" in message
    return message


def images(n, seed=0, shape=(32, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path, contents, labels, index=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "img": pa.array([{"bytes": content, "path": None} for content in contents], IMG),
        "label": pa.array(labels, pa.int64()),
    }
    if index is not None:
        columns["index"] = pa.array(index, pa.int64())
    pq.write_table(pa.table(columns | more), path)


def write_copy(folder, train=5, test=3):
    """A small, sound parquet copy."""
    for split, n in {"train": train, "test": test}.items():
        write_parquet(folder / f"{split}-0.parquet", map(encode, images(n)), np.arange(n) % 10)
    return folder


def write_batches(folder, monkeypatch, contents=None, rows=4):
    """Six small batch files as the originals are pickled, their MD5 made the published ones.

    `contents` replaces files by name. Returns x and y of all training images."""
    folder.mkdir(parents=True)
    table, x, y = {}, [], []
    for number, (split, files) in enumerate(batches.MD5.items()):
        table[split] = {}
        for k, name in enumerate(files):
            data, labels = (
                images(rows, seed=10 * number + k, shape=(3072,)),
                [(k + i) % 10 for i in range(rows)],
            )
            content = pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"of 5"}, protocol=2)
            content = (contents or {}).get(name, content)
            (folder / name).write_bytes(content)
            table[split][name] = hashlib.md5(content).hexdigest()
            if split == "train":
                x.append(data)
                y += labels
    monkeypatch.setattr(batches, "MD5", table)
    return np.concatenate(x), y


# ---------------------------------------------------------------------------------------------------------
# The real files
# ---------------------------------------------------------------------------------------------------------


@needs_shared
def test_subset_is_canonical():
    source = load(SHARED / "cifar10-subset")
    train, test = source.pools["train"], source.pools["test"]
    assert hashlib.sha256(train.x.tobytes()).hexdigest() == TRAIN_SHA256
    assert hashlib.sha256(test.x.tobytes()).hexdigest() == TEST_SHA256
    assert train.index.tolist() == [10_000 * k + i for k in range(5) for i in range(1000)]
    assert test.index.tolist() == list(range(1000))
    assert (train.x.dtype, train.y.dtype, train.index.dtype) == (np.uint8, np.uint8, np.int64)
    assert np.bincount(test.y, minlength=10).sum() == 1000
    assert source.classes == 10
    assert source.origin == "parquet cifar10-subset (5,000 + 1,000 images)"

    dataset = Cifar10(Params())
    assert dataset.canonical(source)
    shuffled = np.random.default_rng(0).permutation(5000)
    reordered = Pool(train.x[shuffled], train.y[shuffled], train.index[shuffled])
    assert dataset.canonical(Source({"train": reordered, "test": test}, 10, ""))
    one_short = Pool(train.x[1:], train.y[1:], train.index[1:])
    assert not dataset.canonical(Source({"train": one_short, "test": test}, 10, ""))
    assert not dataset.canonical(Source({"train": train}, 10, ""))
    relabelled = Pool(test.x, (test.y + 1) % 10, test.index)
    assert not dataset.canonical(Source({"train": train, "test": relabelled}, 10, ""))
    test.x[-1, -1, -1, -1] ^= 1
    assert not dataset.canonical(source)


@needs_shared
def test_jpeg_copy_comes_first_and_is_not_canonical():
    full, subset = sources(SHARED)
    source = full()
    assert source.origin == "parquet data/cifar10 (50,000 + 10,000 images)"
    assert [len(source.pools[split].x) for split in ("train", "test")] == [50_000, 10_000]
    assert np.bincount(source.pools["train"].y).tolist() == [5_000] * 10
    assert source.pools["train"].index[-1] == 49_999
    assert not Cifar10(Params()).canonical(source)
    # Its order is the original one: labels agree with the subset's by position.
    train = subset().pools["train"]
    assert np.array_equal(source.pools["train"].y[train.index], train.y)


# ---------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------


def test_copies_are_found_two_folders_deep_fullest_first(tmp_path):
    write_copy(tmp_path / "small", train=2)
    write_copy(tmp_path / "a" / "large", train=7)
    write_copy(tmp_path / "a" / "b" / "too-deep", train=9)
    write_copy(tmp_path / ".hidden", train=9)
    origins = [found().origin for found in sources(tmp_path)]
    name = tmp_path.name
    assert origins == [f"parquet {name}/a/large (7 + 3 images)", f"parquet {name}/small (2 + 3 images)"]


def test_listing_decodes_nothing(tmp_path, monkeypatch):
    write_copy(tmp_path)
    monkeypatch.setattr(parquet, "decode_image", None)
    assert len(sources(tmp_path)) == 1


def test_a_copy_is_read_without_pandas(tmp_path, child_environment):
    write_copy(tmp_path)
    program = (
        "import sys; from pathlib import Path; from robflat_bench.data.parquet import PARQUET\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "assert PARQUET.count(folder) == 5 == len(PARQUET.read(folder, 'train').y)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], env=child_environment()).returncode == 0


def test_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBFLAT_BENCH_DATA", str(write_copy(tmp_path)))
    assert len(load(None).pools["train"].x) == 5


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None], ids=["empty", "missing"])
def test_error_without_data_names_layouts_and_options(tmp_path, make):
    root = tmp_path / "data"
    make(root)
    with pytest.raises(UsageError) as caught:
        sources(root)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(root),
        "cifar-10-batches-py",
        "train-*.parquet",
        "--data DIR",
        "ROBFLAT_BENCH_DATA",
        "network",
    ):
        assert part in message


def test_broken_copy_does_not_hide_a_sound_one(tmp_path):
    write_copy(tmp_path / "broken", train=9)
    (tmp_path / "broken" / "train-0.parquet").write_bytes(b"PAR1 and nothing else")
    write_copy(tmp_path / "sound")
    first, second = sources(tmp_path)
    assert len(first().pools["train"].x) == 5
    with pytest.raises(UsageError, match="not a readable parquet file"):
        second()


def test_download_reads_what_the_hub_delivers(tmp_path, monkeypatch):
    write_copy(tmp_path / "plain_text", train=4)
    asked = []

    def fetch(repo_id, filename, *, repo_type, local_files_only=False):
        asked.append((repo_id, repo_type, filename))
        return str(tmp_path / filename.replace("00000-of-00001", "0"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    source = load(None)
    assert source.origin == "parquet uoft-cs/cifar10 from the Hugging Face hub (4 + 3 images)"
    assert asked == [
        ("uoft-cs/cifar10", "dataset", f"plain_text/{split}-00000-of-00001.parquet") for split in ("test", "train")
    ]


# ---------------------------------------------------------------------------------------------------------
# Parquet
# ---------------------------------------------------------------------------------------------------------


def test_shards_are_joined_in_order_of_name(tmp_path):
    x = images(6)
    write_copy(tmp_path)
    write_parquet(tmp_path / "train-1.parquet", map(encode, x[4:]), [4, 5])
    write_parquet(tmp_path / "train-0.parquet", map(encode, x[:4]), [0, 1, 2, 3])
    pool = load(tmp_path).pools["train"]
    assert np.array_equal(pool.x, x)
    assert pool.y.tolist() == pool.index.tolist() == [0, 1, 2, 3, 4, 5]


def test_index_column_is_the_position(tmp_path):
    write_copy(tmp_path)
    write_parquet(tmp_path / "train-0.parquet", map(encode, images(3)), [1, 2, 3], index=[40_000, 7, 49_999])
    assert load(tmp_path).pools["train"].index.tolist() == [40_000, 7, 49_999]


def bomb(side):
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GOOD = encode(images(1)[0])
BAD_PARQUET = {
    "image too large": ({"contents": [encode(images(1, shape=(33, 32, 3))[0])]}, "image in row 0: 32x33 RGB"),
    "image grey": ({"contents": [encode(images(1, shape=(32, 32))[0])]}, "image in row 0: 32x32 L"),
    "image of another format": ({"contents": [encode(images(1)[0], "BMP")]}, "image in row 0"),
    "image truncated": ({"contents": [GOOD[: len(GOOD) // 2]]}, "image in row 0"),
    "image missing": ({"contents": [None]}, "image in row 0"),
    "image a bomb": ({"contents": [bomb(8_000)]}, "image in row 0: 8000x8000 RGB"),
    "image a bomb to PIL too": ({"contents": [bomb(60_000)]}, "image in row 0: Image size"),
    "second image bad": ({"contents": [GOOD, b"?"], "labels": [1, 1]}, "image in row 1"),
    "label too large": ({"labels": [10]}, "label is not in 0..9"),
    "label negative": ({"labels": [-1]}, "label is not in 0..9"),
    "label missing": ({"contents": [GOOD, GOOD], "labels": [1, None]}, "label is not one integer per image"),
    "index too large": ({"index": [50_000]}, "index is not in 0..49999"),
    "index twice": ({"contents": [GOOD, GOOD], "labels": [1, 1], "index": [3, 3]}, "the same index"),
    "label as text": ({"label": pa.array(["cat"])}, "column label"),
    "images not in a struct": ({"img": pa.array([GOOD])}, "column img.bytes"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet_is_refused_with_file_and_problem(tmp_path, case):
    arguments, problem = BAD_PARQUET[case]
    write_copy(tmp_path)
    write_parquet(**({"path": tmp_path / "train-0.parquet", "contents": [GOOD], "labels": [1]} | arguments))
    message = refusal(tmp_path)
    assert f"{tmp_path / 'train-0.parquet'}: " in message
    assert problem in message


def test_wrong_column_is_named(tmp_path):
    write_copy(tmp_path)
    pq.write_table(pa.table({"image": [b""], "label": [1]}), tmp_path / "train-0.parquet")
    assert "train-0.parquet: column img.bytes is missing" in refusal(tmp_path)


ONE = pa.StructArray.from_arrays([pa.array([GOOD])], ["bytes"])
COLUMNS_THERE_TWICE_OR_FLAT = {
    "two labels": ({"img": ONE, "label": [1], "LABEL": [1]}, "column label is there 2 times"),
    "two images": ({"img": ONE, "IMG": ONE, "label": [1]}, "column img.bytes is there 2 times"),
    "two indices": ({"img": ONE, "label": [1], "index": [1], "INDEX": [1]}, "column index is there 2 times"),
    "flat": ({"img.bytes": [GOOD], "label": [1]}, "img.bytes is a column of its own"),
    "flat and not": ({"img.bytes": [GOOD], "img": ONE, "label": [1]}, "column img.bytes is there 2 times"),
}


@pytest.mark.parametrize("case", COLUMNS_THERE_TWICE_OR_FLAT)
def test_parquet_columns_that_are_there_twice_or_flat_are_refused(tmp_path, case):
    columns, problem = COLUMNS_THERE_TWICE_OR_FLAT[case]
    table = pa.table(columns)
    pq.write_table(table.rename_columns([name.lower() for name in table.column_names]), tmp_path / "train-0.parquet")
    write_parquet(tmp_path / "test-0.parquet", [GOOD], [1])
    assert f"train-0.parquet: {problem}" in refusal(tmp_path)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/data", "~/no data"])
def test_a_home_that_does_not_exist_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(UsageError, match="is not a folder"):
        Cifar10(Params()).sources(folder, download=False)


def test_without_a_home_images_are_decoded_and_not_cached(tmp_path, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    (source,) = sources(write_copy(tmp_path))
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("ROBFLAT_BENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert len(source().pools["train"].y)


def test_the_cache_loses_files_of_killed_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBFLAT_BENCH_CACHE", str(tmp_path))
    for name, age in (("old", 100_000), ("young", 60)):
        (tmp_path / f".tmp-{name}").write_text("")
        os.utime(tmp_path / f".tmp-{name}", (time.time() - age,) * 2)
    cached("x", lambda: {"a": np.zeros(1)}, lambda arrays: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-young", "x.npz"]


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_parquet_is_refused(tmp_path, keep):
    path = write_copy(tmp_path) / "train-0.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert "train-0.parquet: not a readable parquet file" in refusal(tmp_path)


def test_parquet_damaged_behind_sound_metadata_is_refused(tmp_path):
    path = write_copy(tmp_path) / "train-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the first page's header
    path.write_bytes(content)
    assert "train-0.parquet: " in refusal(tmp_path)


def test_missing_test_split_is_refused(tmp_path):
    (write_copy(tmp_path) / "test-0.parquet").unlink()
    assert "test-*.parquet: there is no such file" in refusal(tmp_path)


def test_same_index_in_two_shards_is_refused(tmp_path):
    write_copy(tmp_path)
    write_parquet(tmp_path / "train-1.parquet", [GOOD], [1], index=[0])
    assert "two images have the same index" in refusal(tmp_path)


def test_too_many_images_and_too_large_files_are_refused_before_decoding(tmp_path, monkeypatch):
    write_copy(tmp_path)
    monkeypatch.setattr(parquet, "decode_image", None)
    monkeypatch.setitem(parquet.CIFAR10.limits, "train", 4)
    assert "5 images, more than CIFAR-10 has" in refusal(tmp_path)
    monkeypatch.setitem(parquet.CIFAR10.limits, "train", 5)
    monkeypatch.setattr(parquet, "MAX_BYTES", 1_000)
    assert "more than the 1,000 it may have" in refusal(tmp_path)


def test_parquet_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    write_copy(tmp_path)
    zeros = [bytes(100_000 + i) for i in range(20)]
    write_parquet(tmp_path / "train-0.parquet", zeros, [1] * 20)
    monkeypatch.setattr(parquet, "MAX_BYTES", 1_000_000)
    assert (tmp_path / "train-0.parquet").stat().st_size < 1_000_000
    assert "unpacks to more than 1,000,000 bytes" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Batch files
# ---------------------------------------------------------------------------------------------------------


def test_batches_are_read_channel_by_channel(tmp_path, monkeypatch):
    planes, y = write_batches(tmp_path / "cifar-10-batches-py", monkeypatch)
    source = load(tmp_path)
    pool = source.pools["train"]
    # Pickled channel after channel, row after row.
    for i in (0, 7, 19):
        for channel in range(3):
            assert np.array_equal(pool.x[i, :, :, channel].ravel(), planes[i, 1024 * channel : 1024 * channel + 1024])
    assert pool.y.tolist() == y
    assert pool.index.tolist() == list(range(20))
    assert source.pools["test"].index.tolist() == [0, 1, 2, 3]
    assert source.origin == f"cifar-10-batches-py {tmp_path.name}/cifar-10-batches-py (20 + 4 images)"


def test_batches_precede_parquet(tmp_path, monkeypatch):
    write_copy(tmp_path / "a")
    write_batches(tmp_path / "cifar-10-batches-py", monkeypatch)
    assert load(tmp_path).origin.startswith("cifar-10-batches-py ")


def test_published_md5_are_of_full_length():
    digests = [md5 for files in batches.MD5.values() for md5 in files.values()]
    assert len(set(digests)) == 6
    assert {len(bytes.fromhex(md5)) for md5 in digests} == {16}


def test_wrong_md5_is_never_unpickled(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder, monkeypatch)
    with (folder / "data_batch_3").open("ab") as file:
        file.write(b"\n")
    opened = []
    monkeypatch.setattr(batches._ArraysOnly, "load", lambda self: opened.append(self))
    monkeypatch.setitem(batches.MD5["train"], "data_batch_1", "0" * 32)
    message = refusal(tmp_path)
    assert f"{folder / 'data_batch_1'}: its MD5 is not the published one" in message
    assert not opened


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, np.load], ids=lambda function: function.__name__)
def test_malicious_pickle_is_refused_unexecuted(tmp_path, monkeypatch, protocol, function):
    mark = tmp_path / "executed"
    argument = {
        os.system: f"touch {mark}",
        eval: f"open({str(mark)!r}, 'w')",
        np.load: str(mark),
    }[function]
    content = pickle.dumps({b"data": Call(function, argument), b"labels": []}, protocol=protocol)
    write_batches(tmp_path / "batches", monkeypatch, {"data_batch_1": content})
    message = refusal(tmp_path)
    assert "data_batch_1: not a CIFAR-10 batch (" in message
    assert "is not allowed in it" in message
    assert not mark.exists()


BAD_BATCHES = {
    "not a pickle": (b"\x00\x01", "not a CIFAR-10 batch"),
    "empty": (b"", "not a CIFAR-10 batch"),
    "another codec": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        "not allowed",
    ),
    "no labels": (pickle.dumps({b"data": images(1, shape=(3072,))}, protocol=2), "labels"),
    "floats": (
        pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, protocol=2),
        "images are float64",
    ),
    "label 10": (
        pickle.dumps({b"data": images(1, shape=(3072,)), b"labels": [10]}, protocol=2),
        "not in 0..9",
    ),
    "label short": (
        pickle.dumps({b"data": images(2, shape=(3072,)), b"labels": [1]}, protocol=2),
        "label is not one",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batch_is_refused(tmp_path, monkeypatch, case):
    content, problem = BAD_BATCHES[case]
    write_batches(tmp_path / "batches", monkeypatch, {"data_batch_2": content})
    message = refusal(tmp_path)
    assert "data_batch_2: " in message
    assert problem in message


def test_missing_and_oversized_batches_are_refused(tmp_path, monkeypatch):
    write_batches(tmp_path / "batches", monkeypatch)
    monkeypatch.setattr(batches, "MAX_BYTES", 100)
    assert "more than the 100 it may have" in refusal(tmp_path)
    (tmp_path / "batches" / "data_batch_1").unlink()
    assert "data_batch_1: No such file" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Cache
# ---------------------------------------------------------------------------------------------------------


def equal(a, b):
    return all(
        getattr(a.pools[split], name).tobytes() == getattr(b.pools[split], name).tobytes()
        and getattr(a.pools[split], name).dtype == getattr(b.pools[split], name).dtype
        for split in ("train", "test")
        for name in ("x", "y", "index")
    )


def test_cache_hit_is_identical_and_decodes_nothing(tmp_path, monkeypatch, surroundings):
    write_copy(tmp_path)
    first = load(tmp_path)
    assert len(list(surroundings.glob("cifar10-*.npz"))) == 2
    assert not list(surroundings.glob(".tmp-*"))
    monkeypatch.setattr(parquet, "decode_image", None)
    assert equal(load(tmp_path), first)


def test_cache_follows_the_content(tmp_path):
    write_copy(tmp_path)
    load(tmp_path)
    other = images(5, seed=1)
    write_parquet(tmp_path / "train-0.parquet", map(encode, other), [1] * 5)
    assert np.array_equal(load(tmp_path).pools["train"].x, other)


def damage_pixel(path):
    content = bytearray(path.read_bytes())
    content[1_000] ^= 1
    path.write_bytes(content)


def store_pickle(path):
    np.savez(path, x=np.array([Call(os.mkdir, str(path) + ".executed")], dtype=object), y=1, index=1)


DAMAGE = {
    "one bit": damage_pixel,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "empty": lambda path: path.write_bytes(b""),
    "other arrays": lambda path: np.savez(path, x=np.zeros(3)),
    "wrong shape": lambda path: np.savez(path, x=np.zeros((5, 8, 8, 1), np.uint8), y=range(5), index=range(5)),
    "pickled": store_pickle,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_cache_is_ignored_and_replaced(tmp_path, monkeypatch, surroundings, case):
    write_copy(tmp_path)
    first = load(tmp_path)
    for path in surroundings.glob("*.npz"):
        DAMAGE[case](path)
    assert equal(load(tmp_path), first)
    assert not list(surroundings.glob("*.executed"))
    monkeypatch.setattr(parquet, "decode_image", None)
    assert equal(load(tmp_path), first)


def test_unwritable_cache_is_ignored(tmp_path, monkeypatch):
    write_copy(tmp_path / "data")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROBFLAT_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert np.array_equal(load(tmp_path / "data").pools["train"].x, images(5))
