"""Catalogue of measures (torch-free); equations and code lie in the files the factories name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import MeasureInfo, Passes, Rescaling
from robflat_bench.core.params import BallNorm, BallShape, Number, Params

STUTZ = "Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021"
PYHESSIAN = (
    "Yao, Gholami, Keutzer, Mahoney: PyHessian: neural networks through the lens of the Hessian. IEEE BigData 2020"
)
JIANG = "Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020"


def _reference_is_attacked(params: Any) -> Any:
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


class AverageCaseParams(OracleParams):
    """xi: radius relative to the norm of each group of weights, `ball` and `norm` (see `weight_space`). draws: of the
    weights. steps, step, restarts: of the attack at each draw.

    reference="matched" subtracts the loss at w under the same attack, restarts and starts (0 at xi=0); "paper"
    subtracts the loss of `reference_restarts` restarts selected by wrong-class confidence.
    """

    coupling: Literal["clean", "frozen", "reattack"] = "reattack"
    xi: Number = Field(default=0.5, ge=0)
    ball: BallShape = "layer"
    norm: BallNorm = "l2"
    draws: int = Field(default=10, ge=2)
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10

    _attacked = model_validator(mode="after")(_reference_is_attacked)


class WorstCaseParams(Params):
    """xi: radius relative to the norm of each group of weights, `ball` and `norm` (see `weight_space`). coupling:
    which images climb with the weights: none, those found at w (frozen), or each on its own way (joint). batch:
    examples per update of nu (0: all of them, one update a step). weight_step: of nu, in units of xi = 1, by default
    2.5 xi / updates. warm: one more `joint` restart, from where `frozen` ends. strong_steps: of the attack that each
    nu is met with in the end.

    The released code's setting: batch=128, weight_step=0.01, keep="last", reference="paper".
    """

    coupling: Literal["clean", "frozen", "joint"] = "joint"
    xi: Number = Field(default=0.003, ge=0)
    ball: BallShape = "layer"
    norm: BallNorm = "l2"
    restarts: PositiveInt = 10
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)
    weight_step: Number | None = Field(default=None, gt=0)
    batch: NonNegativeInt = 0
    keep: Literal["best", "last"] = "best"
    warm: bool = False
    strong_steps: PositiveInt = 40
    logits: Literal["plain", "normalised"] = "plain"
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10

    _attacked = model_validator(mode="after")(_reference_is_attacked)


class AdaptiveAverageParams(OracleParams):
    """ball: Gaussian (l2) or uniform (linf) moves of size rho. adaptive: times each weight's magnitude."""

    ball: Literal["l2", "linf"] = "l2"
    adaptive: bool = True
    rho: Number = Field(default=0.1, ge=0)
    draws: int = Field(default=20, ge=2)


class LPFParams(OracleParams):
    """std: of the Gaussian filter. filter_normalised: std is relative to the root mean square of each filter."""

    std: Number = Field(default=0.01, ge=0)
    filter_normalised: bool = False
    draws: int = Field(default=100, ge=2)


class LocalEntropyParams(OracleParams):
    """gamma: sharpness of the Gaussian window; moves have about 1/sqrt(gamma) of each layer's norm."""

    gamma: Number = Field(default=10.0, gt=0)
    draws: int = Field(default=100, gt=5)


class PacBayesSigmaParams(OracleParams):
    """target: rise of the error rate that is borne. largest: s tried first. tolerance: of sigma, relative.

    magnitude: noise of variance s^2 w^2 + e^2 instead of s^2. Error rates do not see how logits are scaled.
    """

    target: Number = Field(default=0.1, gt=0, lt=1)
    draws: int = Field(default=10, ge=2)
    largest: Number = Field(default=2.0, gt=0)
    tolerance: Number = Field(default=0.01, ge=1e-9, lt=1)
    magnitude: bool = False
    e: Number = Field(default=1e-3, ge=0)
    logits: Literal["plain"] = "plain"


class BasinWidthParams(OracleParams):
    """target: rise of the loss that is borne. normalisation: what of a direction has the norm of its weights.

    largest: radius tried first, relative to these norms. tolerance: of each radius, relative.
    """

    target: Number = Field(default=0.1, gt=0)
    directions: int = Field(default=10, ge=2)
    normalisation: Literal["filter", "layer"] = "filter"
    largest: Number = Field(default=2.0, gt=0)
    tolerance: Number = Field(default=0.01, ge=1e-9, lt=1)


class FixedImagesParams(OracleParams):
    """Of a measure that differentiates the loss by the weights: its images stay as they are while these move."""

    coupling: Literal["clean", "frozen"] = "frozen"
    warm: Literal[False] = False


class LanczosParams(FixedImagesParams):
    """tolerance: of Lanczos, relative to the width of the spectrum. vectors: it keeps. iterations: restarts at most."""

    tolerance: Number = Field(default=1e-3, gt=0)
    vectors: int = Field(default=20, ge=3)
    iterations: PositiveInt = 300


class HessianLambdaMaxParams(LanczosParams):
    """tolerance: of Lanczos, relative to the width of the spectrum. vectors: it keeps. iterations: restarts at most.

    density: probes of the spectral density (0: none). nodes: of each; it takes as many products and, in memory, as
    many times the weights.
    """

    density: NonNegativeInt = 0
    nodes: PositiveInt = 80


class HessianTraceParams(FixedImagesParams):
    """probes: random vectors of Hutchinson's estimator."""

    probes: int = Field(default=50, ge=2)


class WeightedCurvatureParams(LanczosParams):
    """probes: random vectors of Hutchinson's estimator. tolerance, vectors, iterations: of Lanczos."""

    probes: int = Field(default=50, ge=2)


class RelativeFlatnessParams(FixedImagesParams):
    """Those of the loss alone: the layer's curvature is exact."""


class FisherRaoParams(FixedImagesParams):
    """Those of the loss alone: the product with the Fisher matrix is exact."""


class SamSharpnessParams(FixedImagesParams):
    """rho: length of the one step, over all layers."""

    rho: Number = Field(default=0.05, ge=0)


class MSharpnessParams(FixedImagesParams):
    """rho: radius, over all layers. m: examples that share a perturbation; part of the definition. iterations: of
    the ascent in each batch of m."""

    rho: Number = Field(default=0.05, ge=0)
    m: PositiveInt = 128
    iterations: PositiveInt = 20


class AdaptiveWorstParams(FixedImagesParams):
    """rho: radius in units of c = |w| + eta, or of 1 without adaptive; of a box (ball="linf") about a hundredth of
    an ellipsoid's. iterations: of Auto-PGD. starts: the first at w, the others random in the ball."""

    rho: Number = Field(default=0.5, ge=0)
    ball: Literal["l2", "linf"] = "l2"
    adaptive: bool = True
    eta: Number = Field(default=0.0, ge=0)
    iterations: PositiveInt = 20
    starts: PositiveInt = 1


class KeskarParams(FixedImagesParams):
    """epsilon: half-width of the box, relative to |w_i| + 1. iterations: of L-BFGS-B."""

    epsilon: Number = Field(default=1e-3, ge=0)
    iterations: PositiveInt = 10


class PacBayesSharpnessParams(FixedImagesParams):
    """target: tolerated rise of the error rate. magnitude: half-widths alpha |w_i| + e rather than alpha.

    iterations, starts: of each trial's ascent. largest: alpha tried last; the first is a millionth of it.
    bisections: of a factor of 4, on a logarithmic scale.
    """

    target: Number = Field(default=0.1, gt=0, lt=1)
    magnitude: bool = False
    e: Number = Field(default=1e-3, ge=0)
    iterations: PositiveInt = 20
    starts: PositiveInt = 1
    largest: Number = Field(default=2.0, gt=0)
    bisections: PositiveInt = 8


class WeightGradientNormParams(FixedImagesParams):
    """The mean loss is that of the images at which `coupling` reads it."""


class InputGradientNormParams(FixedImagesParams):
    """p: of the norm; 1 is the dual of the l-inf threat."""

    p: Literal[1, 2] = 1


class MarginParams(FixedImagesParams):
    """kind: of what the label wins by."""

    kind: Literal["probability", "logit"] = "probability"


class LocalLipschitzParams(Params):
    """target: the output whose change is measured. steps, step (default epsilon/4), restarts: of the ascent."""

    target: Literal["logits", "probabilities", "divergence"] = "logits"
    steps: PositiveInt = 10
    step: Number | None = Field(default=None, gt=0)
    restarts: PositiveInt = 1


class BoundaryThicknessParams(Params):
    """a, b: the levels between which the difference of the two probabilities counts. points: on the segment.
    attack, radius (l-inf, default epsilon), steps, step (default radius/4): how the other end is found."""

    a: Number = Field(default=0.0, ge=-1, le=1)
    b: Number = Field(default=0.75, ge=-1, le=1)
    points: PositiveInt = 128
    attack: Literal["untargeted", "targeted"] = "untargeted"
    radius: Number | None = Field(default=None, gt=0)
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)


class GradientAlignmentParams(Params):
    """draws: of the noise, for each example."""

    draws: PositiveInt = 1


class SpectralNormParams(Params):
    """iterations: of the power method at most, for each layer; it ends where the residual falls below tolerance."""

    iterations: PositiveInt = 100
    tolerance: Number = Field(default=1e-4, ge=0)


_FUNCTION: dict[Rescaling, float] = {"layers": 0, "filters": 0, "units": 0}
"""Of what sees the function alone, or weights only relative to themselves."""


_STRONG = ("2 * restarts * (strong_steps + 1)", "2 * restarts * strong_steps")
"""What the attack on the end of each ascent takes."""


def _read(times: str) -> dict[str, Passes]:
    """Of a loss that is read so many times, under each coupling of the oracle."""
    return {
        "clean": Passes(times),
        "frozen": Passes(f"A + {times}", "B"),
        "reattack": Passes(f"({times}) * A", f"({times}) * B"),
    }


def _differentiate(forward: str, backward: str) -> dict[str, Passes]:
    """Of what is computed at fixed images."""
    return {"clean": Passes(forward, backward), "frozen": Passes(f"A + {forward}", f"B + {backward}")}


@hookimpl
def robflat_bench_measures() -> list[MeasureInfo]:
    return [
        MeasureInfo(
            "average-case",
            "average-case flatness of the robust loss: its mean rise over random weights at distance xi",
            "robflat_bench.measures.flatness.average_case:AverageCase",
            AverageCaseParams,
            STUTZ,
            "average-case flatness ({coupling}), xi={xi:g}, {draws} draws",
            {"draws": 2, "steps": 2},
            couplings=("clean", "frozen", "reattack"),
            passes=_read("draws + 1"),
            powers={"layers": 0},
        ),
        MeasureInfo(
            "worst-case",
            "worst-case flatness of the robust loss: its highest rise over weights within xi",
            "robflat_bench.measures.flatness.worst_case:WorstCase",
            WorstCaseParams,
            STUTZ,
            "worst-case flatness ({coupling}), xi={xi:g}, {restarts} restarts",
            {"restarts": 2, "steps": 2, "strong_steps": 2},
            couplings=("clean", "frozen", "joint"),
            passes={
                "clean": Passes("restarts * (steps + 2)", "restarts * steps"),
                "frozen": Passes(
                    f"steps + 1 + restarts * (steps + 2) + {_STRONG[0]}", f"steps + restarts * steps + {_STRONG[1]}"
                ),
                "joint": Passes(f"2 * restarts * (steps + 1) + {_STRONG[0]}", f"2 * restarts * steps + {_STRONG[1]}"),
            },
            powers={"layers": 0},
        ),
        MeasureInfo(
            "adaptive-average",
            "mean rise of the loss under random moves, each weight in proportion to its magnitude",
            "robflat_bench.measures.sharpness.adaptive_average:AdaptiveAverage",
            AdaptiveAverageParams,
            "Andriushchenko et al.: A modern look at the relationship between sharpness and generalization. ICML 2023",
            "average sharpness ({coupling}), {ball}, rho={rho:g}, adaptive={adaptive}, {draws} draws",
            {"draws": 2, "steps": 2},
            couplings=("clean", "frozen", "reattack"),
            passes=_read("draws + 1"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "lpf",
            "rise of the loss when a Gaussian low-pass filter smooths it over the weights",
            "robflat_bench.measures.sharpness.lpf:LPF",
            LPFParams,
            "Bisla, Wang, Choromanska: Low-pass filtering SGD for recovering flat optima in the deep learning "
            "optimization landscape. AISTATS 2022",
            "LPF ({coupling}), std={std:g}, filter_normalised={filter_normalised}, {draws} draws",
            {"draws": 2, "steps": 2},
            couplings=("clean", "frozen", "reattack"),
            passes=_read("draws + 1"),
        ),
        MeasureInfo(
            "local-entropy",
            "minus the logarithm of the mean of exp(-loss) in a Gaussian window around the weights",
            "robflat_bench.measures.sharpness.local_entropy:LocalEntropy",
            LocalEntropyParams,
            "Chaudhari et al.: Entropy-SGD: Biasing gradient descent into wide valleys. ICLR 2017",
            "negative local entropy ({coupling}), gamma={gamma:g}, {draws} draws",
            {"draws": 8, "steps": 2},
            couplings=("clean", "frozen", "reattack"),
            passes=_read("draws + 1"),
            powers={"layers": 0},
        ),
        MeasureInfo(
            "pac-bayes-sigma",
            "1/sigma^2 of the largest Gaussian noise on the weights under which the error rate rises by the target",
            "robflat_bench.measures.sharpness.pac_bayes_sigma:PacBayesSigma",
            PacBayesSigmaParams,
            "Jiang et al.: Fantastic generalization measures and where to find them. ICLR 2020; "
            "Dziugaite et al.: In search of robust measures of generalization. NeurIPS 2020",
            "PAC-Bayes 1/sigma^2 ({coupling}), target={target:g}, magnitude={magnitude}, {draws} draws",
            {"draws": 2, "steps": 2, "tolerance": 0.25},
            couplings=("clean", "frozen", "reattack"),
            powers={"layers": -2},
        ),
        MeasureInfo(
            "basin-width",
            "mean relative distance along random directions at which the loss has risen by the target",
            "robflat_bench.measures.sharpness.basin_width:BasinWidth",
            BasinWidthParams,
            "Hochreiter, Schmidhuber: Flat minima. Neural Computation 1997; "
            "Li et al.: Visualizing the loss landscape of neural nets. NeurIPS 2018",
            "basin width by {normalisation} ({coupling}), target={target:g}, {directions} directions",
            {"directions": 2, "steps": 2, "tolerance": 0.25},
            couplings=("clean", "frozen", "reattack"),
            powers={"layers": 0, "filters": 0},
        ),
        MeasureInfo(
            "hessian-lambda-max",
            "largest eigenvalue of the Hessian of the loss over the weights, by Lanczos",
            "robflat_bench.measures.curvature.curvature:HessianLambdaMax",
            HessianLambdaMaxParams,
            PYHESSIAN,
            "largest Hessian eigenvalue ({coupling})",
            {"steps": 2, "tolerance": 0.5, "vectors": 3},
            couplings=("clean", "frozen"),
            powers={"layers": -2},
        ),
        MeasureInfo(
            "hessian-trace",
            "trace of the Hessian of the loss over the weights, whole and per layer, by Hutchinson's estimator",
            "robflat_bench.measures.curvature.curvature:HessianTrace",
            HessianTraceParams,
            PYHESSIAN,
            "Hessian trace ({coupling}), {probes} probes",
            {"steps": 2, "probes": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("probes", "2 * probes"),
            powers={"layers": -2},
        ),
        MeasureInfo(
            "weighted-curvature",
            "curvature along each weight times its square, summed: the small-radius limit of adaptive sharpness",
            "robflat_bench.measures.curvature.curvature:WeightedCurvature",
            WeightedCurvatureParams,
            "Andriushchenko et al.: A modern look at the relationship between sharpness and generalization. ICML 2023",
            "weighted curvature ({coupling}), {probes} probes",
            {"steps": 2, "probes": 2, "tolerance": 0.5, "vectors": 3},
            couplings=("clean", "frozen"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "relative-flatness",
            "relative flatness of the last linear layer: its Hessian's traces times the products of its weights, exact",
            "robflat_bench.measures.curvature.relative_flatness:RelativeFlatness",
            RelativeFlatnessParams,
            "Petzka, Kamp, Adilova, Sminchisescu, Boley: Relative flatness and generalization. NeurIPS 2021",
            "relative flatness ({coupling})",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("1", "0"),
            powers={"layers": 0, "filters": 0},
        ),
        MeasureInfo(
            "fisher-rao",
            "squared Fisher-Rao norm of the weights: <w, F w>, exact by Jacobian-vector products",
            "robflat_bench.measures.curvature.fisher_rao:FisherRao",
            FisherRaoParams,
            "Liang, Poggio, Rakhlin, Stokes: Fisher-Rao metric, geometry, complexity of neural networks. AISTATS 2019",
            "Fisher-Rao norm, squared ({coupling})",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("1", "1"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "sam-sharpness",
            "rise of the loss after one step of length rho along its gradient in weight space",
            "robflat_bench.measures.sharpness.sam:SamSharpness",
            SamSharpnessParams,
            "Foret, Kleiner, Mobahi, Neyshabur: Sharpness-aware minimization. ICLR 2021",
            "SAM sharpness ({coupling}), rho={rho:g}",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("2", "2"),
        ),
        MeasureInfo(
            "m-sharpness",
            "highest rise of the loss of m examples over weights within rho, mean over batches",
            "robflat_bench.measures.sharpness.sam:MSharpness",
            MSharpnessParams,
            "Andriushchenko, Flammarion: Towards understanding sharpness-aware minimization. ICML 2022",
            "m-sharpness ({coupling}), m={m}, rho={rho:g}",
            {"steps": 2, "m": 6, "iterations": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("iterations + 1", "iterations + 1"),
        ),
        MeasureInfo(
            "adaptive-worst",
            "highest rise of the loss over weights in an ellipsoid or box that follows their magnitude",
            "robflat_bench.measures.sharpness.adaptive_worst:AdaptiveWorst",
            AdaptiveWorstParams,
            "Andriushchenko, Croce, Mueller, Hein, Flammarion: A modern look at the relationship between sharpness "
            "and generalization. ICML 2023",
            "adaptive worst-case sharpness ({coupling}), {ball}, rho={rho:g}",
            {"steps": 2, "iterations": 3, "starts": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("1 + starts * (iterations + 1)", "1 + starts * (iterations + 1)"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "keskar",
            "highest loss in a box around the weights, relative to the loss there, in per cent",
            "robflat_bench.measures.sharpness.keskar:Keskar",
            KeskarParams,
            "Keskar, Mudigere, Nocedal, Smelyanskiy, Tang: On large-batch training for deep learning. ICLR 2017",
            "Keskar sharpness ({coupling}), eps={epsilon:g}",
            {"steps": 2, "iterations": 3},
            couplings=("clean", "frozen"),
        ),
        MeasureInfo(
            "pac-bayes-sharpness",
            "1/alpha^2, alpha the half-width of the box of weights whose worst case adds `target` errors",
            "robflat_bench.measures.sharpness.pac_bayes_sharpness:PacBayesSharpness",
            PacBayesSharpnessParams,
            "Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020",
            "PAC-Bayes sharpness ({coupling}), target={target:g}",
            {"steps": 2, "iterations": 2, "bisections": 2},
            couplings=("clean", "frozen"),
            powers={"layers": -2},
        ),
        MeasureInfo(
            "weight-gradient-norm",
            "length of the loss's gradient in the weights",
            "robflat_bench.measures.norms.weight_gradient_norm:WeightGradientNorm",
            WeightGradientNormParams,
            JIANG,
            "weight-gradient norm ({coupling})",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("2", "2"),
            powers={"layers": -1},
        ),
        MeasureInfo(
            "input-gradient-norm",
            "mean length of the loss's gradient in the pixels",
            "robflat_bench.measures.inputs.input_gradient_norm:InputGradientNorm",
            InputGradientNormParams,
            "Kim et al.: Fantastic robustness measures: the secrets of robust generalization. NeurIPS 2023",
            "input-gradient l{p} norm ({coupling})",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("1", "1"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "margin",
            "by how much the label wins over the next class",
            "robflat_bench.measures.inputs.margin:Margin",
            MarginParams,
            JIANG,
            "{kind} margin ({coupling})",
            {"steps": 2},
            couplings=("clean", "frozen"),
            passes=_differentiate("1", "0"),
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "local-lipschitz",
            "largest change of the output per change of the input within the ball",
            "robflat_bench.measures.inputs.local_lipschitz:LocalLipschitz",
            LocalLipschitzParams,
            "Yang, Rashtchian, Zhang, Salakhutdinov, Chaudhuri: A closer look at accuracy vs. robustness. NeurIPS 2020",
            "local Lipschitz constant of {target}",
            {"steps": 2},
            couplings=("clean",),
            passes={"clean": Passes("1 + restarts * (steps + 1)", "restarts * steps")},
            powers={**_FUNCTION, "logits": 1},
        ),
        MeasureInfo(
            "boundary-thickness",
            "length over which the network doubts on the way to an adversarial image",
            "robflat_bench.measures.inputs.boundary_thickness:BoundaryThickness",
            BoundaryThicknessParams,
            "Yang et al.: Boundary thickness and robustness in learning models. NeurIPS 2020",
            "boundary thickness, {a:g} to {b:g}, {attack}",
            {"steps": 2, "points": 8},
            couplings=("clean",),
            passes={"clean": Passes("steps + 3 + points", "steps")},
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "gradient-alignment",
            "cosine of the loss's gradients at an image and at a random one in its ball",
            "robflat_bench.measures.inputs.gradient_alignment:GradientAlignment",
            GradientAlignmentParams,
            "Andriushchenko, Flammarion: Understanding and improving fast adversarial training. NeurIPS 2020",
            "gradient alignment, {draws} draws",
            couplings=("clean",),
            passes={"clean": Passes("1 + draws", "1 + draws")},
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "spectral-norm",
            "log-sum of the operator norms of convolutions (normalisation folded in) and linear layers",
            "robflat_bench.measures.norms.spectral_norm:SpectralNorm",
            SpectralNormParams,
            JIANG,
            "log-sum of operator norms",
            {"iterations": 20},
            passes={"": Passes()},
            powers={"layers": 0, "filters": 0},
        ),
        MeasureInfo(
            "path-norm",
            "log-sum of squared weights along all paths (normalisation folded in)",
            "robflat_bench.measures.norms.path_norm:PathNorm",
            citation=JIANG,
            title="log path norm",
            passes={"": Passes()},
            powers=_FUNCTION,
        ),
        MeasureInfo(
            "distance-from-init",
            "distance of the weights from those that training began with",
            "robflat_bench.measures.norms.distance_from_init:DistanceFromInit",
            citation=f"Dziugaite, Roy: Computing nonvacuous generalization bounds. UAI 2017; {JIANG}",
            title="distance from initialisation",
            passes={"": Passes()},
        ),
    ]
