"""Catalogue of modifiers (torch-free); equations and code lie in the files the factories name.

Ranks: modifiers of one joint act in this order. Images: policies (10) before holes (20). Batches: other images (10)
before mixing (20). Targets: noise (10) before smoothing (20). After a step and at the end of an epoch: the weights
themselves (10), then running averages (20), then averages of averages (30).
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import ModifierInfo, Passes
from robflat_bench.core.params import Number, Params


class AWPParams(Params):
    """gamma: radius relative to each layer's norm. steps of size `step` (relative, too), by default one step of
    the whole radius. warmup: the fraction of training without perturbation."""

    gamma: Number = Field(default=0.01, gt=0, lt=1)
    steps: PositiveInt = 1
    step: Number | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.0, ge=0, lt=1)


class CutMixParams(Params):
    """alpha: the box leaves a fraction drawn from Beta(alpha, alpha); 1 is uniform."""

    alpha: float = Field(default=1.0, gt=0)


class CutoutParams(Params):
    """fraction: side of the hole, of the image's side."""

    fraction: Number = Field(default=0.5, gt=0, le=1)


class LabelNoiseParams(Params):
    """tau: probability of a label drawn anew."""

    tau: Number = Field(default=0.1, ge=0, le=1)


class LabelSmoothingParams(Params):
    """tau: the share of the target that all classes have in equal parts."""

    tau: Number = Field(default=0.1, ge=0, lt=1)


class PGDTauParams(Params):
    """tau: steps after the first misclassified iterate."""

    tau: NonNegativeInt = 0


class SelfSupervisionParams(Params):
    """weight: of the turned images' loss (lambda in the papers)."""

    weight: float = Field(default=1.0, ge=0)


class UnlabeledParams(Params):
    """ratio: the fraction of each batch that is unlabelled."""

    ratio: Number = Field(default=0.7, gt=0, lt=1)


class EMAParams(Params):
    """decay: weight of the average so far. warmup: decay is at most (1 + k) / (10 + k) after k updates."""

    decay: float = Field(default=0.995, ge=0, lt=1)
    warmup: bool = True


class RandomWPParams(Params):
    """xi: length of the perturbation relative to each layer's norm; by default the average-case measure's."""

    xi: Number = Field(default=0.5, gt=0)


class RWPParams(Params):
    """gamma: radius relative to the norm of all weights, and the length of a step. threshold: examples with a loss
    below it push the weights away; MLCAT has 1.5."""

    gamma: Number = Field(default=0.01, gt=0, lt=1)
    steps: PositiveInt = 10
    threshold: float = Field(default=1.7, gt=0)


class SAMParams(Params):
    """rho: radius in the norm of all parameters."""

    rho: Number = Field(default=0.05, gt=0)


class ASAMParams(Params):
    """rho: radius in units of the weights. eta: added to their size, so that small ones move, too."""

    rho: Number = Field(default=0.5, gt=0)
    eta: float = Field(default=0.01, ge=0)


class EntropySGDParams(Params):
    """steps: inner ones per outer one, at this rate. gamma: the pull towards the outer weights, growing by the
    factor 1 + scoping with each outer step. noise: of the inner steps. averaging: weight of the average so far."""

    steps: PositiveInt = 5
    rate: float = Field(default=0.1, gt=0)
    gamma: float = Field(default=1e-4, ge=0)
    noise: float = Field(default=1e-4, ge=0)
    scoping: float = Field(default=1e-3, ge=0)
    averaging: float = Field(default=0.75, ge=0, lt=1)


class SWAParams(Params):
    """start: the fraction of training after which epochs are averaged. calibrate: whether batch normalisation
    statistics are estimated anew at the average, on the clean training images."""

    start: float = Field(default=0.5, ge=0, le=1)
    calibrate: bool = True


class WeightClippingParams(Params):
    """limit: the largest size of a parameter (of a normalisation scale: its largest distance from 1)."""

    limit: Number = Field(default=0.005, gt=0)


@hookimpl
def robflat_bench_modifiers() -> list[ModifierInfo]:
    return [
        ModifierInfo(
            "awp",
            "adversarial weight perturbation: descends the loss at the worst weights nearby",
            "robflat_bench.modifiers.awp:AWP",
            AWPParams,
            "Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization. NeurIPS 2020",
            joints=("backward",),
            losses="1 + steps",
        ),
        ModifierInfo(
            "autoaugment",
            "the augmentation policy found on CIFAR-10, image by image",
            "robflat_bench.modifiers.autoaugment:AutoAugment",
            citation="Cubuk et al.: AutoAugment: Learning augmentation strategies from data. CVPR 2019",
            joints=("augment",),
            rank=10,
        ),
        ModifierInfo(
            "cutmix",
            "pastes a box of another image into each, and mixes the targets by area",
            "robflat_bench.modifiers.cutmix:CutMix",
            CutMixParams,
            "Yun et al.: CutMix: Regularization strategy to train strong classifiers with localizable features. "
            "ICCV 2019",
            joints=("batch",),
            rank=20,
        ),
        ModifierInfo(
            "cutout",
            "a square hole in each image",
            "robflat_bench.modifiers.cutout:Cutout",
            CutoutParams,
            "DeVries, Taylor: Improved regularization of convolutional neural networks with Cutout. arXiv 1708.04552",
            joints=("augment",),
            rank=20,
        ),
        ModifierInfo(
            "ignore-incorrect",
            "examples that are misclassified anyway stay clean",
            "robflat_bench.modifiers.ignore_incorrect:IgnoreIncorrect",
            citation="Stutz et al.: Relating adversarially robust generalization to flat minima. ICCV 2021",
            joints=("attack",),
            attack=Passes("1", "0"),
        ),
        ModifierInfo(
            "label-noise",
            "labels drawn anew at random, in the loss only",
            "robflat_bench.modifiers.label_noise:LabelNoise",
            LabelNoiseParams,
            "Stutz et al.: Relating adversarially robust generalization to flat minima. ICCV 2021",
            joints=("target",),
            rank=10,
        ),
        ModifierInfo(
            "label-smoothing",
            "a part of each target goes to all classes equally",
            "robflat_bench.modifiers.label_smoothing:LabelSmoothing",
            LabelSmoothingParams,
            "Szegedy et al.: Rethinking the Inception architecture for computer vision. CVPR 2016",
            joints=("target",),
            rank=20,
        ),
        ModifierInfo(
            "pgd-tau",
            "friendly attack: each example stops soon after it is misclassified",
            "robflat_bench.modifiers.pgd_tau:PGDTau",
            PGDTauParams,
            "Zhang et al.: Attacks which do not kill training make adversarial learning stronger. ICML 2020",
            joints=("attack",),
        ),
        ModifierInfo(
            "prevent-label-leaking",
            "the attack sees the predicted label instead of the true one",
            "robflat_bench.modifiers.prevent_label_leaking:PreventLabelLeaking",
            citation="Kurakin, Goodfellow, Bengio: Adversarial machine learning at scale. ICLR 2017",
            joints=("attack",),
            attack=Passes("1", "0"),
        ),
        ModifierInfo(
            "self-supervision",
            "adds the loss of telling how adversarial images were turned",
            "robflat_bench.modifiers.self_supervision:SelfSupervision",
            SelfSupervisionParams,
            "Hendrycks et al.: Using self-supervised learning can improve model robustness and uncertainty. "
            "NeurIPS 2019",
            joints=("loss",),
            attack=Passes("T + 1", "T"),
            loss=Passes("1", "1"),
        ),
        ModifierInfo(
            "unlabeled",
            "most of each batch are further images, labelled by a standard network",
            "robflat_bench.modifiers.unlabeled:Unlabeled",
            UnlabeledParams,
            "Carmon et al.: Unlabeled data improves adversarial robustness. NeurIPS 2019",
            joints=("batch",),
            rank=10,
            helpers={"standard": "standard"},
            extra_data=True,
        ),
        ModifierInfo(
            "ema",
            "evaluates an exponential moving average of the weights",
            "robflat_bench.modifiers.ema:EMA",
            EMAParams,
            "Rebuffi et al.: Data augmentation can improve robustness. NeurIPS 2021",
            joints=("after_step", "model"),
            rank=20,
        ),
        ModifierInfo(
            "random-wp",
            "random weight perturbation: descends the loss at weights a random step away",
            "robflat_bench.modifiers.random_wp:RandomWP",
            RandomWPParams,
            "Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021",
            joints=("backward",),
        ),
        ModifierInfo(
            "rwp",
            "robust weight perturbation: descends the loss at weights that are worst for well-learned examples",
            "robflat_bench.modifiers.rwp:RWP",
            RWPParams,
            "Yu et al.: Robust weight perturbation for adversarial training. IJCAI 2022",
            example={"steps": 2},
            joints=("backward",),
            losses="1 + steps",
        ),
        ModifierInfo(
            "sam",
            "sharpness-aware minimisation: descends the loss one gradient step uphill",
            "robflat_bench.modifiers.sam:SAM",
            SAMParams,
            "Foret et al.: Sharpness-aware minimization for efficiently improving generalization. ICLR 2021",
            joints=("backward",),
            losses="2",
        ),
        ModifierInfo(
            "asam",
            "adaptive sharpness-aware minimisation: SAM in units of each weight's size",
            "robflat_bench.modifiers.sam:ASAM",
            ASAMParams,
            "Kwon et al.: ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep neural "
            "networks. ICML 2021",
            joints=("backward",),
            losses="2",
        ),
        ModifierInfo(
            "entropy-sgd",
            "descends the local entropy of the loss, estimated by Langevin dynamics around the weights",
            "robflat_bench.modifiers.entropy_sgd:EntropySGD",
            EntropySGDParams,
            "Chaudhari et al.: Entropy-SGD: Biasing gradient descent into wide valleys. ICLR 2017",
            example={"steps": 2},
            joints=("backward", "model"),
            rank=10,
        ),
        ModifierInfo(
            "swa",
            "evaluates the equal average of the weights of late epochs",
            "robflat_bench.modifiers.swa:SWA",
            SWAParams,
            "Izmailov et al.: Averaging weights leads to wider optima and better generalization. UAI 2018",
            joints=("model",),
            rank=30,
        ),
        ModifierInfo(
            "weight-clipping",
            "keeps all parameters within a small box",
            "robflat_bench.modifiers.weight_clipping:WeightClipping",
            WeightClippingParams,
            "Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021",
            joints=("after_step",),
            rank=10,
        ),
    ]
