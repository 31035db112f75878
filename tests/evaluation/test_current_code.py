"""A file that was written after this process began stops other processes from sharing an evaluation that needs it."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path

import pytest

from robflat_bench.evaluation import current_code
from robflat_bench.evaluation.current_code import changed_file
from robflat_bench.registry.files import load_file
from robflat_bench.registry.plugins import Plugins, Provider

BEGAN = 2_000_000_000
FILES = {
    "mynets/__init__.py": "from .net import Net",
    "mynets/net.py": "class Net:\n    def forward(self):\n        from . import layers\n        import myops as ops",
    "mynets/layers.py": "",
    "mynets/other.py": "",
    "myops.py": "import json",
    "mynotes.py": "import mynets.net",
    "myplugin.py": "import myside",
    "myside.py": "",
}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """The folder of the modules, which this process has imported before it wrote any file."""
    monkeypatch.setattr(current_code, "BEGAN", BEGAN)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    importlib.invalidate_caches()
    for name in ("mynets.net", "mynets.layers", "mynets.other", "myops", "mynotes"):
        importlib.import_module(name)
    yield tmp_path
    for name in [name for name, file in current_code._files() if tmp_path in file.parents]:
        del sys.modules[name]


def written(file: Path) -> None:
    os.utime(file, (BEGAN + 1, BEGAN + 1))


def payload() -> bytes:
    return pickle.dumps([sys.modules["mynets.net"].Net()])


@pytest.mark.parametrize("name", ["mynets/net.py", "mynets/__init__.py", "mynets/layers.py", "myops.py"])
def test_the_file_of_a_class_and_of_what_it_imports_anywhere_is_found(registry, loaded, name):
    assert changed_file(registry.plugins, payload()) is None
    written(loaded / name)
    assert changed_file(registry.plugins, payload()) == loaded / name


@pytest.mark.parametrize("name", ["mynotes.py", "mynets/other.py"])
def test_a_file_that_nothing_of_the_evaluation_imports_does_not_matter(registry, loaded, name):
    """Such as a cell of a notebook with `%%writefile`."""
    written(loaded / name)
    assert changed_file(registry.plugins, payload()) is None


def test_this_package_counts_whole(registry, loaded, monkeypatch):
    before = {name for name, file in current_code._files() if current_code._written_after(file, 0.0)}
    assert "robflat_bench.core.clock" in before
    file = Path(str(sys.modules["robflat_bench.core.clock"].__file__))
    monkeypatch.setattr(current_code, "_written_after", lambda found, began: found == file)
    assert changed_file(registry.plugins, pickle.dumps(None)) == file


@pytest.mark.parametrize("name", ["myplugin.py", "myside.py"])
def test_the_file_of_a_plugin_and_those_beside_it_count(registry, loaded, name):
    module = load_file(loaded / "myplugin.py")
    plugins = Plugins(registry.plugins.manager, {module: Provider("myplugin.py", "file", "myplugin", module)})
    written(loaded / name)
    assert changed_file(plugins, pickle.dumps(None)) == loaded / name
    assert changed_file(registry.plugins, pickle.dumps(None)) is None


def test_a_module_that_is_no_module_and_a_file_that_is_gone_do_no_harm(registry, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd", object())
    monkeypatch.setitem(sys.modules, "mynets.net.odd", None)
    written(loaded / "mynotes.py")
    (loaded / "myops.py").unlink()
    assert changed_file(registry.plugins, payload()) is None
