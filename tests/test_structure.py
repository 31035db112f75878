"""The house rules that a number can hold: short files, short functions, no circle, nothing loose at the top."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY
from structure import PACKAGE, circles, functions

import robflat_bench

FILES = sorted((REPOSITORY / PACKAGE).rglob("*.py"))
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
LONGEST_FOR_USERS = 95
"""Of the functions of `import robflat_bench as rb`, whose docstrings are their reference."""


def test_no_file_is_too_long_to_read_in_one_go():
    long = {str(file): length for file in FILES if (length := len(file.read_text("utf-8").splitlines())) > LONGEST_FILE}
    assert not long


def test_no_function_outgrows_a_screen():
    long = {
        name.removeprefix(f"{REPOSITORY}/"): length
        for file in FILES
        for length, name in functions(file)
        if length > (LONGEST_FOR_USERS if _is_for_users(file, name) else LONGEST_FUNCTION)
    }
    assert not long


def _is_for_users(file: Path, name: str) -> bool:
    return file.parent.name == "front" and name.rpartition(":")[2] in robflat_bench.__all__


def test_modules_import_each_other_in_no_circle():
    grimp = pytest.importorskip("grimp")
    _, found = circles(grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None))
    assert found == []


def test_only_the_front_door_and_the_api_lie_outside_rooms():
    assert {file.name for file in (REPOSITORY / PACKAGE).glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


@pytest.mark.parametrize("room", [path.name for path in sorted((REPOSITORY / PACKAGE).iterdir()) if path.is_dir()])
def test_every_room_says_what_it_is_for(room):
    entry = Path(REPOSITORY / PACKAGE / room / "__init__.py")
    assert not entry.exists() or ast.get_docstring(ast.parse(entry.read_text("utf-8")))
