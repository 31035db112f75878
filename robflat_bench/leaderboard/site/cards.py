"""Method cards: what a reader wants to know of a method before its numbers: paper, equation, parameters, how to get it.

All of it comes from the catalogue and from the opening of the docstring where the component's code lies, which is read
as text: no component is imported for it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from pydantic_core import PydanticUndefined

from robflat_bench.core import Info, RobflatError
from robflat_bench.registry.components import Component, compose
from robflat_bench.registry.registry import Offer, Registry


class Part(NamedTuple):
    """One component of a method. equation: the opening of its docstring; notes: the rest; parameters: name, value,
    default; about: what the parameters mean; provider: the plugin it comes from."""

    name: str
    kind: str
    summary: str
    citation: str
    equation: str
    notes: str
    parameters: tuple[tuple[str, str, str], ...]
    about: str
    provider: str
    bibtex: str


Card = tuple[Part, ...]


def method_card(registry: Registry, method: str) -> Card:
    """The parts of a canonical method text; none where its plugin is not here."""
    try:
        return tuple(_part(member) for member in compose(registry, method).members)
    except RobflatError:
        return ()


def _part(component: Component) -> Part:
    info, provider = component.info, component.offer.provider
    equation, notes = opening(docstring(component.offer))
    fields = type(component.params).model_fields
    values = component.params.model_dump()
    return Part(
        name=info.name,
        kind=info.kind,
        summary=info.summary,
        citation=info.citation,
        equation=equation,
        notes=notes,
        parameters=tuple((key, _written(values[key]), _written(field.get_default())) for key, field in fields.items()),
        about=" ".join((type(component.params).__doc__ or "").split()) if fields else "",
        provider="" if provider.built_in else f"{provider.distribution} {provider.version}",
        bibtex=bibtex(info),
    )


def _written(value: Any) -> str:
    return "" if value is None or value is PydanticUndefined else str(value)


def docstring(offer: Offer) -> str:
    """The docstring of the module that a factory names, or of the class where the module has none; read, not run."""
    module, _, name = offer.info.factory.partition(":")
    if offer.provider.version == "file" and offer.provider.module is not None:
        origin = offer.provider.module.__file__
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return ""
        origin = spec.origin if spec else None
    if not origin or not origin.endswith(".py"):
        return ""
    try:
        tree = ast.parse(Path(origin).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    own = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)
    return ast.get_docstring(tree) or next((ast.get_docstring(node) or "" for node in own), "")


def opening(text: str) -> tuple[str, str]:
    """The first paragraph with those that it cannot end without, indented or after a comma, and the rest."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    count = 1
    while count < len(paragraphs) and (paragraphs[count].startswith("    ") or paragraphs[count - 1].endswith(",")):
        count += 1
    return "\n\n".join(paragraphs[:count]), "\n\n".join(paragraphs[count:])


_CITATION = re.compile(
    r"(?P<authors>[^:]+): (?P<title>.+?[!?]?)\.? "
    r"(?:arXiv (?P<eprint>\d{4}\.\d{4,5})(?:, \d{4})?|(?P<venue>[^., ]+) (?P<year>(?:19|20)\d\d))"
)


def bibtex(info: Info) -> str:
    """An entry made of the citation; nothing where it is not `Authors: Title. Venue Year`."""
    match = _CITATION.fullmatch(info.citation.strip().rstrip("."))
    if match is None:
        return ""
    found = {key: re.sub(r"[{}\\@]", "", value or "").strip() for key, value in match.groupdict().items()}
    year = found["year"] or f"20{found['eprint'][:2]}"
    authors = found["authors"].replace(" et al.", ", others").replace(", ", " and ")
    first = re.sub(r"[^a-z]", "", authors.split(" and ")[0].split()[-1].lower())
    kind = "misc" if found["eprint"] else "inproceedings"
    rows = {"title": f"{{{found['title']}}}", "author": authors, "year": year}
    rows |= {"eprint": found["eprint"], "archivePrefix": "arXiv"} if found["eprint"] else {"booktitle": found["venue"]}
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in rows.items())
    return f"@{kind}{{{first}{year}{info.name},\n{lines}\n}}"


# ---------------------------------------------------------------------------------------------------------
# Equations: the docstrings' plain TeX as marked-up text
# ---------------------------------------------------------------------------------------------------------

_LETTERS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "kappa": "κ", "lambda": "λ"},
    **{"mu": "μ", "nu": "ν", "xi": "ξ", "phi": "φ", "rho": "ρ", "sigma": "σ", "tau": "τ", "theta": "θ", "Pi": "Π"},
    **{"ell": "ℓ", "infty": "∞", "nabla": "∇", "sqrt": "√", "odot": "⊙", "cdot": "·", "times": "×"},
}
_SIGNS = {"<=": "≤", ">=": "≥", "!=": "≠", "<-": "←", "||": "‖", "...": "…"}
_TOKEN = re.compile(
    r"\\bar (?P<bar>[A-Za-z])|\\(?P<macro>[A-Za-z]+)|(?P<sign><=|>=|!=|<-|\|\||\.\.\.)"
    r"|(?<=[A-Za-z0-9)}'|])(?P<script>[_^])(?=[A-Za-z0-9{(\\-])|(?P<word>\b(?:eps|nu|inf|xi)(?![A-Za-z0-9]))"
)
_WORDS = r"arg ?max|arg ?min|max|min|mean|sum|log|clip|nu|eps|xi"
_UNDER = re.compile(rf"(?:^|[^A-Za-z])(?:[A-Za-z0-9]|\\[A-Za-z]+|{_WORDS})$|[)}}'|]$")
_ARGUMENT = re.compile(r"\\[A-Za-z]+|-?[A-Za-z0-9]+")


def equation(text: str) -> Markup:
    """Greek letters, relations, sub- and superscripts of the docstrings' notation; all else stays as it is."""
    made, at = Markup(""), 0
    while match := _TOKEN.search(text, at):
        made += escape(text[at : match.start()])
        at = match.end()
        if match["bar"]:
            made += f"{match['bar']}\u0304"
        elif match["macro"]:
            made += escape(_LETTERS.get(match["macro"], match[0]))
        elif match["sign"]:
            made += _SIGNS[match["sign"]]
        elif match["word"]:
            made += {"eps": "ε", "nu": "ν", "inf": "∞", "xi": "ξ"}[match["word"]]
        elif not _UNDER.search(text[: match.start()][-40:]):
            made += match["script"]
        else:
            inner, at = _argument(text, at)
            made += Markup("<{0}>{1}</{0}>").format("sub" if match["script"] == "_" else "sup", equation(inner))
    return made + escape(text[at:])


def _argument(text: str, at: int) -> tuple[str, int]:
    """What a script raises or lowers, from `at` on, and where it ends: a group in brackets, or a word."""
    if text[at] not in "{(":
        match = _ARGUMENT.match(text, at)
        return (match[0], match.end()) if match else ("", at)
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return (text[at + 1 : end] if text[at] == "{" else text[at : end + 1]), end + 1
    return text[at:], len(text)
