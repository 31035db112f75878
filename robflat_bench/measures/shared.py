"""Parameters, and counts of image passes, that several measures share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import Number, Params, Passes, Rescaling


def reference_is_attacked(params: Any) -> Any:
    if params.reference == "paper" and params.coupling in ("clean", "frozen"):
        raise ValueError(f"reference=paper is a fresh attack; coupling={params.coupling} makes none: use matched")
    return params


class OracleParams(Params):
    """What every measure of a loss shares: how the adversary follows the weights (coupling), its attack (steps,
    step, restarts; found once for `frozen`), and whether logits are normalised before the cross-entropy.

    warm: under `reattack`, each attack also starts from the images found at w, so that it never falls below `frozen`.
    """

    coupling: Literal["clean", "frozen", "reattack"] = "frozen"
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)
    restarts: PositiveInt = 1
    warm: bool = False
    logits: Literal["plain", "normalised"] = "plain"


class FixedImagesParams(OracleParams):
    """Of a measure that differentiates the loss by the weights: its images stay as they are while these move."""

    coupling: Literal["clean", "frozen"] = "frozen"
    warm: Literal[False] = False


class LanczosParams(FixedImagesParams):
    """tolerance: of Lanczos, relative to the width of the spectrum. vectors: it keeps. iterations: restarts at most."""

    tolerance: Number = Field(default=1e-3, gt=0)
    vectors: int = Field(default=20, ge=3)
    iterations: PositiveInt = 300


FUNCTION: dict[Rescaling, float] = {"layers": 0, "filters": 0, "units": 0}
"""Of what sees the function alone, or weights only relative to themselves."""


STRONG = ("2 * restarts * (strong_steps + 1)", "2 * restarts * strong_steps")
"""What the attack on the end of each ascent takes."""


def read(times: str) -> dict[str, Passes]:
    """Of a loss that is read so many times, under each coupling of the oracle."""
    return {
        "clean": Passes(times),
        "frozen": Passes(f"A + {times}", "B"),
        "reattack": Passes(f"({times}) * A", f"({times}) * B"),
    }


def differentiate(forward: str, backward: str) -> dict[str, Passes]:
    """Of what is computed at fixed images."""
    return {"clean": Passes(forward, backward), "frozen": Passes(f"A + {forward}", f"B + {backward}")}
