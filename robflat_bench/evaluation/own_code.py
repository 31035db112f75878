"""The class or function that makes a network of one's own: found by name without torch, and called."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import robflat_bench
from robflat_bench.core import UsageError, contained, one_line
from robflat_bench.core.files import read_regular
from robflat_bench.registry.files import MAX_BYTES, hashed, load_file, source_files
from robflat_bench.registry.validation import did_you_mean


def check_name(name: str) -> None:
    """UsageError unless the text names a Python file or a module that exist, and something in it."""
    place, colon, attribute = name.rpartition(":")
    if not colon or not attribute.isidentifier():
        module, dot, last = name.rpartition(".")
        dotted = dot and last != "py" and last[:1].isupper()  # package.module.Class
        example = f"{module}:{last}" if dotted else f"{name.rstrip(':') or 'net.py'}:{_suggested(name)}"
        raise UsageError(f"--model {name}: name the class in it, e.g. --model {example}")
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
def beside(*folders: Path) -> Iterator[None]:
    """A block in which the modules of these folders can be imported, as for a program that lies there."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def make(name: str, arguments: Mapping[str, Any]) -> Any:
    """Call the class or function that a text names, with these arguments.

    Raises
    ------
    UsageError
        The code cannot be imported or raises (the message names the line of the user's code), or it makes nothing new.
    """
    place, _, attribute = name.rpartition(":")
    file = Path(place) if place.endswith(".py") else None
    folders = [*([file.parent.resolve()] if file else []), Path.cwd()]

    def failed(error: BaseException) -> NoReturn:
        raise UsageError(
            f"--model {name}: {one_line(error):.300}{line_of(error)}; {_advice(error, attribute)}"
        ) from error

    with contained(failed), beside(*folders):
        module = load_file(file) if file else importlib.import_module(place)
        found = getattr(module, attribute)
        if not hasattr(type(found), "state_dict"):  # else it is a network, which is callable too
            return found(**arguments)
    raise UsageError(f"--model {name} is a network already; name its class, or a function that returns a new one")


def source_hash(name: str) -> str:
    """SHA-256 of a network's file and of the files beside it that it imports; empty for a module by its name."""
    place = name.rpartition(":")[0]
    return hashed(source_files(Path(place))) if place.endswith(".py") else ""


def _advice(error: BaseException, attribute: str) -> str:
    if isinstance(error, TypeError) and attribute in str(error) and "argument" in str(error):
        return "give its arguments by --model-args NAME=VALUE"
    return "mend that line, or name another class or function"


def line_of(error: BaseException) -> str:
    """` (line 12 of net.py)`: the last line of code that is neither installed nor Python's nor this package's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (line {error.lineno} of {Path(error.filename).name})"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not file.startswith(FOREIGN)]
    return f" (line {own[-1][1]} of {Path(own[-1][0]).name})" if own else ""


FOREIGN = (
    "<frozen",
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(robflat_bench.__file__).parent),
)
"""The beginnings of the files of code that is installed."""
