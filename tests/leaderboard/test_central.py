"""The picture of the first page and its sentence: what stands where, what enters the line, and what is said."""

import math
import re
from importlib import resources

import pytest
from helpers import board_fixture

from robflat_bench.config.protocol import load
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.headline import elsewhere, headline, limits
from robflat_bench.leaderboard.links import links
from robflat_bench.leaderboard.model import BoardColumn, Claim, ClaimPart
from robflat_bench.leaderboard.site import central, columns, families, names, svg, words


@pytest.fixture(scope="module")
def board():
    return board_fixture.make()[0].boards[0]


def moved(board, label, column, mean):
    """The board with another mean in one cell."""
    rows = []
    for row in board.rows:
        if row.label == label:
            value = row.values["last"][column].model_copy(update={"mean": mean})
            row = row.model_copy(update={"values": {"last": {**row.values["last"], column: value}}})
        rows.append(row)
    return board.model_copy(update={"rows": tuple(rows)})


def drawn(board, up=0, across=0):
    (view,) = (view for view in central.central(board, "").views if (view.up, view.across) == (up, across))
    return view


def test_there_is_a_view_for_every_pair_of_axes(board):
    shown = central.central(board, "../")
    assert shown.ups == ["Gap in robust loss", "Robust loss", "Robust error"]
    assert shown.acrosses == ["Average-case flatness", "Worst-case flatness"]
    assert {(view.up, view.across) for view in shown.views} == {(u, a) for u in range(3) for a in range(2)}
    assert all("lower is flatter" in view.drawing.svg for view in shown.views)
    for view in shown.views:
        targets = re.findall(r'href="([^"]+)"', view.drawing.svg)
        assert {*targets} == {f"../m/{board.id}/{words.href(row.id)}/index.html" for row in board.rows}


def test_a_board_without_ranked_measures_has_no_picture(board):
    assert central.central(board.model_copy(update={"rankings": board.rankings[:1]}), "") is None
    assert central.central(board.model_copy(update={"rows": ()}), "") is None


@pytest.mark.parametrize(
    ("values", "beyond"),
    [
        ([1, 2, 3, 4, 50], 50),
        ([1, 2, 3, 4, 50, 60], math.inf),  # two of six are more than a quarter
        ([1, 2, 3, 4, 5, 6, 50, 60], 50),
        ([1, 2, 3, 4, 5.9], math.inf),  # no further than the others are from each other
        ([*range(1, 10), 13.5], 13.5),  # one of ten, further than half of the others' range
        ([*range(1, 10), 12.5], math.inf),
        ([*range(1, 9), 12.5], math.inf),
        ([1, 50], math.inf),
        ([3, 3, 3, 3, 9], math.inf),  # no distance to compare with
        ([], math.inf),
    ],
)
def test_the_break_of_an_axis(values, beyond):
    assert svg.cut(values) == beyond


def test_a_method_far_away_is_named_behind_the_break_and_not_in_the_line(board):
    far, near = (drawn(one, up=1) for one in (moved(board, "hat", "robust_loss", 40.0), board))
    assert "Behind a break of the axes and not in the line: hat." in far.caption
    assert "hat: 40.000 at " in far.drawing.svg
    assert "break" not in near.caption
    ranked = sum(not row.unranked for row in board.rows)
    assert f"over {ranked} ranked" in near.caption
    assert f"over {ranked - 1} ranked" in far.caption


def test_the_line_is_that_of_least_squares():
    assert central.fitted([(0, 1), (1, 3), (2, 5)]) == (1, 2)
    assert central.fitted([(0, 1), (1, 3)]) is central.fitted([(1, 1), (1, 2), (1, 3)]) is None


def test_the_band_contains_the_line_and_vanishes_where_all_methods_are_on_it():
    x, y = svg.Scale(0, 10, 0, 100), svg.Scale(0, 10, 100, 0)
    for noise, wide in ((0.0, False), (1.5, True)):
        points = [(k, k + noise * (-1) ** k) for k in range(1, 10)]
        drawing = svg.Drawing("d", "t", "d", 100)
        central._trend(drawing, x, y, points)
        band, line = (
            [tuple(map(float, one.split())) for one in re.search(r"M([^z\"]+)", part)[1].split("L")]
            for part in drawing.parts
        )
        ends = {at: [b for a, b in band if a == at] for at, _ in line}
        assert all(min(ends[at]) - 0.1 <= value <= max(ends[at]) + 0.1 for at, value in line)
        assert (max(ends[line[0][0]]) - min(ends[line[0][0]]) > 1) == wide


def test_every_family_has_a_look_and_a_shape_of_its_own(board):
    methods = {
        "at": families.PLAIN,
        "at+awp(gamma=0.01)": families.MODIFIED,
        "trades(beta=6.0)": families.OBJECTIVE,
        "trades(beta=6.0)+awp(gamma=0.01)": families.OBJECTIVE,
        "standard": families.CLEAN,
    }
    for method, family in methods.items():
        assert families.family(board.rows[0].model_copy(update={"method": method})) is family
    assert len({one.shape for one in families.FAMILIES}) == len({one.look for one in families.FAMILIES}) == 4


@pytest.mark.parametrize(
    ("label", "text", "settings"),
    [
        ("at", "AT", ""),
        ("at+awp(gamma=0.005)", "AT + AWP", "gamma 0.005"),
        ("at+autoaugment+cutout", "AT + AutoAugment + Cutout", ""),
        ("at+label-noise(tau=0.3)", "AT + label noise", "tau 0.3"),
        ("trades(beta=3)+awp [weight_decay=0.01]", "TRADES + AWP", "beta 3, weight_decay 0.01"),
        ("mypkg:new(a=[1, 2])", "mypkg:new", "a [1, 2]"),
        ("ODD label", "ODD label", ""),
    ],
)
def test_names_of_methods(board, label, text, settings):
    found = names.name(board.rows[0].model_copy(update={"label": label}))
    assert (found.text, found.settings.replace("\u00a0", " ")) == (text, settings)


def test_short_titles_tell_columns_apart():
    def column(id, title):
        return BoardColumn(id=id, title=title, unit="nats", n=1)

    columns = [
        column("a", "average-case flatness (reattack), xi=0.5, 32 draws"),
        column("b", "average-case flatness (clean), xi=0.5, 32 draws"),
        column("c", "worst-case flatness (joint), xi=0.003, 10 restarts"),
        column("d", "worst-case flatness (joint), xi=0.00075, 10 restarts"),
        column("e", "robust loss, PGD-20 x 2"),
    ]
    assert words.short_titles(columns, plain="a") == {
        "a": "Average-case flatness",
        "b": "Average-case flatness, clean",
        "c": "Worst-case flatness, xi=0.003",
        "d": "Worst-case flatness, xi=0.00075",
        "e": "Robust loss",
    }


@pytest.mark.parametrize(
    ("epsilon", "text"), [(8 / 255, "8/255"), (4 / 255, "4/255"), (0.2, "0.2"), (0.5, "0.5"), (0.031, "0.031")]
)
def test_radii_are_written_as_pixel_values_where_they_are_some(epsilon, text):
    assert words.radius(epsilon) == text


# ---------------------------------------------------------------------------------------------------------
# The sentence
# ---------------------------------------------------------------------------------------------------------


def claim(id, low, high, threshold=0.0, value=None, reason=""):
    part = ClaimPart(measured="m", threshold=threshold, value=value, low=low, high=high, n="12 methods", reason=reason)
    return Claim(id=id, claim="c", source="s", rule="r", verdict=part.verdict, sentence="s", parts=(part,))


def test_the_headline_says_each_verdict_with_its_numbers(board):
    lone = claim("C3", None, None, reason="6 methods; an interval needs 10")
    claims = (claim("C1", 0.4, 0.8, value=0.6), claim("C2", 2.0, 4.0, 1.0, 3.0), lone)
    assert headline(board.model_copy(update={"claims": claims})) == (
        f"On {board.id}, adversarial training (AT) overfits: its robust loss is 0.60 nats [0.40, 0.80] higher at the "
        "last checkpoint than at the best one, and its minimum is 3.00 times [2.00, 4.00] sharper there; over methods "
        "it is not testable yet whether flatter ones have a lower robust loss: 6 methods; an interval needs 10."
    )
    claims = (claim("C1", -0.4, -0.001, value=-0.002), claim("C2", 0.9, 4.0, 1.0, 3.0), claim("C3", 0.1, 0.5, 0.8, 0.3))
    said = headline(board.model_copy(update={"claims": claims}))
    assert "does not overfit: its robust loss changes by 0.00 nats [\u22120.40, 0.00]" in said
    assert "it is undecided whether its minimum is sharper there (3.00 times [0.90, 4.00])" in said
    assert (
        "over 12 methods, flatness follows robust loss less than claimed (Spearman 0.30 [0.10, 0.50], claimed" in said
    )


def test_the_headline_says_no_more_than_the_whole_claim(board):
    """A rise that is certain is no overfitting where the other number of the claim is undecided."""
    rise = claim("C1", 0.004, 0.036, value=0.02).model_copy(update={"verdict": "undecided"})
    assert headline(board.model_copy(update={"claims": (rise,)})) == (
        f"On {board.id}, the robust loss of adversarial training (AT) is 0.02 nats [0.00, 0.04] higher at the last "
        "checkpoint than at the best one."
    )


def test_a_board_without_evidence_has_no_headline(board):
    assert headline(board.model_copy(update={"claims": ()})) == ""
    unknown = claim("C1", None, None, reason="AT has 1 of 3 seeds")
    assert headline(board.model_copy(update={"claims": (unknown,)})) == ""


def test_the_limits_count_ranked_methods_and_their_networks(board):
    ranked = [row for row in board.rows if row.places]
    said = limits(board)
    assert said.startswith(f"{len(ranked)} methods, {3 * len(ranked)} trained networks, 250 test images")


def test_the_first_page_says_what_other_boards_show(board):
    """A headline from one board alone would hide a board that contradicts it."""
    other = board.model_copy(update={"id": "other", "claims": (claim("C3", -0.65, 0.08, value=-0.3),)})
    silent = board.model_copy(update={"id": "silent", "claims": (claim("C3", None, None, reason="2 methods"),)})
    assert (
        elsewhere(board, [board, other, silent])
        == "On other the correlation is \u22120.30 [\u22120.65, 0.08], over 12 methods."
    )
    assert elsewhere(board, [board]) == ""


def test_an_undecided_correlation_above_zero_is_said_to_be_above_zero(board):
    def said(low: float) -> str:
        return headline(board.model_copy(update={"claims": (claim("C3", low, 1.0, 0.8, 0.9),)}))

    assert "above zero and not certainly above the claimed 0.8" in said(0.5)
    assert "above zero" not in said(-0.1)


# ---------------------------------------------------------------------------------------------------------
# Links to pages elsewhere
# ---------------------------------------------------------------------------------------------------------


def test_links_that_are_not_named_are_left_out(tmp_path):
    assert links(tmp_path).titled == []
    (tmp_path / "site.toml").write_text('paper = "https://arxiv.org/abs/2104.04448"\ncode = ""\n')
    assert links(tmp_path).titled == [("Paper", "https://arxiv.org/abs/2104.04448")]
    assert links(tmp_path).base == ""


@pytest.mark.parametrize("ending", ["", "/"])
def test_the_address_of_the_site_is_no_link_to_elsewhere(tmp_path, ending):
    (tmp_path / "site.toml").write_text(f'site = "https://example.org/board{ending}"\n')
    assert links(tmp_path).titled == []
    assert links(tmp_path).base == "https://example.org/board/"


@pytest.mark.parametrize(
    "text",
    [
        'code = "javascript:alert(1)"',
        'code = "http://x.org"',
        "code = 'https://x.org/\">'",
        'blog = "https://x.org"',
        "[",
    ],
)
def test_a_link_that_is_no_address_is_refused(tmp_path, text):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(CheckFailed, match=r"site\.toml"):
        links(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# What pages say is what they show
# ---------------------------------------------------------------------------------------------------------


def test_a_caption_explains_only_what_is_drawn(board):
    """The line, the band, hollow marks and rings are explained where they are drawn, and nowhere else."""
    drawn = {"Line:": 'class="trend"', "Band:": 'class="band"', "Hollow:": 'class="hollow', "Ring:": 'class="ring'}
    without = board.model_copy(update={"rows": tuple(row for row in board.rows if not row.extra_data)[:2]})
    for one in (board, without):
        for view in central.central(one, "").views:
            for word, mark in drawn.items():
                assert (word in view.caption) == (mark in view.drawing.svg), word


def test_every_group_of_columns_is_hidden_by_the_style_until_its_switch_is_on():
    style = (resources.files("robflat_bench.leaderboard.site") / "static" / "site.css").read_text("utf-8")
    hidden = set(re.findall(r"#show-(\w+):not\(:checked\)\) \.g-(\w+)", style))
    assert hidden == {(group, group) for group in columns.GROUPS}


@pytest.mark.parametrize("name", ["cifar10-mini"])
def test_the_summary_counts_the_images_that_are_trained_on(name):
    protocol = load(board_fixture.registry(), name)
    count = protocol.fixed.data.train.count
    assert f"{count:,} canonical images" in protocol.summary
