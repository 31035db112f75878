"""The packages under plugins/ stand where a stranger's would: on `robflat_bench.api` alone."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in (REPOSITORY / "plugins").glob("*/pyproject.toml"))
ROOT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))


def imported(file: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    tree = ast.walk(ast.parse(file.read_text("utf-8")))
    names: set[str] = set()
    for node in tree:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_imports_the_api_only(package):
    module = package.name.replace("-", "_")
    files = sorted((package / module).rglob("*.py"))
    assert files
    core = {(file.name, name) for file in files for name in imported(file) if name.split(".")[0] == "robflat_bench"}
    assert {name for _, name in core} == {"robflat_bench.api"}, core


def undescribed(file: Path) -> list[str]:
    """Parameters of a file's classes `...Params` that are declared without `Field(description=...)`."""
    classes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    fields = [
        (made.name, node)
        for made in classes
        for node in made.body
        if made.name.endswith("Params") and isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.dump(node)
    ]
    return [
        f"{name}.{ast.unparse(node.target)}"
        for name, node in fields
        if not (isinstance(node.value, ast.Call) and "description" in {word.arg for word in node.value.keywords})
    ]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_parameter_of_a_package_has_a_description(package):
    module = package.name.replace("-", "_")
    assert not [name for file in (package / module).glob("*.py") for name in undescribed(file)]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_is_a_member_and_an_extra(package):
    own = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))
    name = own["project"]["name"]
    assert name == package.name
    assert f"plugins/{name}" in ROOT["tool"]["uv"]["workspace"]["members"]
    assert ROOT["project"]["optional-dependencies"][name.removeprefix("robflat-")] == [name]
    assert any(item.startswith("robflat-bench>=") and "<" in item for item in own["project"]["dependencies"])
    assert own["dependency-groups"]["dev"]
    readme = (package / "README.md").read_text("utf-8")
    assert f"./plugins/{name}" in readme, "how to install it from a clone"
    assert list((package / "tests").glob("test_*.py"))
