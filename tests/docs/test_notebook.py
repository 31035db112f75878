"""The notebook's outputs are what its cells print.

After a change, execute it again and write its outputs:    PYTHONPATH=tests uv run python tests/docs/test_notebook.py
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.commands import REPOSITORY
from helpers.shown import differences
from nbclient import NotebookClient

NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "your-network.ipynb"
LARGEST = 150_000
"""Bytes."""
ABSOLUTE = re.compile(r"(?<![\w.:/<-])/[\w.-]+/[\w.-]+")
"""A path of some machine: from its root, two names deep."""


def executed(folder: Path) -> Any:
    """The notebook with the outputs of today, run in a copy of the part of a clone that it reads."""
    place = folder / NOTEBOOK.parent.relative_to(REPOSITORY)
    place.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "leaderboard", folder / "leaderboard")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", record_timing=False, resources={"metadata": {"path": place}}
    ).execute()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def outputs(cell: Any) -> list[tuple[str, ...]]:
    """The kinds of a cell's outputs."""
    return [(output.output_type, *sorted(output.get("data", {}))) for output in cell.get("outputs", [])]


def words(cell: Any) -> str:
    """What a cell says and shows in every form that is not a picture."""
    shown = [output.get("data", {}) for output in cell.get("outputs", [])]
    return "\n".join(
        [cell.source, text(cell), *(str(data[kind]) for data in shown for kind in data if "/png" not in kind)]
    )


def text(cell: Any) -> str:
    """What a cell prints and shows, as text."""
    parts = [output.get("text") or output.data.get("text/plain", "") for output in cell.get("outputs", [])]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_outputs_are_what_the_cells_print(notebook, tmp_path, child_environment, monkeypatch):
    for name, value in child_environment().items():
        monkeypatch.setenv(name, value)
    now = executed(tmp_path)
    assert [*map(outputs, now.cells)] == [*map(outputs, notebook.cells)]
    assert not [
        found for pair in zip(notebook.cells, now.cells, strict=True) for found in differences(*map(text, pair))
    ]


def test_the_notebook_is_executed_and_knows_no_machine(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not [cell for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    raw = NOTEBOOK.read_text("utf-8")
    assert len(raw) < LARGEST
    assert notebook.metadata.kernelspec.name == "python3"
    places = (*(f"/{top}/" for top in ("home", "root", "tmp")), "site-packages")
    assert not [word for word in places if word in raw]
    assert not [line for part in notebook.cells for line in words(part).splitlines() if ABSOLUTE.search(line)]


if __name__ == "__main__":
    os.environ["ROBFLAT_BENCH_PLUGINS"] = ""
    with tempfile.TemporaryDirectory() as made:
        nbformat.write(executed(Path(made)), NOTEBOOK)
