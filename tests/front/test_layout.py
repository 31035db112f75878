"""Tables at every width: numbers are whole, names keep their ends, and columns that go are named."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from robflat_bench.front.console import written
from robflat_bench.front.grids import grid
from robflat_bench.front.layout import elide, layout

HEADS = ["rank", "method", "robust error, %", "average-case flatness, nats", "worst-case flatness, nats", "seeds"]
ROWS = [
    ["1 (1-4) lead", "at [weight_decay=0.01]", "32.4 ± 5.2", "1.345 ± 0.135 [6]", "10.247 ± 1.300 [27]", "3"],
    ["22 (14-25) lead", "at+label-noise(tau=0.3)", "43.9 ± 11.2", "3.422 ± 2.620 [23]", "18.105 ± 14.683 [30]", "3"],
    ["22 (14-25) lead", "at+label-noise(tau=0.5)", "43.9 ± 11.2", "3.422 ± 2.620 [23]", "18.105 ± 14.683 [30]", "3"],
]


def shown(width, heads=HEADS, rows=ROWS, right=2):
    return written([grid("board", heads, rows, right=right)], width=width)


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_no_number_is_cut_and_no_line_is_too_long(width):
    text = shown(width)
    assert max(map(cell_len, text.splitlines())) <= width
    lines = [line for line in text.splitlines() if "(" in line and "±" in line]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS, strict=True):
        numbers = line[line.index(row[2]) :].split("   ")
        assert [part.strip() for part in numbers if part.strip()] == row[2 : 2 + len([n for n in numbers if n.strip()])]


def test_columns_go_from_the_right_and_are_named():
    assert "no room" not in shown(200)
    text = shown(80)
    hidden = re.search(r"no room for (.+): widen the terminal, or add --json", " ".join(text.split()))[1].split("; ")
    assert hidden == HEADS[-len(hidden) :]
    assert "43.9" in text


def test_what_ranks_stays_at_any_width():
    text = shown(20)
    assert "at+label-" in text or "at+la" in text
    assert "43.9" not in text, "a number that has no room is not shown at all"


def test_names_lose_their_middle_and_stay_apart():
    assert elide("at+label-noise(tau=0.3)", 15) == "at+labe…tau=0.3)"[:7] + "…" + "au=0.3)"
    assert elide("short", 15) == "short"
    names = [f"at+self-supervision+weight-clipping(limit=0.{k})" for k in range(1, 4)]
    text = written([grid("x", ["method", "error"], [[name, "1.0"] for name in names], right=1)], width=34)
    assert len({line.split()[0] for line in text.splitlines() if "…" in line}) == 3


def test_sentences_wrap_between_words():
    rows = [
        ["at", "adversarial training: cross-entropy on examples of projected gradient descent", "robflat-bench 0.1.0"]
    ]
    text = written([grid("methods", ["name", "summary", "provider"], rows)], width=60)
    assert "projected gradient" in " ".join(text.split())
    assert all(word in text for word in rows[0][1].split())


def test_a_heading_wraps_between_words():
    text = shown(20, ["average-case flatness, nats"], [["0.1 ± 0.2"]], right=0)
    assert [line.strip() for line in text.splitlines()[2:4]] == ["average-case", "flatness, nats"]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(10, 200),
    st.lists(st.lists(st.text("ab 1.", max_size=30), min_size=4, max_size=4), max_size=4),
    st.data(),
)
def test_a_layout_is_a_prefix_of_the_columns_within_the_width(width, rows, data):
    right = data.draw(st.sampled_from([None, 1, 2]))
    heads = ["name", "a summary", "value", "longer heading of a value"]
    found = layout(heads, rows, right, width)
    assert [column.place for column in found] == [*range(len(found))]
    always = 4 if right is None else right
    assert len(found) >= always
    if len(found) > always:
        assert sum(column.width + 3 for column in found) + 1 <= width
    for column in found:
        if right is not None and column.place >= right:
            assert all(cell_len(row[column.place]) <= column.width for row in rows)
