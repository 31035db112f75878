"""Tables of the documentation are those of the records committed beside it.

Write them anew after new records:    uv run python tests/test_docs.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from robflat_bench.components import resolve
from robflat_bench.registry import Registry, discover

DOCS = Path(__file__).parent.parent / "docs"
MEASURES = DOCS / "measures.md"
HEAD = "| measure | coupling | AT | TRADES | n | s | image passes |\n|---|---|---|---|---|---|---|\n"


def results(name: str) -> dict[str, Any]:
    """Of every measure, from the evaluation record of one network."""
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
    """A row for each measure and coupling; seconds and passes are those of the second network."""
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


def test_the_table_of_measures_is_that_of_its_records(registry):
    assert table(registry) in MEASURES.read_text("utf-8")


def test_every_measure_is_in_the_table(registry):
    named = set(re.findall(r"^\| `([a-z-]+)` \|", MEASURES.read_text("utf-8"), re.MULTILINE))
    assert named == set(registry.names("measure"))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_what_a_page_shows_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), target


if __name__ == "__main__":
    page = MEASURES.read_text("utf-8")
    body = re.escape(HEAD) + r"(?:\|.*\n)*"
    MEASURES.write_text(re.sub(body, lambda _: table(discover()), page), "utf-8")
