"""Formulas of image passes, as components write them."""

import pytest

from robflat_bench.config.cost import formula

VALUES = {"T": 7, "steps": 3, "start": 0.5, "warmup": 0.0, "best": True, "name": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("T + 2", 9),
        ("1 + steps * (T - 1)", 19),
        ("T // 2", 3),
        ("1 + steps * (warmup == 0)", 4),
        ("1 + steps * (start == 0)", 1),
        ("(steps == 0)", 0),
    ],
)
def test_a_formula_has_the_value_that_arithmetic_gives(text, value):
    assert formula(text, VALUES) == value


@pytest.mark.parametrize("text", ["start + 1", "unknown", "T / 2", "T // 0", "T == 1", "name == 0", "T < 0", "f(T)"])
def test_anything_else_is_no_formula(text):
    with pytest.raises(ValueError, match="is not a formula of T, steps"):
        formula(text, VALUES)
