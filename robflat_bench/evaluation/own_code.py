"""The class or function that makes a network of one's own: found by name without torch, and called."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robflat_bench.core import UsageError
from robflat_bench.core.files import read_regular
from robflat_bench.registry.files import MAX_BYTES
from robflat_bench.registry.validation import did_you_mean


def check_name(name: str) -> None:
    """UsageError unless the text names a Python file or a module that exist, and something in it."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier():
        raise UsageError(f"--model {name}: name the class in it, e.g. --model {name.rstrip(':')}:{_suggested(name)}")
    if not place.endswith(".py"):
        top = place.partition(".")[0]
        if not all(part.isidentifier() for part in place.split(".")) or not _importable(top):
            raise UsageError(
                f"--model {name}: no module '{top:.100}' here or installed; name a file, e.g. "
                f"--model net.py:{attribute}, or go to the folder of the package"
            )
        return
    text = source_text(Path(place), name)
    known = _defined(text)
    if "import *" not in text and not re.search(rf"\b{attribute}\b", text):
        raise UsageError(
            f"--model {name}: {place} defines no '{attribute}'{did_you_mean(attribute, known)}; "
            f"it defines {', '.join(known) or 'no class and no function'}"
        )


def source_text(file: Path, name: str) -> str:
    """The text of a network's file; UsageError unless it is a file of Python."""
    try:
        raw = read_regular(file, MAX_BYTES)
        ast.parse(raw, filename=str(file))
    except OSError as error:
        raise UsageError(f"--model {name}: {file} cannot be read: {error.strerror}; name a file of Python") from None
    except SyntaxError as error:
        raise UsageError(
            f"--model {name}: {file} is not Python (line {error.lineno}: {error.msg}); mend that line"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"--model {name}: {file} is not Python ({error}); name a file of Python") from None
    return raw.decode("utf-8", "replace")


def _defined(text: str) -> list[str]:
    """The classes and functions at the top of a file of Python, the classes first."""
    body = ast.parse(text).body
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for kind in kinds for node in body if isinstance(node, kind) and not node.name.startswith("_")]


def _suggested(name: str) -> str:
    """A class or function of the file, for an example."""
    file = Path(name.rstrip(":"))
    known = _defined(source_text(file, name)) if file.suffix == ".py" else []
    return known[0] if known else "Net"


def _importable(top: str) -> bool:
    """Whether a top-level module exists here or is installed."""
    with beside(Path.cwd()):
        try:
            return importlib.util.find_spec(top) is not None
        except (ImportError, ValueError):
            return False


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """A block in which the modules of a folder can be imported, as for a program in that folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
