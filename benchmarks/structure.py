"""The structure of the package in numbers: `uv run python benchmarks/structure.py [CHECKOUT]`.

Code lines are lines that are neither blank, nor a comment, nor part of a docstring. The import graph counts imports of
modules by modules, function-level ones included and those under TYPE_CHECKING left out; a circle is a set of modules
that reach each other.
"""

from __future__ import annotations

import ast
import collections
import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import numpy as np
from scipy.sparse.csgraph import connected_components

PACKAGE = "robflat_bench"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of docstrings, those below an attribute included."""
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_lines(file: Path) -> set[int]:
    """Lines that hold code."""
    with tokenize.open(file) as opened:
        tokens = list(tokenize.generate_tokens(opened.readline))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    spoken = [token for token in tokens if token.type not in silent]
    lines = {line for token in spoken for line in range(token.start[0], token.end[0] + 1)}
    return lines - docstring_lines(ast.parse(file.read_text("utf-8")))


def functions(file: Path) -> Iterator[tuple[int, str]]:
    """Length in lines, from `def` to the end, docstring included, and name of every function."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, FUNCTIONS):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{file}:{node.name}"


def definitions(file: Path) -> set[str]:
    """Names of classes and public functions at the top of a module; overloads of one function count once."""
    found = [node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, (ast.ClassDef, *FUNCTIONS))]
    return {node.name for node in found if not node.name.startswith("_")}


def circles(graph: Any) -> tuple[int, list[list[str]]]:
    """Number of imports, and the sets of modules that reach each other."""
    modules = sorted(graph.modules)
    place = {name: i for i, name in enumerate(modules)}
    arrows = np.zeros((len(modules), len(modules)), dtype=bool)
    for name in modules:
        for imported in graph.find_modules_directly_imported_by(name):
            arrows[place[name], place[imported]] = True
    _, labels = connected_components(arrows, connection="strong")
    groups = collections.defaultdict(list)
    for name, label in zip(modules, labels, strict=True):
        groups[label].append(name)
    return int(arrows.sum()), [group for group in groups.values() if len(group) > 1]


def structure(checkout: Path) -> dict[str, Any]:
    """All figures of one checkout."""
    files = sorted((checkout / PACKAGE).rglob("*.py"))
    sys.path.insert(0, str(checkout))
    arrows, found = circles(grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None))
    lengths = {str(file.relative_to(checkout)): len(file.read_text("utf-8").splitlines()) for file in files}
    names = collections.Counter(name for file in files for name in definitions(file))
    longest = sorted((row for file in files for row in functions(file)), reverse=True)
    return {
        "code lines": sum(len(code_lines(file)) for file in files),
        "files": len(files),
        "files at the top of the package": len(list((checkout / PACKAGE).glob("*.py"))),
        "longest file": max((length, name) for name, length in lengths.items()),
        "files over 350 lines": sum(length > 350 for length in lengths.values()),
        "longest function": (longest[0][0], longest[0][1].removeprefix(f"{checkout}/")),
        "functions over 60 lines": sum(length > 60 for length, _ in longest),
        "imports between modules": arrows,
        "circles": len(found),
        "modules in circles": found,
        "definitions that share a name": sum(count for count in names.values() if count > 1),
        "shared names": {name: count for name, count in names.most_common() if count > 1},
        "code lines by room": {
            room.name: sum(len(code_lines(file)) for file in room.rglob("*.py"))
            for room in sorted((checkout / PACKAGE).iterdir())
            if room.is_dir() and any(room.rglob("*.py"))
        },
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.stdout.write(json.dumps(structure(checkout), indent=1) + "\n")
