"""Datasets of parquet files: each in its layout on the hub, in small; hostile files; how a protocol uses one."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robflat_bench.core import UsageError
from robflat_bench.data import parquet, parquet_dataset
from robflat_bench.data.layouts import content_digest
from robflat_bench.registry.components import resolve


def pixels(n, size, seed=0, channels=3):
    shape = (n, size, size, channels) if channels == 3 else (n, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write(path, contents, image="image", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": content, "path": "x.png"} for content in contents]
    table = {image: pa.array(rows, kind)}
    pq.write_table(pa.table(table | {name: pa.array(values, pa.int64()) for name, values in columns.items()}), path)


def load(registry, text, root):
    dataset = resolve(registry, "dataset", text).build()
    return dataset, dataset.sources(str(root))[0]()


# ---------------------------------------------------------------------------------------------------------
# The layouts of the hub
# ---------------------------------------------------------------------------------------------------------


def test_cifar100_has_the_fine_labels_of_the_hubs_files(registry, tmp_path):
    x = {"train": pixels(4, 32), "test": pixels(3, 32, seed=1)}
    for split, images in x.items():
        fine, coarse = [99 - k for k in range(len(images))], list(range(len(images)))
        file = tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet"
        write(file, map(encoded, images), "img", fine_label=fine, coarse_label=coarse)
    dataset, source = load(registry, "cifar100", tmp_path)
    assert source.classes == 100
    assert source.pools["train"].y.tolist() == [99, 98, 97, 96]
    assert source.pools["train"].index.tolist() == [0, 1, 2, 3]
    for split, images in x.items():
        assert np.array_equal(source.pools[split].x, images)
    assert source.origin == f"parquet {tmp_path.name}/cifar100 (4 + 3 images)"
    assert not dataset.canonical(source)


def test_svhn_reads_the_extra_images_on_request_only(registry, tmp_path):
    for k, (split, part) in enumerate({"train": 0, "test": 0, "extra": 0, "extra ": 1}.items()):
        file = tmp_path / "cropped_digits" / f"{split.strip()}-0000{part}-of-0000{part + 1}.parquet"
        write(file, map(encoded, pixels(2, 32, seed=k)), label=[0, 9])
    assert set(load(registry, "svhn", tmp_path)[1].pools) == {"train", "test"}
    _, source = load(registry, "svhn(extra=true)", tmp_path)
    assert {pool: found.y.tolist() for pool, found in source.pools.items()} == {
        "train": [0, 9],
        "test": [0, 9],
        "extra": [0, 9, 0, 9],
    }
    assert np.array_equal(source.pools["extra"].x[2:], pixels(2, 32, seed=3))
    assert source.classes == 10


def test_tiny_imagenet_repeats_grey_images_and_calls_the_validation_set_test(registry, tmp_path):
    grey, colour = pixels(1, 64, channels=1)[0], pixels(1, 64)[0]
    write(tmp_path / "data" / "train-00000-of-00001-1359597a978bc4fa.parquet", [encoded(grey)] * 2, label=[199, 0])
    write(tmp_path / "data" / "valid-00000-of-00001-70d52db3c749a935.parquet", [encoded(colour)], label=[7])
    _, source = load(registry, "tiny-imagenet", tmp_path)
    assert source.classes == 200
    assert np.array_equal(source.pools["train"].x[0], np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(source.pools["test"].x[0], colour)
    assert source.pools["train"].y.tolist() == [199, 0]


def test_a_jpeg_is_decoded_as_pillow_decodes_it(registry, tmp_path):
    content = encoded(pixels(1, 64)[0], "JPEG")
    write(tmp_path / "train-0.parquet", [content], label=[1])
    write(tmp_path / "valid-0.parquet", [content], label=[1])
    _, source = load(registry, "tiny-imagenet", tmp_path)
    assert np.array_equal(source.pools["train"].x[0], np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize(
    ("name", "files"),
    {
        "cifar100": {"cifar100/test-00000-of-00001.parquet": "img", "cifar100/train-00000-of-00001.parquet": "img"},
        "svhn": {"cropped_digits/test-00000-of-00001.parquet": "image"},
        "tiny-imagenet": {"data/valid-00000-of-00001-70d52db3c749a935.parquet": "image"},
    }.items(),
)
def test_the_hubs_files_have_the_names_that_the_dataset_reads(registry, tmp_path, monkeypatch, name, files):
    asked = []

    def fetch(repo_id, filename, *, repo_type, local_files_only=False):
        asked.append(filename)
        path = tmp_path / filename
        labels = {"fine_label": [1], "coarse_label": [1]} if name == "cifar100" else {"label": [1]}
        size, column = (64 if name == "tiny-imagenet" else 32), "img" if name == "cifar100" else "image"
        write(path, [encoded(pixels(1, size, seed=len(asked))[0])], column, **labels)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    dataset = resolve(registry, "dataset", name).build()
    source = dataset.sources(None)[0]()
    assert {*files} <= {*asked}
    assert [len(pool.y) for pool in source.pools.values()] == [1, 1]
    assert "from the Hugging Face hub" in source.origin


# ---------------------------------------------------------------------------------------------------------
# One's own files
# ---------------------------------------------------------------------------------------------------------

OWN = 'parquet(classes=3, size=5, train="a/tr*.parquet", test="te.parquet", image=pic, label=kind, index=at, {})'


def own(tmp_path):
    x, z = pixels(3, 5), pixels(2, 5, seed=1)
    write(tmp_path / "a" / "tr-0.parquet", map(encoded, x[:2]), "pic", kind=[2, 0], at=[7, 3])
    write(tmp_path / "a" / "tr-1.parquet", map(encoded, x[2:]), "pic", kind=[1], at=[5])
    write(tmp_path / "te.parquet", map(encoded, z), "pic", kind=[0, 1], at=[1, 0])
    return x, z


def test_files_columns_and_positions_are_as_named(registry, tmp_path):
    x, z = own(tmp_path)
    dataset, source = load(registry, OWN.format("channels=3"), tmp_path)
    assert np.array_equal(source.pools["train"].x, x)
    assert source.pools["train"].y.tolist() == [2, 0, 1]
    assert source.pools["train"].index.tolist() == [7, 3, 5]
    assert np.array_equal(source.pools["test"].x, z)
    assert not dataset.canonical(source), "no hash is stated"


def naive_digest(x, y, index):
    order = sorted(range(len(y)), key=lambda k: index[k])
    pixel_bytes = b"".join(x[k].tobytes() for k in order)
    return hashlib.sha256(pixel_bytes + bytes(y[k] for k in order)).hexdigest()


def test_data_with_both_stated_hashes_are_canonical_and_with_a_wrong_one_refused(registry, tmp_path):
    x, z = own(tmp_path)
    train, test = naive_digest(x, [2, 0, 1], [7, 3, 5]), naive_digest(z, [0, 1], [1, 0])
    both = OWN.format(f'train_sha256="{train}", test_sha256="{test}"')
    dataset, source = load(registry, both, tmp_path)
    assert dataset.canonical(source)
    pool = source.pools["test"]
    changed = replace(source, pools={**source.pools, "test": replace(pool, x=pool.x ^ 1)})
    assert not dataset.canonical(changed)
    with pytest.raises(UsageError, match=f"'test' have the SHA-256 {test}, not {train}; .*leave test_sha256 out"):
        load(registry, OWN.format(f'test_sha256="{train}"'), tmp_path)


def test_a_digest_of_many_images_is_that_of_all_their_bytes(monkeypatch):
    monkeypatch.setattr("robflat_bench.data.layouts.DIGEST_ROWS", 2)
    x, y, index = pixels(7, 4), np.arange(7, dtype=np.uint8), np.array([3, 0, 6, 5, 1, 2, 4])
    from robflat_bench.core import Pool

    assert content_digest(Pool(x, y, index)) == naive_digest(x, y.tolist(), index.tolist())


@pytest.mark.parametrize("pattern", ["/etc/*.parquet", "../*.parquet", "a/../../b.parquet", "**/x.parquet", "~/x"])
def test_patterns_that_leave_the_folder_are_refused(registry, pattern):
    with pytest.raises(UsageError, match="--data DIR"):
        resolve(registry, "dataset", f'parquet(classes=2, train="{pattern}")')


HOSTILE = {
    "other size": ([encoded(pixels(1, 6)[0])], [0], "image in row 0: 6x6 RGB, not 5x5 RGB or L"),
    "sixteen bits": ([encoded(np.zeros((5, 5), np.uint16))], [0], "image in row 0: 5x5 I;16"),
    "no image": ([b"no image"], [0], "image in row 0"),
    "label too large": ([encoded(pixels(1, 5)[0])], [3], r"label is not in 0..2 \(3 to 3\)"),
    "label negative": ([encoded(pixels(1, 5)[0])], [-1], "label is not in 0..2"),
    "no label": ([encoded(pixels(1, 5)[0])], [None], "label is not one integer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_next_step(registry, tmp_path, case):
    contents, labels, problem = HOSTILE[case]
    own(tmp_path)
    write(tmp_path / "te.parquet", contents, "pic", kind=labels, at=[0])
    with pytest.raises(UsageError, match=problem) as caught:
        load(registry, OWN.format("channels=3"), tmp_path)
    assert "te.parquet" in str(caught.value)
    assert "--data DIR" in str(caught.value)


def test_more_images_than_memory_is_meant_for_are_refused_before_decoding(registry, tmp_path, monkeypatch):
    own(tmp_path)
    monkeypatch.setattr(parquet_dataset, "MAX_DECODED", 2 * 5 * 5 * 3)
    monkeypatch.setattr(parquet, "decode_image", None)
    dataset = resolve(registry, "dataset", OWN.format("channels=3").replace("tr*", "tr-1")).build()
    write(tmp_path / "a" / "tr-1.parquet", map(encoded, pixels(3, 5)), "pic", kind=[0] * 3, at=[0, 1, 2])
    with pytest.raises(UsageError, match="3 images, more than parquet has"):
        dataset.sources(str(tmp_path))[0]()


def test_a_missing_column_names_those_that_are_there(registry, tmp_path):
    own(tmp_path)
    with pytest.raises(UsageError, match=r"column image.bytes is missing .*pic.bytes, pic.path, kind, at"):
        load(registry, OWN.format("channels=3").replace("image=pic, ", ""), tmp_path)


def test_equal_images_of_two_settings_do_not_share_the_cache(registry, tmp_path):
    own(tmp_path)
    load(registry, OWN.format("channels=3"), tmp_path)
    with pytest.raises(UsageError, match="5x5 RGB, not 4x4"):
        load(registry, OWN.format("channels=3").replace("size=5", "size=4"), tmp_path)


def test_no_data_folder_is_one_line(registry):
    with pytest.raises(UsageError, match=r"parquet not found: no data folder was named; .*--data DIR") as caught:
        resolve(registry, "dataset", "parquet").build().sources(None)
    assert "network" not in str(caught.value)
