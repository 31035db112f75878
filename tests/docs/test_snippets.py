"""Python on the pages runs, block after block, and prints what the page shows below it; so does the first command.

Write the outputs of today into the pages:    PYTHONPATH=tests uv run python tests/docs/test_snippets.py
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pytest
from helpers.commands import REPOSITORY, run_here
from helpers.pages import DOCS, beside_the_files
from helpers.shown import differences

PAGES = {
    "your-checkpoint": DOCS / "your-checkpoint.md",
    "from-python": DOCS / "from-python.md",
    "README": REPOSITORY / "README.md",
}
SHOWN = r"((?:    .*\n|\n(?=    ))+)"
SNIPPET = rf"```python\n(?!# \w+\.py\n|from robflat_bench\.api)((?:(?!```).*\n)+)```\n(?:\n{SHOWN})?"
"""A block of Python that is neither a file nor a plugin, and the output below it."""
COMMAND = rf"(?s:    robflat-bench (evaluate net\.pth [^\n]*)\n.*?It prints:\n\n){SHOWN}"


def snippets(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Every snippet of a page and what it prints now; all share their names, as cells of a notebook do."""
    names: dict[str, object] = {}
    for found in re.finditer(SNIPPET, text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(found[1], "page", "exec"), names)
        yield found, out.getvalue()


def plain(shown: str | None) -> str:
    return re.sub("(?m)^    ", "", shown or "")


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_prints_what_is_shown_below_it(page):
    text = PAGES[page].read_text("utf-8")
    with beside_the_files():
        wrong = {found[1]: differences(plain(found[2]), now) for found, now in snippets(text)}
    assert wrong, "there are snippets"
    assert not any(wrong.values()), wrong


def printed(arguments: str) -> str:
    done = run_here(*arguments.split())
    assert done.code == 0, done.err
    return done.out


def test_the_first_command_prints_what_is_shown_below_it():
    found = re.search(COMMAND, PAGES["your-checkpoint"].read_text("utf-8"))
    assert found
    with beside_the_files():
        assert not differences(plain(found[2]), printed(found[1]))


# ---------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------


def indented(out: str) -> str:
    return "".join(f"    {line.rstrip()}".rstrip() + "\n" for line in out.strip("\n").splitlines()) if out else ""


def written(text: str) -> str:
    """The page with the outputs of today."""
    for found, now in reversed([*snippets(text)]):
        begin, end = found.span(2) if found[2] else (found.end(), found.end())
        out = indented(now)
        text = text[:begin] + ("" if found[2] or not out else "\n") + out + text[end:]
    if command := re.search(COMMAND, text):
        begin, end = command.span(2)
        text = text[:begin] + indented(printed(command[1])) + text[end:]
    return text


if __name__ == "__main__":
    with beside_the_files():
        for path in PAGES.values():
            path.write_text(written(path.read_text("utf-8")), "utf-8")
