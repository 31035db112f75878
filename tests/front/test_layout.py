"""Tables at every width: numbers are whole, names keep their ends, and columns that go are named."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from robflat_bench.front.console import written
from robflat_bench.front.grids import grid
from robflat_bench.front.layout import elide, elided, layout, wrap

HEADS = ["rank", "method", "robust error, %", "average-case flatness, nats", "worst-case flatness, nats", "seeds"]
ROWS = [
    ["1 (1-4) lead", "at [weight_decay=0.01]", "32.4 ± 5.2", "1.345 ± 0.135 [6]", "10.247 ± 1.300 [27]", "3"],
    ["22 (14-25) lead", "at+label-noise(tau=0.3)", "43.9 ± 11.2", "3.422 ± 2.620 [23]", "18.105 ± 14.683 [30]", "3"],
    ["22 (14-25) lead", "at+label-noise(tau=0.5)", "43.9 ± 11.2", "3.422 ± 2.620 [23]", "18.105 ± 14.683 [30]", "3"],
]


def shown(width, heads=HEADS, rows=ROWS, right=2, keep=2):
    return written([grid("board", heads, rows, right=right, keep=keep)], width=width)


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
    assert text.count("label") == 2
    assert "43.9" not in text, "a number that has no room is not shown at all"


def test_columns_that_can_be_spared_go_first():
    heads = ["group", "run", "state", "time left"]
    rows = [["weight perturbation", "at+awp(gamma=0.005)", "new", "52 s"]]
    table = grid("plan", heads, rows, right=3, keep=3, spare=("group",))
    assert "weight perturbation" in written([table], width=80)
    text = written([table], width=50)
    assert "weight" not in text
    assert "52 s" in text
    assert "no room for group: widen the terminal" in text


def test_facts_without_headings_all_stay():
    text = written([grid("this machine", ["", ""], [["memory", "25.3 GB"], ["x" * 30, "a b " * 10]])], width=40)
    assert "25.3 GB" in text
    assert "no room" not in text


def test_names_lose_their_middle_and_stay_apart():
    assert elide("at+label-noise(tau=0.3)", 15) == "at+labe" + "\u2026" + "au=0.3)"
    assert elide("short", 15) == "short"
    names = [f"at+self-supervision+weight-clipping(limit=0.{k})" for k in range(1, 4)]
    text = written([grid("x", ["method", "error"], [[name, "1.0"] for name in names], right=1)], width=34)
    assert len({line.split()[0] for line in text.splitlines() if "\u2026" in line}) == 3


@pytest.mark.parametrize(
    "pattern",
    [
        "at+awp(gamma={})+self-supervision+ema",
        "{}-at+" + "x" * 40,
        "at+self-supervision(weight={})+ema+cutout+autoaugment+label-smoothing",
    ],
)
def test_names_that_differ_in_the_middle_stay_apart(pattern):
    names = [pattern.format(value) for value in ("0.005", "0.05", "0.5")]
    rows = [[name, "1.0", "0.123456789012"] for name in (*names, *names)]
    text = written([grid("x", ["method", "error", "rise"], rows, right=1)], width=54)
    shown = [line.split()[0] for line in text.splitlines() if " 1.0" in line]
    assert shown[:3] == shown[3:]
    assert len(set(shown)) == 3


@pytest.mark.parametrize("width", range(1, 40))
def test_a_shortened_name_holds_whole_numbers_only(width):
    names = [
        "0.123456-at-0.654321",
        "at+awp(gamma=0.005)+random-wp(xi=0.0005)",
        "1,797-images",
        "1e-05(limit=12.5e+10)",
    ]
    for name, short in zip(names, elided(names, width), strict=True):
        assert cell_len(short) <= width
        head, cut, tail = short.partition("\u2026")
        if not cut:
            assert short == name
            continue
        assert name.startswith(head)
        assert name.endswith(tail)
        whole = [found.span() for found in re.finditer(r"\d[\d.,]*(?:e[+-]?\d+)?", name)]
        ends = (len(head), len(name) - len(tail))
        assert not any(start < end < stop for start, stop in whole for end in ends)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("width", [12, 20, 44])
def test_lines_break_between_words(width, fold):
    text = "rank (lowest-highest): 95 % of bootstrap ranks; next `robflat-bench info awp`, or 0.123456789012345"
    found = wrap(text, width, fold)
    assert found.split() == text.split() or fold
    assert "".join(found.split()) == "".join(text.split()), "nothing is lost"
    longest = max(map(cell_len, found.splitlines()))
    if fold:
        assert longest <= max(width, len("0.123456789012345"))
        assert "0.123456789012345" in found or width < len("0.123456789012345")
    else:
        assert "`robflat-bench info awp`," in found
        assert longest <= max(width, len("`robflat-bench info awp`,"))


@pytest.mark.parametrize("width", range(5, 29))
def test_a_long_word_breaks_outside_its_numbers(width):
    lines = wrap("at+label-noise(tau=0.375)+ema", width, fold=True).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("0.375" in line for line in lines) == 1


def test_indentation_and_line_breaks_of_a_cell_stay():
    assert wrap("  none: two words\nsecond", 12, fold=True).splitlines() == ["  none: two", "words", "second"]


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
def test_a_layout_has_the_columns_within_the_width(width, rows, data):
    right = data.draw(st.sampled_from([None, 1, 2]))
    keep = data.draw(st.integers(1, 3))
    heads = ["name", "a summary", "value", "longer heading of a value"]
    spare = data.draw(st.sampled_from([(), ("name",), ("value", "name")]))
    found = layout(heads, rows, right, width, keep, spare)
    places = [column.place for column in found]
    stays = [place for place in range(keep) if heads[place] not in spare]
    assert [place for place in places if place in stays] == stays
    assert sum(column.width + 3 for column in found) + 1 <= max(width, 4 * len(found) + 1)
    if len(found) > len(stays):
        for column in found:
            cells = [row[column.place] for row in rows]
            if right is not None and column.place >= right:
                assert all(cell_len(cell) <= column.width for cell in cells)
            if column.elided:
                assert len({*column.fitted(cells)}) == len({*cells})
