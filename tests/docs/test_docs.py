"""The pages agree with records and code: the table of measures, hooks, names of the api, checks, keys of TOML files.

After new records, hooks or docstrings, generate the pages again:    uv run python tests/docs/test_docs.py
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel

from robflat_bench import api
from robflat_bench.config import protocol, study
from robflat_bench.config.recipe import Recipe
from robflat_bench.core import Kind, params
from robflat_bench.core import hooks as markers
from robflat_bench.registry import hookspecs
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import KINDS, Registry, discover
from robflat_bench.testing import CHECKS

sys.path.append(str(Path(__file__).parents[1]))  # run as a script, Python finds this folder only
from helpers import component_pages

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = DOCS / "reference"
MEASURES = DOCS / "measures.md"
NETWORK = ("trades", "trades-more")
"""Records of one network: of the page's first table, and of its second."""
LONGEST = 150
"""Lines of a page written by hand."""
HEAD = "| measure | coupling | AT | TRADES | n | s | image passes |\n|---|---|---|---|---|---|---|\n"


def results(name: str) -> dict[str, Any]:
    """Measure -> its result, from the evaluation record of one network."""
    (result,) = json.loads((DOCS / "measures" / f"{name}.json").read_text())["results"].values()
    return result["measures"]


def written(found: dict[str, Any]) -> str:
    """Value with its standard error, else its residual."""
    if found["value"] is None:
        return f"none: {found['reason']}"
    style = ".3f" if found["value"] == 0 or 0.01 <= abs(found["value"]) < 10_000 else ".2e"
    text = format(found["value"], style)
    if found["standard_error"] is not None:
        return f"{text} ± {found['standard_error']:{style}}"
    residual = found["details"].get("residual")
    return text if residual is None else f"{text} (residual {residual:.0e})"


def table(registry: Registry) -> str:
    """A row for each measure and coupling; seconds and passes were counted on the second network."""
    at, trades = results("at"), results("trades")
    assert at.keys() == trades.keys()
    lines = []
    for text, other in trades.items():
        measure = resolve(registry, "measure", text)
        coupling = getattr(measure.params, "coupling", None) or ", ".join(measure.info.couplings) or "none"
        passes = f"{other['forward']:,} + {other['backward']:,}"
        cells = [f"`{measure.name}`", coupling, written(at[text]), written(other)]
        lines.append("| " + " | ".join([*cells, str(other["n"]), f"{other['seconds']:.1f}", passes]) + " |\n")
    return HEAD + "".join(lines)


def test_the_table_of_measures_agrees_with_its_records(registry):
    assert table(registry) in MEASURES.read_text("utf-8")


def test_the_rows_of_later_measures_agree_with_their_record_of_the_same_network(registry):
    records = [json.loads((DOCS / "measures" / f"{name}.json").read_text())["results"] for name in NETWORK]
    (first,), (later,) = (found.values() for found in records)
    assert first["weights"] == later["weights"]
    for text, found in later["measures"].items():
        measure = resolve(registry, "measure", text)
        coupling = getattr(measure.params, "coupling", measure.info.couplings[0])
        passes = f"{found['forward']:,} + {found['backward']:,}"
        value = written({**found, "details": {}})
        row = (
            rf"\| `{measure.name}` \| {coupling} \| .* \| {re.escape(value)} \| {found['n']} \| {re.escape(passes)} \|"
        )
        assert re.search(row, MEASURES.read_text("utf-8")), text


def test_the_table_names_measures_that_exist(registry):
    named = set(re.findall(r"^\| `([a-z-]+)` \|", MEASURES.read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= set(registry.names("measure"))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_is_short(page):
    assert len(page.read_text("utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("kind", ["method", "modifier"])
def test_every_method_and_modifier_is_named(registry, kind):
    text = (DOCS / "methods.md").read_text("utf-8")
    assert not [name for name in registry.names(kind) if f"`{name}`" not in text]


# ---------------------------------------------------------------------------------------------------------
# reference/: hooks, api, conformance kit and the components of each kind are written from the code
# ---------------------------------------------------------------------------------------------------------


def hooks() -> str:
    """Every hook under its group's heading: signature as in the code, docstring, example."""
    source = inspect.getsource(hookspecs)
    banners = re.finditer(r"^# -{20,}\n((?:# .*\n)+)# -{20,}\n", source, re.MULTILINE)
    parts = {source[: found.start()].count("\n"): _group(found[1]) for found in banners}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            assert node.returns
            text, _, example = (ast.get_docstring(node) or "").partition("\n\nExample::\n\n")
            signature = f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
            shown = f"```python\n{inspect.cleandoc(example)}\n```"
            parts[node.lineno] = f"### `{node.name}`\n\n```python\n{signature}\n```\n\n{_markdown(text)}\n\n{shown}\n\n"
    return "".join(part for _, part in sorted(parts.items()))


def _markdown(docstring: str) -> str:
    """A docstring with numpydoc's sections as bold titles and their entries as lists."""
    head, *sections = re.split(r"(?m)^([A-Z]\w+)\n-{3,}\n", docstring)
    parts = [head]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        entries = re.sub(r"(?m)^(\S.*)\n((?: {4,}.*\n?)+)", _entry, body)
        parts.append(f"**{title}**\n\n{entries.strip()}\n\n")
    return "".join(parts).strip()


def _entry(found: re.Match[str]) -> str:
    name, _, kind = found[1].partition(" : ")
    return f"- `{name}`{f' ({kind})' if kind else ''}: {' '.join(found[2].split())}\n"


def _group(banner: str) -> str:
    """The lines of a comment as a heading and the text below it."""
    title, about = re.fullmatch(r"([\w ]+)[:.]?\s*(.*)", re.sub(r"(?m)^# ", "", banner).strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    return f"## {title}\n\n" + (f"{about[0].upper()}{about[1:]}\n\n" if about else "")


def names() -> str:
    """Every name of the api with the first sentence of its docstring."""
    constants = {**_constants(markers), **_constants(params), **_constants(api)}
    rows = []
    for name in sorted(api.__all__, key=str.lower):
        value = getattr(api, name)
        told = constants[name] if name in constants else inspect.getdoc(value) or ""
        sentence = re.split(r"(?<=[^.][.])\s+(?=[A-Z`])|\n\n", told, maxsplit=1)[0]
        cell = " ".join(sentence.split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {cell} |\n")
    return "| name | what it is |\n|---|---|\n" + "".join(rows)


def _constants(module: Any) -> dict[str, str]:
    """Name -> the string below its assignment."""
    body = ast.parse(inspect.getsource(module)).body
    return {
        node.targets[0].id: told.value.value
        for node, told in itertools.pairwise(body)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(told, ast.Expr) and isinstance(told.value, ast.Constant) and isinstance(told.value.value, str)
    }


def checks() -> str:
    """Every check of the kit with its docstring: the checks of all kinds first, then those of each kind."""
    common = [check for check in CHECKS["method"] if all(check in others for others in CHECKS.values())]
    parts = {"Every component": common}
    parts |= {kind.capitalize(): [c for c in found if c not in common] for kind, found in CHECKS.items()}
    return "".join(f"## {title}\n\n{''.join(map(_promise, found))}\n" for title, found in parts.items())


def _promise(check: Any) -> str:
    return f"- `{check.__name__.removeprefix('check_')}`: {' '.join((inspect.getdoc(check) or '').split())}\n"


def components(kind: Kind) -> str:
    """Every built-in component of a kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        return component_pages.page(discover(), kind)


GENERATED: dict[str, Callable[[], str]] = {
    **{"hooks": hooks, "api": names, "conformance-kit": checks},
    **{f"{kind}s": partial(components, kind) for kind in KINDS},
}
"""Page of the reference -> what stands between its markers."""


def generated(name: str) -> str:
    """The page with the text between its markers written from the code."""
    text, count = re.subn(
        r"(?s)(<!-- generated -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{GENERATED[name]().strip()}\n\n{found[2]}",
        _page(name),
    )
    assert count == 1, name
    return text


def _page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_page_agrees_with_the_code(name):
    assert generated(name) == _page(name), "generate it again: uv run python tests/docs/test_docs.py"


def test_every_hook_and_every_name_is_there():
    """The generator leaves none out."""
    specified = {name for name, value in vars(hookspecs).items() if hasattr(value, "robflat_bench_spec")}
    assert specified == set(re.findall(r"^### `(\w+)`$", _page("hooks"), re.MULTILINE))
    assert set(api.__all__) == set(re.findall(r"^\| `(\w+)` \| .+ \|$", _page("api"), re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_and_every_parameter_is_there(registry, kind):
    sections = dict(re.findall(r"(?ms)^## `([\w-]+)`\n(.*?)(?=^## |\Z)", _page(f"{kind}s")))
    assert list(sections) == list(registry.names(kind))
    for name, text in sections.items():
        fields = registry.get(kind, name).info.params.model_fields
        assert list(fields) == re.findall(r"(?m)^\| `(\w+)` \| \S.* \| `.+` \| .*\| \S.* \|$", text), name
        assert kind not in ("method", "measure") or "```text\n" in text, f"{name} lacks its equation"


def shown(markdown: str) -> str:
    """The text that a reader of a rendered page sees, without line breaks."""
    page = HTMLParser(convert_charrefs=True)
    seen: list[str] = []
    page.handle_data = seen.append  # type: ignore[method-assign]
    page.feed(MarkdownIt().enable("table").render(markdown))
    return " ".join("".join(seen).split())


@pytest.mark.parametrize(
    "text",
    [
        "a | b `c | d` <b>e</b> &lt; *f* __g__ ~~h~~ [i](j) ![k](l) \\nu \\\\ <https://m.n> # o",
        "# no heading",
        "- no list",
        "+ no list",
        "w_i and w_j, |w_i| * |w_j|, [0,1], E_{u}[ L(w + u) ] <= 1",
    ],
)
def test_plain_text_keeps_its_characters_on_a_page(text):
    plain = text.replace("`", "")
    assert shown(component_pages.escaped(text)) == plain
    table = f"| a |\n|---|\n| {component_pages._cell(text)} |"
    assert shown(table).removeprefix("a").strip() == plain


def test_every_description_reads_on_its_page_as_in_the_code(registry):
    for kind in KINDS:
        page = shown(_page(f"{kind}s"))
        for name in registry.names(kind):
            info = registry.get(kind, name).info
            assert info.citation in page
            for field in info.params.model_fields.values():
                assert " ".join((field.description or "").replace("`", "").split()) in page, (name, field)


@pytest.mark.parametrize(
    ("citation", "link"),
    [
        ("A: B. arXiv 1803.06373, 2018", "[arXiv 1803.06373](https://arxiv.org/abs/1803.06373)"),
        (
            "A: B. 2019, doi 10.5281/zenodo.4414861",
            "[doi 10.5281/zenodo.4414861](https://doi.org/10.5281/zenodo.4414861)",
        ),
        ("A: B. ICLR 2020, OpenReview rklOg6EFwS", "(https://openreview.net/forum?id=rklOg6EFwS)"),
    ],
)
def test_a_citation_links_to_its_paper(citation, link):
    assert link in component_pages.linked(citation)
    assert shown(component_pages.linked(citation)) == citation


@pytest.mark.parametrize("kind", component_pages.EQUATIONS)
def test_every_paper_has_a_link(registry, kind):
    cited = [registry.get(kind, name).info.citation for name in registry.names(kind)]
    assert not [text for text in cited if text and "](https://" not in component_pages.linked(text)]


# ---------------------------------------------------------------------------------------------------------
# reference/protocol-keys.md, glossary.md: written by hand, complete
# ---------------------------------------------------------------------------------------------------------

KEYS = "| key | default | what it is |\n|---|---|---|\n"
MODELS: tuple[type[BaseModel], ...] = (
    protocol._File,
    protocol.Fixed,
    protocol.Data,
    protocol.Slice,
    protocol.ThreatModel,
    protocol.Selection,
    protocol.Attacked,
    protocol.Measured,
    Recipe,
    study.Study,
    study.Group,
)
"""The models whose keys the page explains, in its order."""


def keys(model: type[BaseModel]) -> dict[str, str]:
    """Key -> its default as TOML, `required` or `none`."""

    def default(field: Any) -> str:
        if field.is_required():
            return "required"
        value = field.get_default(call_default_factory=True)
        return "none" if value is None else f"`{json.dumps(value)}`"

    return {name: default(field) for name, field in model.model_fields.items()}


def test_every_key_of_a_protocol_and_a_study_is_explained():
    tables = _page("protocol-keys").split(KEYS)[1:]
    for model, text in zip(MODELS, tables, strict=True):
        rows = text.partition("\n\n")[0]
        assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", rows, re.MULTILINE)) == keys(model), model


def test_the_glossary_is_in_order():
    terms = re.findall(r"^\| \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    assert terms == sorted(terms)
    assert len(terms) > 50


def test_the_architecture_names_every_room():
    rows = re.findall(r"^\| `(\w+)` \| ", (DOCS / "architecture.md").read_text("utf-8"), re.MULTILINE)
    assert set(rows) == {path.parent.name for path in Path(api.__file__).parent.glob("*/*.py")}


if __name__ == "__main__":
    for name in GENERATED:
        (REFERENCE / f"{name}.md").write_text(generated(name), "utf-8")
    page = MEASURES.read_text("utf-8")
    body = re.escape(HEAD) + r"(?:\|.*\n)*"
    MEASURES.write_text(re.sub(body, lambda _: table(discover()), page), "utf-8")
