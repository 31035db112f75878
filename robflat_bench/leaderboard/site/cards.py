"""Method cards: paper, equation, parameters and source of a method and its modifiers, shown above its numbers.

They come from the catalogue and from the opening of the component's docstring. The docstring is read as text, so no
component is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from pydantic_core import PydanticUndefined

from robflat_bench.core import RobflatError
from robflat_bench.leaderboard.site.cite import bibtex
from robflat_bench.registry.components import Component, compose
from robflat_bench.registry.registry import Offer, Registry


class CardParameter(NamedTuple):
    """A parameter of a component, as text."""

    name: str
    value: str
    default: str
    description: str


class CardPart(NamedTuple):
    """One component of a method.

    Attributes
    ----------
    equation, notes : the opening of its docstring, and the rest.
    about : the docstring of its parameters.
    provider : distribution and version of the plugin it comes from; "" for a built-in.
    bibtex : the entries of the works that it cites.
    """

    name: str
    kind: str
    summary: str
    citation: str
    equation: str
    notes: str
    parameters: tuple[CardParameter, ...]
    about: str
    provider: str
    bibtex: tuple[str, ...]


Card = tuple[CardPart, ...]


def method_card(registry: Registry, method: str) -> Card:
    """The parts of a canonical method text; () where its plugin is not installed."""
    try:
        return tuple(_part(member) for member in compose(registry, method).members)
    except RobflatError:
        return ()


def _part(component: Component) -> CardPart:
    info, provider = component.info, component.offer.provider
    params = type(component.params)
    equation, notes = opening(docstring(component.offer))
    values = component.params.model_dump()
    return CardPart(
        name=info.name,
        kind=info.kind,
        summary=info.summary,
        citation=info.citation,
        equation=equation,
        notes=notes,
        parameters=tuple(
            CardParameter(name, _text(values[name]), _text(field.get_default()), field.description or "")
            for name, field in params.model_fields.items()
        ),
        about=" ".join((params.__doc__ or "").split()) if params.model_fields else "",
        provider="" if provider.built_in else f"{provider.distribution} {provider.version}",
        bibtex=bibtex(info.citation),
    )


def _text(value: Any) -> str:
    return "" if value is None or value is PydanticUndefined else str(value)


def docstring(offer: Offer) -> str:
    """The docstring of a factory's module, or of the factory where the module has none; "" without a source file."""
    module, _, name = offer.info.factory.partition(":")
    try:
        if offer.provider.version == "file" and offer.provider.module is not None:
            origin = offer.provider.module.__file__
        else:
            spec = importlib.util.find_spec(module)
            origin = spec.origin if spec else None
        tree = ast.parse(Path(origin or "").read_text("utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return ""
    own = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)
    return ast.get_docstring(tree) or next((ast.get_docstring(node) or "" for node in own), "")


def opening(text: str) -> tuple[str, str]:
    """The first paragraph of a docstring, and the rest. Paragraphs that continue the first one, indented or after a
    comma, belong to it."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    count = 1
    while count < len(paragraphs) and (paragraphs[count].startswith("    ") or paragraphs[count - 1].endswith(",")):
        count += 1
    return "\n\n".join(paragraphs[:count]), "\n\n".join(paragraphs[count:])


# ---------------------------------------------------------------------------------------------------------
# Equations: from the docstrings' plain TeX to HTML
# ---------------------------------------------------------------------------------------------------------

_LETTERS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "kappa": "κ", "lambda": "λ"},
    **{
        "mu": "μ",
        "nu": "ν",
        "xi": "ξ",
        "phi": "φ",
        "rho": "ρ",
        "sigma": "σ",
        "tau": "τ",
        "theta": "θ",
        "omega": "ω",
        "Pi": "Π",
    },
    **{"omega": "ω", "ell": "ℓ", "infty": "∞", "nabla": "∇", "sqrt": "√", "odot": "⊙", "cdot": "·", "times": "×"},
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
    """Greek letters, relations, subscripts and superscripts as HTML; other text stays as it is."""
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
    """The argument of a subscript or superscript at `at`, a bracketed group or a word, and where it ends."""
    if text[at] not in "{(":
        match = _ARGUMENT.match(text, at)
        return (match[0], match.end()) if match else ("", at)
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return (text[at + 1 : end] if text[at] == "{" else text[at : end + 1]), end + 1
    return text[at:], len(text)
