"""Numpy files and folders of images: in the layouts of CIFAR-10.1 and CIFAR-10-C, and hostile ones."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageFile

from robflat_bench.config.protocol import load as load_protocol
from robflat_bench.core import UsageError
from robflat_bench.data import arrays, image_folder
from robflat_bench.data.splits import load_splits
from robflat_bench.registry.components import resolve


def pixels(n, size=32, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def load(registry, text, root):
    return resolve(registry, "dataset", text).build().sources(str(root))[0]()


def test_cifar10_1_is_read_from_its_pair_of_files(registry, tmp_path):
    x, y = pixels(4), np.array([9, 0, 3, 3], np.int32)
    np.save(tmp_path / "cifar10.1_v6_data.npy", x)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", y)
    source = load(registry, 'arrays(test="cifar10.1_v6_data.npy")', tmp_path)
    pool = source.pools["test"]
    assert np.array_equal(pool.x, x)
    assert pool.y.tolist() == [9, 0, 3, 3]
    assert (pool.y.dtype, pool.index.tolist()) == (np.uint8, [0, 1, 2, 3])
    assert source.classes == 10
    assert source.origin == f"arrays {tmp_path.name}/cifar10.1_v6_data.npy (4 images)"


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_of_cifar10_c_is_its_fifth_of_the_file(registry, tmp_path, severity):
    x, y = pixels(20), np.tile([1, 2, 3, 4], 5)
    np.save(tmp_path / "fog.npy", x)
    np.save(tmp_path / "labels.npy", y)
    pool = load(registry, f'arrays(test="fog.npy", severity={severity})', tmp_path).pools["test"]
    assert np.array_equal(pool.x, x[4 * severity - 4 : 4 * severity])
    assert pool.y.tolist() == [1, 2, 3, 4]
    assert pool.index.tolist() == [0, 1, 2, 3]
    assert len(load(registry, 'arrays(test="fog.npy")', tmp_path).pools["test"].y) == 20


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_an_npz_has_images_labels_and_positions(registry, tmp_path, names):
    x, y = pixels(3, 5, channels=1), np.array([2, 0, 1])
    np.savez_compressed(tmp_path / "own.npz", **dict(zip(names, (x, y), strict=True)), index=np.array([9, 2, 4]))
    np.savez(tmp_path / "train.npz", **dict(zip(names, (x, y), strict=True)))
    source = load(registry, 'arrays(test="own.npz", train="train.npz", classes=3)', tmp_path)
    assert np.array_equal(source.pools["test"].x, x)
    assert source.pools["test"].index.tolist() == [9, 2, 4]
    assert source.pools["train"].index.tolist() == [0, 1, 2]


def saved(folder, x=None, y=None):
    np.save(folder / "a_data.npy", pixels(2) if x is None else x, allow_pickle=True)
    np.save(folder / "a_labels.npy", np.array([0, 1]) if y is None else y, allow_pickle=True)


class Marks:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


HOSTILE = {
    "floats": ({"x": pixels(2) / 255}, "images are float64"),
    "channels first": ({"x": pixels(2).transpose(0, 3, 1, 2)}, "not uint8 .N,H,W,C."),
    "not square": ({"x": np.zeros((2, 4, 5, 3), np.uint8)}, "H = W"),
    "flat": ({"x": np.zeros((2, 3072), np.uint8)}, "not uint8"),
    "none": ({"x": np.zeros((0, 32, 32, 3), np.uint8), "y": np.zeros(0, int)}, "images are"),
    "fewer labels": ({"y": np.array([1])}, r"2 images have labels int64 \[1\]"),
    "float labels": ({"y": np.array([0.0, 1.0])}, "label is not one integer"),
    "label 10": ({"y": np.array([0, 10])}, "label is not in 0..9"),
    "label -1": ({"y": np.array([0, -1])}, "label is not in 0..9"),
    "label scalar": ({"y": np.array(3)}, "have labels"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_arrays_are_refused_with_the_next_step(registry, tmp_path, case):
    arguments, problem = HOSTILE[case]
    saved(tmp_path, **arguments)
    with pytest.raises(UsageError, match=problem) as caught:
        load(registry, 'arrays(test="a_data.npy")', tmp_path)
    assert "--data DIR" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["x", "y"])
def test_pickled_objects_are_refused_and_never_run(registry, tmp_path, which):
    array = np.empty(2, object)
    array[:] = [Marks(tmp_path / "ran")] * 2
    saved(tmp_path, **{which: array})
    with pytest.raises(UsageError, match="damaged"):
        load(registry, 'arrays(test="a_data.npy")', tmp_path)
    assert not (tmp_path / "ran").exists()


def test_large_truncated_and_missing_files_are_refused(registry, tmp_path, monkeypatch):
    saved(tmp_path)
    raw = (tmp_path / "a_data.npy").read_bytes()
    (tmp_path / "a_data.npy").write_bytes(raw[:-1])
    with pytest.raises(UsageError, match="damaged"):
        load(registry, 'arrays(test="a_data.npy")', tmp_path)
    with pytest.raises(UsageError, match="there is no such file"):
        load(registry, 'arrays(test="b.npy")', tmp_path)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100, 32, 32, 3), np.uint8), y=np.zeros(100, int))
    monkeypatch.setattr(arrays, "MAX_BYTES", 100_000)
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    with pytest.raises(UsageError, match="unpacks to more than 100000 bytes"):
        load(registry, 'arrays(test="bomb.npz")', tmp_path)
    monkeypatch.setattr(arrays, "MAX_BYTES", 1_000)
    with pytest.raises(UsageError, match=r"File too large|larger than"):
        load(registry, 'arrays(test="a_data.npy")', tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd.npy", "../a_data.npy", "x/../../a.npy"])
def test_files_outside_the_folder_are_refused(registry, name):
    with pytest.raises(UsageError, match="below"):
        resolve(registry, "dataset", f'arrays(test="{name}")')


def test_a_link_out_of_the_folder_is_refused(registry, tmp_path):
    saved(tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "a_data.npy").symlink_to(tmp_path / "a_data.npy")
    with pytest.raises(UsageError, match="a link out of"):
        load(registry, 'arrays(test="a_data.npy")', inside)


def test_images_that_are_no_five_severities_are_refused(registry, tmp_path):
    np.save(tmp_path / "fog.npy", pixels(7))
    np.save(tmp_path / "labels.npy", np.zeros(7, int))
    with pytest.raises(UsageError, match="7 images are not 5 severities"):
        load(registry, 'arrays(test="fog.npy", severity=1)', tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze()).save(path)


def test_classes_are_the_folders_in_alphabetical_order(registry, tmp_path):
    x, grey = pixels(3, 6), pixels(1, 6, channels=1)
    put(tmp_path / "val" / "dog" / "1.png", x[0])
    put(tmp_path / "val" / "cat" / "b.png", x[1])
    put(tmp_path / "val" / "cat" / "a.PNG", x[2])
    put(tmp_path / "tr" / "cat" / "a.png", grey[0])
    put(tmp_path / "tr" / "dog" / "a.png", x[0])
    put(tmp_path / "tr" / "eel" / "a.png", x[0])
    (tmp_path / "val" / "cat" / ".DS_Store").write_text("hidden")
    source = load(registry, 'image-folder(test="val", train="tr", size=6)', tmp_path)
    pool = source.pools["test"]
    assert np.array_equal(pool.x, x[[2, 1, 0]])
    assert pool.y.tolist() == [0, 0, 1]
    assert source.classes == 3, "those of the first pool, train"
    assert np.array_equal(source.pools["train"].x[0], np.repeat(grey[0], 3, axis=2))


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("test/cat/x.txt", b"text", "no .png"),
        ("test/cat/x.png", b"no image", "cannot identify"),
        ("test/owl/x.png", b"", "the other pool has no such class"),
    ],
)
def test_wrong_files_are_refused_by_name(registry, tmp_path, file, content, problem):
    for name in ("test/cat/1.png", "test/dog/1.png", "train/cat/1.png", "train/dog/1.png"):
        put(tmp_path / name, pixels(1, 6)[0])
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UsageError, match=problem) as caught:
        load(registry, 'image-folder(size=6, train="train")', tmp_path)
    assert "--data DIR" in str(caught.value)


def test_an_image_of_another_size_is_refused_before_it_is_decoded(registry, tmp_path, monkeypatch):
    put(tmp_path / "test" / "cat" / "1.png", pixels(1, 6)[0])
    put(tmp_path / "test" / "dog" / "1.png", pixels(1, 300)[0])
    real = ImageFile.ImageFile.load
    load_small = lambda self: real(self) if self.width == 6 else pytest.fail("a large image was decoded")  # noqa: E731
    monkeypatch.setattr(ImageFile.ImageFile, "load", load_small)
    with pytest.raises(UsageError, match=r"dog/1.png: 300x300 RGB, not 6x6"):
        load(registry, "image-folder(size=6)", tmp_path)


def test_large_files_and_links_are_refused(registry, tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        put(tmp_path / "test" / name / "1.png", pixels(1, 6)[0])
    put(tmp_path / "elsewhere.png", pixels(1, 6)[0])
    (tmp_path / "test" / "dog" / "2.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(UsageError, match=r"2\.png: it is a link out of"):
        load(registry, "image-folder(size=6)", tmp_path)
    (tmp_path / "test" / "dog" / "2.png").unlink()
    put(tmp_path / "others" / "1.png", pixels(1, 6)[0])
    (tmp_path / "test" / "eel").symlink_to(tmp_path / "others")
    with pytest.raises(UsageError, match=r"eel/1\.png: it is a link out of"):
        load(registry, "image-folder(size=6)", tmp_path)
    (tmp_path / "test" / "eel").unlink()
    monkeypatch.setattr(image_folder, "MAX_FILE", 10)
    with pytest.raises(UsageError, match=r"1\.png"):
        load(registry, "image-folder(size=6)", tmp_path)


def test_the_cache_follows_the_content_of_the_files(registry, tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / "test" / name / "1.png", pixels(1, 6)[0])
    load(registry, "image-folder(size=6)", tmp_path)
    other = pixels(1, 6, seed=5)[0]
    buffer = io.BytesIO()
    Image.fromarray(other).save(buffer, "PNG")
    (tmp_path / "test" / "dog" / "1.png").write_bytes(buffer.getvalue())
    assert np.array_equal(load(registry, "image-folder(size=6)", tmp_path).pools["test"].x[1], other)


# ---------------------------------------------------------------------------------------------------------
# In place of the protocol's test images
# ---------------------------------------------------------------------------------------------------------


def evaluated(command, finished, tiny, *words):
    start = ("evaluate", finished.folder, "--protocol", tiny, "--store", finished.store, "--json")
    done = command(*start, "--attack", "pgd(steps=2)", "--examples", "20", *words)
    assert done.code == 0, done.err
    return done.document


def test_the_protocols_own_images_from_a_file_give_its_numbers(finished_copy, tiny, tmp_path, command, registry):
    pool = load_splits(registry, load_protocol(registry, str(tiny)), None).pools["test"]
    order = np.random.default_rng(0).permutation(30)  # of which the first 20 by position are read
    np.savez(tmp_path / "own.npz", x=pool.x[order], y=pool.y[order], index=pool.index[order])
    words = ("--data", tmp_path, "--dataset", 'arrays(test="own.npz")')
    plain, other = (evaluated(command, finished_copy, tiny, *more) for more in ((), words))
    for name in ("clean_error", "robust_error", "robust_loss", "weights"):
        assert plain["results"]["last"][name] == other["results"]["last"][name]
    assert other["dataset"]["origin"] == f"test images of arrays {tmp_path.name}/own.npz (30 images)"
    assert not other["dataset"]["canonical"]
    assert plain["key"] != other["key"]
    np.savez(tmp_path / "own.npz", x=255 - pool.x[order], y=pool.y[order], index=pool.index[order])
    assert evaluated(command, finished_copy, tiny, *words)["key"] != other["key"]


def test_a_dataset_without_test_images_is_refused(finished_copy, tiny, command):
    words = ("--protocol", tiny, "--store", finished_copy.store, "--dataset", "digits")
    assert "has no 'test' images" in command("evaluate", finished_copy.folder, *words).complaint
