"""One-file plugins and the files beside them: what they import, whose it is, and what is in the hash."""

from __future__ import annotations

import hashlib
import os
import sys

import pytest

from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover

MINE = """
from robflat_bench.api import MethodInfo, hookimpl, lazy_imports
AT_THE_TOP

class Mine:
    def __init__(self, params):
        INSIDE
        self.word = mybody.WORD

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("NAME", "-", "mine:Mine")]
"""


def text(top="", inside="", name="mine"):
    return MINE.replace("AT_THE_TOP", top).replace("INSIDE", inside).replace("NAME", name)


def write(folder, files):
    """Write files below a folder; returns the plugin's, which is the first."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        os.utime(folder / name, (1e9, 1e9))  # as in an archive: bytecode of an earlier version looks current
    return folder / next(iter(files))


def source(file):
    return discover((file,)).get("method", "mine").provenance["source"]


def word(registry, name="mine"):
    return resolve(registry, "method", name).build().word


@pytest.mark.parametrize(
    ("top", "inside"),
    [
        ("import mybody", ""),
        ("from . import mybody", ""),
        ("with lazy_imports():\n    import mybody", ""),
        ("", "import mybody"),
        ("", "from lib import mybody"),
        ("import lib.mybody\nmybody = lib.mybody", ""),
        ("import lib.mybody as mybody", ""),
        ("from lib.inner import mybody", ""),
        ("from other import mybody", ""),
    ],
)
def test_a_change_of_a_file_that_the_plugin_imports_changes_the_hash(tmp_path, monkeypatch, top, inside):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    files = {"mine.py": text(top, inside), "lib/__init__.py": "", "unused.py": "X = 1"}
    files |= {"other.py": "import mybody", "lib/inner/__init__.py": "from lib import mybody"}
    hashes, words = [], []
    for new in ("one", "two", "one"):
        file = write(tmp_path, files | dict.fromkeys(("mybody.py", "lib/mybody.py"), f"WORD = {new!r}"))
        hashes.append(source(file))
        words.append(word(discover((file,))))
    assert words == ["one", "two", "one"]
    assert hashes[0] == hashes[2] != hashes[1]
    (tmp_path / "unused.py").write_text("X = 2")
    assert source(file) == hashes[0]


def test_a_file_alone_keeps_its_hash(tmp_path):
    """Over `.` and its bytes: runs of plugins without neighbours keep their keys, wherever the file lies."""
    alone = text("import random as mybody")
    file = write(tmp_path / "a", {"mine.py": alone, "random.py": "not Python: Python's own module comes first"})
    assert source(file) == hashlib.sha256(b"." + alone.encode()).hexdigest()
    assert source(write(tmp_path / "b", {"mine.py": alone})) == source(file)


@pytest.mark.parametrize("places", [("import mybody", ""), ("", "import mybody")], ids=["at once", "when it runs"])
def test_two_plugins_do_not_share_a_module_of_one_name(tmp_path, places):
    files = [
        write(tmp_path / name, {f"{name}.py": text(*places, name), "mybody.py": f"WORD = {name!r}"}) for name in "ab"
    ]
    registry = discover(tuple(files))
    assert registry.plugins.broken == []
    assert [word(registry, name) for name in "abab"] == ["a", "b", "a", "b"]


def test_a_second_plugin_of_the_same_name_is_broken_and_the_first_keeps_its_files(tmp_path):
    files = [
        write(tmp_path / name, {"mine.py": text("", "import mybody"), "mybody.py": f"WORD = {name!r}"}) for name in "ab"
    ]
    registry = discover(tuple(files))
    assert [broken.distribution for broken in registry.plugins.broken] == ["mine.py"]
    assert word(registry) == "a"


def test_other_code_does_not_see_the_files_beside_a_plugin(tmp_path):
    file = write(tmp_path, {"mine.py": text("import mybody"), "mybody.py": "WORD = 1"})
    assert discover((file,)).plugins.broken == []
    with pytest.raises(ModuleNotFoundError):
        __import__("mybody")
    assert str(tmp_path) not in sys.path


def test_a_folder_that_holds_this_package_is_not_imported_twice(tmp_path):
    file = write(tmp_path, {"mine.py": text(), "robflat_bench/__init__.py": "raise RuntimeError('a second copy')"})
    assert discover((file,)).plugins.broken == []


def test_files_that_import_each_other_and_the_plugin(tmp_path):
    files = {"mine.py": text("HEARD = []\nimport mybody", "assert HEARD == ['mybody']")}
    files |= {"mybody.py": "import mine, other\nWORD = 'w'\nmine.HEARD.append('mybody')", "other.py": "import mybody"}
    file = write(tmp_path, files)
    registry = discover((file,))
    assert registry.plugins.broken == []
    assert word(registry) == "w"
    assert len(source(file)) == 64


def test_a_file_beside_that_is_broken_is_a_broken_plugin(tmp_path, command):
    file = write(tmp_path, {"mine.py": text("import mybody"), "mybody.py": "1 +"})
    done = command("list", "methods", "--plugin", file)
    assert done.code == 4
    assert "plugin mine.py file (mine) is broken: SyntaxError" in done.complaint


def test_a_run_has_a_new_key_when_a_file_beside_its_plugin_changes(tmp_path, command):
    keys = set()
    for new in ("one", "two"):
        file = write(tmp_path, {"mine.py": text("import mybody"), "mybody.py": f"WORD = {new!r}"})
        plan = command("run", "--method", "mine", "--plan", "--json", "--store", tmp_path, "--plugin", file)
        keys.add(plan.document["key"])
    assert len(keys) == 2
