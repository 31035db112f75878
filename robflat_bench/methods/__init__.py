"""Catalogue of training methods (torch-free); equations and code lie in the files the factories name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import MethodInfo, Passes
from robflat_bench.core.params import Number, Params

PGD = Passes("T + 1", "T")
"""The recipe's attack: T steps and the last evaluation."""


class TRADESParams(Params):
    """beta: weight of the divergence term (lambda in some papers)."""

    beta: float = Field(default=6.0, ge=0)


class MARTParams(Params):
    """beta: weight of the divergence term (lambda in some papers)."""

    beta: float = Field(default=6.0, ge=0)


class ALPParams(Params):
    """weight: of the squared distance between the logits. clean: also learn the clean images' labels."""

    weight: float = Field(default=0.5, ge=0)
    clean: bool = False


class SCOREParams(Params):
    """beta: weight of the distance between the predictions. smoothing: what the target leaves to the other classes
    (on top of a modifier's)."""

    beta: float = Field(default=3.0, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)


class MMAParams(Params):
    """max_margin: margins beyond it are large enough (published for CIFAR-10: 12, 20 and 32 of 255). steps: of the
    PGD that finds the direction. bisections: that find the margin along it."""

    max_margin: Number = Field(default=12 / 255, gt=0, lt=1)
    steps: PositiveInt = 10
    bisections: PositiveInt = 10


class GAIRATParams(Params):
    """lam: the larger, the more even the weights. warmup: the fraction of training without weights."""

    lam: float = Field(default=-1.0, ge=-10, le=10)
    warmup: float = Field(default=0.5, ge=0, lt=1)


class SelfAdaptiveParams(Params):
    """beta: weight of the divergence term. momentum: weight of the label so far in its running average. start: the
    fraction of training before labels move."""

    beta: float = Field(default=6.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    start: float = Field(default=0.7, ge=0, lt=1)


class FGSMRSParams(Params):
    """alpha: size of the step, in radii."""

    alpha: float = Field(default=1.25, gt=0)


class NFGSMParams(Params):
    """k: half-width of the uniform noise, in radii. alpha: size of the step, in radii."""

    k: float = Field(default=2.0, ge=0)
    alpha: float = Field(default=1.0, gt=0)


class FreeATParams(Params):
    """repeats: updates per batch (m); an epoch is a pass over the data, so it costs `repeats` times as much."""

    repeats: PositiveInt = 8


class GradAlignParams(Params):
    """weight: of the alignment term (lambda). alpha: size of the attack's step, in radii. start: of the attack, at the
    image or uniform in the ball."""

    weight: float = Field(default=0.2, ge=0)
    alpha: float = Field(default=1.25, gt=0)
    start: Literal["zero", "uniform"] = "zero"


class HATParams(TRADESParams):
    """beta: weight of the divergence term. h: how far the helper images go along the perturbation, 1 being the
    adversarial image. gamma: weight of their cross-entropy."""

    beta: float = Field(default=2.5, ge=0)
    h: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=0.5, ge=0)


class ConsATParams(Params):
    """weight: of the divergence between the views (lambda). temperature: divides the logits in it."""

    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.5, gt=0)


class MLCATParams(Params):
    """threshold: of the loss, below which an example is changed. form: 'scaled' raises its weight, as intended;
    'as-released' removes it from the gradient."""

    threshold: float = Field(default=1.5, gt=0)
    form: Literal["scaled", "as-released"] = "scaled"


@hookimpl
def robflat_bench_methods() -> list[MethodInfo]:
    return [
        MethodInfo(
            "standard",
            "cross-entropy on clean images: the control without robustness",
            "robflat_bench.methods.standard:Standard",
            claims=("attack",),
        ),
        MethodInfo(
            "at",
            "adversarial training: cross-entropy on PGD examples",
            "robflat_bench.methods.at:AT",
            citation="Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018",
            attack=PGD,
        ),
        MethodInfo(
            "trades",
            "clean cross-entropy plus divergence between clean and adversarial predictions",
            "robflat_bench.methods.trades:TRADES",
            TRADESParams,
            "Zhang et al.: Theoretically principled trade-off between robustness and accuracy. ICML 2019",
            attack=Passes("T + 2", "T"),
            loss=Passes("2", "2"),
        ),
        MethodInfo(
            "mart",
            "boosted cross-entropy on PGD examples plus divergence, more of it where the clean image is doubtful",
            "robflat_bench.methods.mart:MART",
            MARTParams,
            "Wang et al.: Improving adversarial robustness requires revisiting misclassified examples. ICLR 2020",
            attack=PGD,
            loss=Passes("2", "2"),
        ),
        MethodInfo(
            "alp",
            "adversarial logit pairing: squared distance between clean and adversarial logits; known to mask gradients",
            "robflat_bench.methods.alp:ALP",
            ALPParams,
            "Kannan, Kurakin, Goodfellow: Adversarial logit pairing. arXiv 1803.06373, 2018",
            attack=PGD,
            loss=Passes("2", "2"),
        ),
        MethodInfo(
            "score",
            "squared errors of the predictions instead of cross-entropy and divergence",
            "robflat_bench.methods.score:SCORE",
            SCOREParams,
            "Pang et al.: Robustness and accuracy could be reconcilable by (proper) definition. ICML 2022",
            attack=Passes("T + 2", "T"),
            loss=Passes("2", "2"),
        ),
        MethodInfo(
            "mma",
            "max-margin adversarial training: each example attacked at its own distance from the boundary",
            "robflat_bench.methods.mma:MMA",
            MMAParams,
            "Ding et al.: MMA training: direct input space margin maximization through adversarial training. ICLR 2020",
            example={"steps": 2, "bisections": 2},
            attack=Passes("steps + bisections + 3", "steps"),
            loss=Passes("2", "2"),
            claims=("attack",),
        ),
        MethodInfo(
            "gairat",
            "adversarial training that weights examples by how soon the attack fools them",
            "robflat_bench.methods.gairat:GAIRAT",
            GAIRATParams,
            "Zhang et al.: Geometry-aware instance-reweighted adversarial training. ICLR 2021",
            example={"warmup": 0},
            attack=PGD,
            claims=("attack",),
        ),
        MethodInfo(
            "self-adaptive",
            "TRADES with labels that move towards the network's own predictions",
            "robflat_bench.methods.self_adaptive:SelfAdaptive",
            SelfAdaptiveParams,
            "Huang, Zhang, Zhang: Self-adaptive training: beyond empirical risk minimization. NeurIPS 2020",
            example={"start": 0},
            attack=Passes("T + 2", "T"),
            loss=Passes("2", "2"),
            claims=("batch", "target"),
        ),
        MethodInfo(
            "fgsm-rs",
            "fast adversarial training: one step from a random start",
            "robflat_bench.methods.fgsm_rs:FGSMRS",
            FGSMRSParams,
            "Wong, Rice, Kolter: Fast is better than free: revisiting adversarial training. ICLR 2020",
            attack=Passes("1", "1"),
            claims=("attack",),
        ),
        MethodInfo(
            "n-fgsm",
            "one step from strong noise, without projection onto the ball",
            "robflat_bench.methods.n_fgsm:NFGSM",
            NFGSMParams,
            "de Jorge et al.: Make some noise: reliable and efficient single-step adversarial training. NeurIPS 2022",
            attack=Passes("1", "1"),
            claims=("attack",),
        ),
        MethodInfo(
            "free-at",
            "replays each batch; one backward pass moves weights and perturbation, which is carried over",
            "robflat_bench.methods.free_at:FreeAT",
            FreeATParams,
            "Shafahi et al.: Adversarial training for free! NeurIPS 2019",
            example={"repeats": 3},
            updates="repeats",
            claims=("attack",),
        ),
        MethodInfo(
            "gradalign",
            "one-step adversarial training with input gradients kept aligned within the ball",
            "robflat_bench.methods.gradalign:GradAlign",
            GradAlignParams,
            "Andriushchenko, Flammarion: Understanding and improving fast adversarial training. NeurIPS 2020",
            attack=Passes("1", "1"),
            loss=Passes("3", "4"),
            claims=("attack",),
        ),
        MethodInfo(
            "hat",
            "TRADES plus images beyond the ball, labelled by a standard network",
            "robflat_bench.methods.hat:HAT",
            HATParams,
            "Rade, Moosavi-Dezfooli: Reducing excessive margin to achieve a better accuracy vs. robustness trade-off. "
            "ICLR 2022",
            attack=Passes("T + 2", "T"),
            loss=Passes("4", "3"),
            helpers={"standard": "standard"},
        ),
        MethodInfo(
            "cons-at",
            "adversarial training on two augmentations whose predictions shall agree",
            "robflat_bench.methods.cons_at:ConsAT",
            ConsATParams,
            "Tack et al.: Consistency regularization for adversarial robustness. AAAI 2022",
            attack=Passes("2 * (T + 1)", "2 * T"),
            loss=Passes("2", "2"),
            claims=("attack", "batch"),
        ),
        MethodInfo(
            "mlcat",
            "adversarial training that raises small losses to a threshold",
            "robflat_bench.methods.mlcat:MLCAT",
            MLCATParams,
            "Yu et al.: Understanding robust overfitting of adversarial training and beyond. ICML 2022",
            attack=PGD,
        ),
    ]
