"""Parts of the site: method cards with their equations, lines and scales of figures, numbers as text."""

import re

import pytest
from helpers import board_fixture

from robflat_bench.leaderboard.model import RowValue
from robflat_bench.leaderboard.site import cards, columns, figures, svg, words
from robflat_bench.records.quantities import QuantityValue


def test_every_method_and_modifier_has_an_equation():
    registry = board_fixture.registry()
    for kind in ("method", "modifier"):
        for name in registry.names(kind):
            offer = registry.get(kind, name)
            equation, _ = cards.opening(cards.docstring(offer))
            assert equation, name
            assert "\\" not in str(cards.equation(equation)), name


def test_equations_have_greek_letters_subscripts_and_superscripts():
    assert cards.equation(r"\ell_CE(x_i') + \beta^2 ||d||_inf <= eps") == (
        "ℓ<sub>CE</sub>(x<sub>i</sub>&#39;) + β<sup>2</sup> ‖d‖<sub>∞</sub> ≤ ε"
    )
    assert cards.equation("max_{||d||_inf <= 1}") == "max<sub>‖d‖<sub>∞</sub> ≤ 1</sub>"
    assert cards.equation(r"\bar w_k = x_i^(min(T, j))") == "w\u0304<sub>k</sub> = x<sub>i</sub><sup>(min(T, j))</sup>"
    assert cards.equation("soft_cross_entropy <b>") == "soft_cross_entropy &lt;b&gt;"


def test_an_attack_of_an_earlier_version_is_named_too():
    board = board_fixture.make()[0].boards[0]
    attacks = ("pgd(steps=3)", "pgd(steps=4)", board_fixture.PGD)
    values = [QuantityValue("robust_error", of, "test", 0.4, 0.02, 250) for of in attacks]
    rows = columns.run_results(board, values, {"attack:pgd(steps=3)": "PGD-3"})
    assert [(row.heading, row.of) for row in rows] == [
        ("Robust error, %: PGD-3", attacks[0]),
        ("Robust error, %: pgd(steps=4)", attacks[1]),
        ("Robust error, %: PGD-20 x 3", attacks[2]),
    ]


def test_the_pareto_line_of_known_points():
    assert figures.pareto([(1, 5), (2, 6), (3, 2), (4, 2), (5, 1)]) == [(1, 5), (3, 5), (3, 2), (5, 2), (5, 1)]


def test_scales_reach_their_ends_and_have_round_ticks():
    scale = svg.Scale(0.3, 0.47, 0, 100, "fraction")
    assert (scale(0.3), scale(0.47)) == (0, 100)
    assert [scale.tick_label(tick) for tick in scale.ticks] == ["30", "32", "34", "36", "38", "40", "42", "44", "46"]
    assert svg.Scale(5e5, 1.4e6, 0, 100, log=True).ticks == pytest.approx([6e5, 8e5, 1e6, 1.2e6, 1.4e6])
    passes = svg.Scale(1e5, 1e7, 0, 100, log=True)
    assert passes(1e6) == pytest.approx(50)
    assert [passes.tick_label(tick) for tick in passes.ticks][::2] == ["100\u00a0k", "1\u00a0M", "10\u00a0M"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.3364, "fraction", "33.6"),
        (-0.012, "fraction", "\u22121.2"),
        (1.1349, "nats", "1.135"),
        (-0.0001, "ratio", "0.00"),
        (None, "nats", "\u2013"),
        (0, "", "0"),
        (512.34, "", "512"),
        (0.00123, "", "0.00123"),
        (1234567.8, "", "1.23e+06"),
        (0.817, "ratio", "0.82"),
    ],
)
def test_a_value_is_written_in_its_unit(value, unit, text):
    assert words.format_value(value, unit) == text


def test_the_number_after_plus_minus_is_the_longer_side_of_the_interval():
    assert words.spread(RowValue(mean=0.3, low=0.29, high=0.33, seeds=3), "fraction") == "30.0\u00a0±\u00a03.0"
    assert words.spread(RowValue(mean=0.3, seeds=1), "fraction") == "30.0"


def test_one_wide_interval_does_not_crush_the_pictures_of_a_column():
    """The scale is that of the values; an interval that is wider ends where the scale ends."""
    intervals = ((1, 0.9, 1.1), (2, 1.9, 2.1), (3, -47, 53))
    values = [RowValue(mean=mean, low=low, high=high, seeds=3) for mean, low, high in intervals]
    drawn = [str(columns._picture(values)(value)) for value in values]
    places = [float(re.search('cx="(.*?)"', svg)[1]) for svg in drawn]
    assert places == [8.0, 50.0, 92.0]
    assert 'd="M-0.4 4H100.4"' in drawn[2]


def test_a_far_value_stands_at_the_end_of_the_scale_of_the_others():
    values = [RowValue(mean=mean, seeds=3) for mean in (1, 2, 3, 4, 500)]
    places = [float(re.search('cx="(.*?)"', str(columns._picture(values)(value)))[1]) for value in values]
    assert places == [8.0, 36.0, 64.0, 92.0, 100.4]
