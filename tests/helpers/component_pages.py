"""Pages of docs/reference that list every built-in component of a kind, written from the catalogue."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from robflat_bench.core import Kind
from robflat_bench.leaderboard.site.cards import docstring, opening
from robflat_bench.registry.describe import describe_component, written
from robflat_bench.registry.registry import KINDS, Registry

EQUATIONS: tuple[Kind, ...] = ("method", "modifier", "attack", "measure")
"""Kinds whose component is one file that opens with its equation."""
LINKS = {
    r"arXiv (\d{4}\.\d{4,5})": r"[\g<0>](https://arxiv.org/abs/\1)",
    r"doi (10\.\d{4,}/[^\s;,]+)": r"[\g<0>](https://doi.org/\1)",
    r"OpenReview ([\w-]{8,})": r"[\g<0>](https://openreview.net/forum?id=\1)",
}
"""What a citation says of a paper's place -> a link."""
FACTS = {
    "method": ("claims", "helpers", "untrained"),
    "modifier": ("joints", "helpers"),
    "measure": ("couplings", "unchanged by rescaled", "moved by c rescaling"),
}
"""Kind -> declared properties that its page shows."""


def page(registry: Registry, kind: Kind) -> str:
    """Every component of a kind."""
    parts = [part for name in registry.names(kind) for part in (f"## `{name}`", *_parts(registry, kind, name))]
    return "\n\n".join(parts)


def _parts(registry: Registry, kind: Kind, name: str) -> Iterator[str]:
    row = describe_component(registry, kind, name)
    equation, notes = opening(docstring(registry.get(kind, name))) if kind in EQUATIONS else ("", "")
    paragraphs = [_block(equation)] if kind in ("method", "modifier") else [*map(_paragraph, equation.split("\n\n"))]
    if not equation or paragraphs[0].startswith("```"):  # else the first paragraph says what the summary says
        yield f"{row['summary'][0].upper()}{escaped(row['summary'][1:])}."
    yield from paragraphs if equation else ()
    told = row["citation"]
    yield from (_paragraph(text) for text in notes.split("\n\n") if text and not told.startswith(text.rstrip(".\n")))
    if row["parameters"]:
        yield _table(row["parameters"])
    facts = [(key, row[key]) for key in FACTS.get(kind, ()) if row.get(key)]
    facts += [(key, value) for key, value in row.items() if key.startswith("passes") or key == "loss evaluations"]
    facts += [("citation", row["citation"])] if row["citation"] else []
    if facts:
        yield "\n".join(f"- {key}: {linked(value) if key == 'citation' else escaped(value)}" for key, value in facts)


def _table(parameters: list[dict[str, Any]]) -> str:
    rows = ["| parameter | type | default | range | description |", "|---|---|---|---|---|"]
    for parameter in parameters:
        texts = map(_cell, (parameter["range"], parameter["description"]))
        default = written(parameter["default"]) or '""'
        cells = [f"`{parameter['name']}`", parameter["type"], f"`{default}`", *texts]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """One line, in which no bar ends a cell: a table reads bars in code, too."""
    return re.sub(r"(?<!\\)\|", r"\\|", escaped(" ".join(text.split())))


def _paragraph(text: str) -> str:
    """A paragraph of a docstring; indented lines are an equation."""
    return _block(inspect.cleandoc(text)) if text.startswith("    ") else escaped(text)


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


def escaped(text: str) -> str:
    """Plain text as Markdown that shows the same characters; `code` stays code."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if place % 2 else _escape(part) for place, part in enumerate(parts))


def _escape(text: str) -> str:
    """Backslashes before the characters that Markdown, and a table in it, reads as markup."""
    text = re.sub(r"([\\*_|<>\[\]~&])", r"\\\1", text)
    return re.sub(r"(?m)^(\s*)([#+=-])", r"\1\\\2", text)


def linked(citation: str) -> str:
    """A citation with its identifiers as links."""
    text = escaped(citation)
    for pattern, link in LINKS.items():
        text = re.sub(pattern, link, text)
    return text


PAGES: dict[str, Kind] = {f"{kind}s": kind for kind in KINDS}
"""Page -> the kind that it lists."""
