"""Files that the pages show, and the network that one of them trains."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from helpers.commands import REPOSITORY

DOCS = REPOSITORY / "docs"
FILES = {
    name: body
    for page in ("your-checkpoint", "protocol-and-rules")
    for name, body in re.findall(
        r"(?s)```\w+\n# ([\w-]+\.(?:py|toml))\n(.*?)```", (DOCS / f"{page}.md").read_text("utf-8")
    )
}
"""Name -> text of the files that snippets of pages use."""


def own_data(folder: Path) -> None:
    """`my-data` and `adv.npz` of your-data.md: digits under the names of published files."""
    import numpy as np

    from robflat_bench.data.digits import load_digits

    pool = load_digits().pools["train"]
    np.savez(folder / "adv.npz", x=pool.x, index=pool.index)
    home = folder / "my-data"
    home.mkdir()
    np.savez(home / "train.npz", x=pool.x[:200], y=pool.y[:200])
    np.savez(home / "test.npz", x=pool.x[200:300], y=pool.y[200:300])
    for name, labels in {"cifar10.1_v6_data": "cifar10.1_v6_labels", "fog": "labels"}.items():
        np.save(home / f"{name}.npy", pool.x[300:600])
        np.save(home / f"{labels}.npy", pool.y[300:600])


@functools.cache
def trained() -> bytes:
    """`net.pth`, which `train.py` of your-checkpoint.md makes."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("net.py", "train.py"):
            (Path(folder) / name).write_text(FILES[name])
        subprocess.run([sys.executable, "train.py"], check=True, cwd=folder)
        return (Path(folder) / "net.pth").read_bytes()


@contextlib.contextmanager
def beside_the_files() -> Iterator[None]:
    """A block in a folder with the pages' files and `net.pth`, in which `train` can be imported."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, text in FILES.items():
            Path(name).write_text(text)
        sys.path.insert(0, folder)
        others = {name: sys.modules.pop(name) for name in ("net", "train") if name in sys.modules}  # of other tests
        try:
            importlib.import_module("train")
            yield
        finally:
            sys.path.remove(folder)
            for name in ("net", "train"):
                sys.modules.pop(name, None)
            sys.modules.update(others)
