"""Parameters that several measures share, and how many image passes a measure takes. Imports no torch.

`Steps`, `Draws`, ... are types: they carry a parameter's range and description, and each measure sets its own default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from robflat_bench.core import ENGINE_NORMS, BallNorm, BallShape, Number, Params, Passes, Rescaling

_COUPLINGS = {
    "clean": "`clean` has none",
    "frozen": "`frozen` finds them once at the weights w and keeps them",
    "reattack": "`reattack` attacks afresh at every w'",
    "joint": "`joint` lets images and weights climb together",
}


def couplings(*names: str) -> str:
    """The description of a parameter `coupling` with these choices."""
    return f"How adversarial images follow the weights: {', '.join(_COUPLINGS[name] for name in names)}."


Steps = Annotated[PositiveInt, Field(description="Steps of the PGD attack.")]
Step = Annotated[
    Number | None,
    Field(
        gt=0,
        le=1,
        description="Attack step size, in pixels of [0,1]; by default epsilon/4, under l2 2.5 epsilon/steps.",
    ),
]
Logits = Annotated[Literal["plain", "normalised"], Field(description="`normalised` logits have mean 0 and norm 1.")]
WarmSteps = Annotated[
    PositiveInt | None,
    Field(
        description="With `warm`: steps of each start at w and at w'; by default `steps`, which find the images at w."
    ),
]
Restarts = Annotated[PositiveInt, Field(description="Random starts of the attack.")]
Draws = Annotated[int, Field(ge=2, description="Random draws of the weights.")]
FullDraws = Annotated[
    int | None,
    Field(
        ge=2,
        description="Under `reattack`: draws that the full attack sees. Every draw sees a short attack, a quarter of "
        "the steps at twice the size; its losses are corrected by the mean difference on these draws. By default the "
        "full attack sees every draw.",
    ),
]
Xi = Annotated[Number, Field(ge=0, description="Radius, relative to the norm of each group (see `ball`).")]
Shape = Annotated[BallShape, Field(description="Weights that share a radius; `element` scales each weight by |w_i|.")]
Norm = Annotated[BallNorm, Field(description="Norm in which the radius is measured.")]
Reference = Annotated[
    Literal["matched", "paper"],
    Field(description="Loss at w that is subtracted: of the same attack, or of the paper's choice among restarts."),
]
ReferenceRestarts = Annotated[PositiveInt, Field(description="Restarts of the attack of reference=paper.")]
Target = Annotated[Number, Field(gt=0, lt=1, description="Rise of the error rate that is tolerated.")]
Magnitude = Annotated[bool, Field(description="Moves follow the magnitude |w_i| of each weight, plus `e`.")]
E = Annotated[Number, Field(ge=0, description="Size of the moves of a weight that is 0, with `magnitude`.")]
Rho = Annotated[Number, Field(ge=0, description="Radius: l2 norm of the move of all layers together.")]
Adaptive = Annotated[bool, Field(description="Moves are proportional to the magnitude |w_i| of each weight.")]
Iterations = Annotated[PositiveInt, Field(description="Steps of the ascent over the weights.")]
Starts = Annotated[PositiveInt, Field(description="Ascents: the first from w, the others from random points.")]
Tolerance = Annotated[Number, Field(ge=1e-9, lt=1, description="Relative width at which the search ends.")]
Patterns = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(lambda text: (text,) if isinstance(text, str) else text)
]
Exclude = Annotated[
    Patterns | None,
    Field(description='Patterns of parameters that do not move, e.g. ["*.bias"]; normalisation and gains never do.'),
]
Probes = Annotated[int, Field(ge=2, description="Random vectors of Hutchinson's estimator of the trace.")]

BLOCK = 25
"""Probes in one unit of the journal; they share one gradient of the loss."""


def reference_is_attacked(params: Any) -> Any:
    """ValueError where reference=paper meets a coupling without a fresh attack."""
    if params.reference == "paper" and params.coupling in ("clean", "frozen"):
        raise ValueError(f"reference=paper is a fresh attack; coupling={params.coupling} makes none: use matched")
    return params


class WeightSpaceParams(Params):
    """Which weights a measure moves or reads; its result's details count them (`WeightSpace.counts`)."""

    exclude: Exclude = None


class OracleParams(Params):
    """Which loss a measure reads: the coupling, the attack, and the scale of the logits."""

    norms = ENGINE_NORMS

    coupling: Literal["clean", "frozen", "reattack"] = Field(
        default="frozen", description=couplings("clean", "frozen", "reattack")
    )
    steps: Steps = 20
    step: Step = None
    restarts: Restarts = 1
    warm: bool = Field(default=False, description="Under `reattack`: attacks also start from the images found at w.")
    warm_steps: WarmSteps = None
    logits: Logits = "plain"


class DrawsParams(WeightSpaceParams, OracleParams):
    """Parameters of a measure that reads the loss at w and after random moves of the weights."""

    full_draws: FullDraws = None


class FixedImagesParams(OracleParams):
    """Parameters of a measure that differentiates the loss by the weights: the images stay while the weights move."""

    coupling: Literal["clean", "frozen"] = Field(default="frozen", description=couplings("clean", "frozen"))
    warm: Literal[False] = Field(default=False, description="No effect: no attack is repeated.")
    warm_steps: None = Field(default=None, description="No effect: no attack is repeated.")


class SlopesParams(WeightSpaceParams, FixedImagesParams):
    """Parameters of a measure that differentiates the loss by the weights of the weight space."""


class LanczosParams(SlopesParams):
    """Parameters of a measure that finds eigenvalues by Lanczos iteration."""

    tolerance: Number = Field(default=1e-3, gt=0, description="Residual, relative to the width of the spectrum.")
    vectors: int = Field(default=20, ge=3, description="Lanczos vectors kept in memory, float64, one number a weight.")
    iterations: PositiveInt = Field(default=300, description="Restarts of the Lanczos iteration, at most.")


FUNCTION: dict[Rescaling, float] = {"layers": 0, "filters": 0, "units": 0}
"""Powers of a measure that reads the function alone, or weights only relative to their own size."""


def passes_of_draws() -> dict[str, Passes]:
    """Passes of a measure with `DrawsParams`, by coupling. A, B, C, D, F, P, Q, S, T: see `config.cost`."""
    return {
        "clean": Passes("draws + 1"),
        "frozen": Passes("A + draws + 1", "B", at_most=True),
        "reattack": Passes("warm * A + (F + 1) * C + S + P", "warm * B + (F + 1) * D + T + Q", at_most=True),
    }


def passes_at_fixed_images(forward: str, backward: str) -> dict[str, Passes]:
    """Passes of a measure that computes at fixed images, by coupling."""
    return {"clean": Passes(forward, backward), "frozen": Passes(f"A + {forward}", f"B + {backward}", at_most=True)}
