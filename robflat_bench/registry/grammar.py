"""The grammar of components: `name`, `name(key=value, ...)`, `method+modifier+modifier`, split into names and values.

Values are TOML scalars and lists, fractions (8/255) and bare words. `components` finds the components that they name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from robflat_bench.core import UsageError, parse_fraction

_SPEC = re.compile(r"\s*(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\((?P<arguments>.*)\))?\s*", re.DOTALL)
_KEY = re.compile(r"\s*(?P<key>[a-z_][a-z0-9_]*)\s*=(?P<value>.*)", re.DOTALL)
_BARE = re.compile(r"[A-Za-z_][\w.:-]*")
_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|.""", re.DOTALL)
"""A quoted string, or one character."""


def parse(text: str, parameters: Callable[[str], Sequence[str]] = lambda name: ()) -> tuple[str, dict[str, Any]]:
    """Split a component's text into its name and its values: 'trades(beta=6)' -> ('trades', {'beta': 6}).

    Parameters
    ----------
    text : str
        `name` or `name(key=value, ...)`.
    parameters : callable
        The parameters of a name, for the error of a value without its key.

    Raises
    ------
    UsageError
        The text does not follow the grammar.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r:.100} is no text; write name or name(key=value, ...), e.g. 'trades(beta=6)'")
    match = _SPEC.fullmatch(text)
    if match is None:
        lower = text.strip().lower()
        if _SPEC.fullmatch(lower):
            raise UsageError(f"'{text}' is not a component: names are in lower case; did you mean '{lower}'?")
        raise UsageError(f"'{text}' is not a component: write name or name(key=value, ...), e.g. 'trades(beta=6)'")
    values: dict[str, Any] = {}
    for argument in split(match["arguments"] or "", ",", text):
        pair = _KEY.fullmatch(argument)
        if pair is None:
            keys = parameters(match["name"])
            example = f"'{match['name']}({keys[0] if keys else 'key'}={argument.strip().removeprefix('=')})'"
            known = f"; its parameters are {', '.join(keys)}" if keys else ""
            raise UsageError(f"'{text}': a value needs its parameter's name, e.g. {example}{known}")
        if pair["key"] in values:
            raise UsageError(f"'{text}': parameter '{pair['key']}' is given twice")
        values[pair["key"]] = parse_value(pair["value"].strip(), text)
    return match["name"], values


def parse_value(text: str, context: str) -> Any:
    """One value, read as TOML, else as a fraction, else as a bare word; an error quotes `context`."""
    try:
        value, _ = tomllib.loads(f"value = [{text}, 0]")["value"]  # in a list no comment or second key can follow
        return value
    except (ValueError, RecursionError):  # not TOML, or more digits or brackets than Python reads
        value = parse_fraction(text)
        if isinstance(value, float) or _BARE.fullmatch(text):
            return value
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"'{context}': cannot read the value '{text}'; put strings in quotes") from None


def split(text: str, separator: str, context: str) -> list[str]:
    """The pieces of a text between separators that lie outside brackets and quotes; an error quotes `context`."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in "([{") - (token in ")]}")
        if depth < 0 or token in "'\"":
            break
        if token == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    else:
        if depth == 0:
            return parts if text.strip() else []
    raise UsageError(f"'{context}': brackets or quotes do not match")


def members(text: str) -> list[str]:
    """Split 'method+modifier' into ['method', 'modifier'], each as it is written."""
    return split(text, "+", text) or [text]
