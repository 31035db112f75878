"""Printed output of today beside the output that a page or a notebook shows."""

from __future__ import annotations

import re

VARYING = (
    (r"─+", "─"),  # as wide as the table
    (r"\b[0-9a-f]{16}\b", "KEY"),  # hashes of weights, which are other weights where rounding differs
    (r"\d+\.\d+(?=\s+[\d,]+ \+ [\d,]+)", "S"),  # seconds, in front of passes
    (r"\d+ s \(\d+ s evaluation\), \d+\.\d+ GB", "COST"),
)
"""What another machine or another minute prints differently, and a word for it."""
NUMBER = r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w])"
RELATIVE, UNITS = 0.02, 15
"""Numbers with decimals may differ by this share of theirs and this many units of the last decimal."""


def parts(text: str) -> tuple[list[str], list[str]]:
    """The words of a text, and its numbers."""
    for pattern, word in VARYING:
        text = re.sub(pattern, word, text)
    return re.sub(NUMBER, " # ", text).split(), re.findall(NUMBER, text)


PASSES = 0.03
"""Relative difference of image passes, integers of four digits and more, between two processors."""


def differences(shown: str, printed: str) -> list[str]:
    """What differs between two outputs in words, in small integers, or in numbers by more than rounding explains."""
    (words, numbers), (now, found) = parts(shown), parts(printed)
    if words != now or len(numbers) != len(found):
        return [f"shown:\n{shown}\nprinted:\n{printed}"]
    return [f"{one} is {other}" for one, other in zip(numbers, found, strict=True) if not _close(one, other)]


def _close(one: str, other: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (one, other))
    if "," in one and "." not in one:  # image passes: which images rest is up to rounding
        return abs(a - b) <= PASSES * max(abs(a), abs(b))
    if one == other or "." not in one:
        return one == other
    decimals = len(one.partition("e")[0].partition(".")[2])
    return abs(a - b) <= RELATIVE * max(abs(a), abs(b)) + UNITS * 10.0**-decimals
