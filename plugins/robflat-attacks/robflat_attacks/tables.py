"""The libraries' attacks by name: their norms, the parameters each takes, their names in the library, the defaults.

This module imports neither torch nor a library, so that a spec can be validated without them. The libraries' other
attacks have no norm of a ball, or need more than an evaluation gives (see the README).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robflat_bench.api import ThreatNorm


@dataclass(frozen=True)
class Entry:
    """An attack of a library.

    Parameters
    ----------
    takes
        Our parameter -> the argument of the attack's constructor.
    steps
        The library's default; 1 if the attack takes no steps.
    step
        The library's default, as a fraction of its default epsilon.
    channels
        The only number of channels that the attack can handle; None if it handles any.
    norms
        Norms of the threat under which the library's attack stays in the ball.
    """

    takes: Mapping[str, str]
    steps: int = 1
    step: float = 0.0
    channels: int | None = None
    norms: tuple[ThreatNorm, ...] = ("linf",)


_EPS = {"epsilon": "eps"}
_ITERATIVE = Entry({**_EPS, "steps": "steps", "step": "alpha"}, steps=10, step=1 / 4)
_SEARCH = {**_EPS, "norm": "norm", "steps": "steps", "restarts": "n_restarts", "seed": "seed"}
_L2 = Entry(_ITERATIVE.takes, steps=10, step=1 / 5, norms=("l2",))
_BOTH: tuple[ThreatNorm, ...] = ("linf", "l2")
_PATCHWISE = Entry({"epsilon": "max_epsilon", "steps": "num_iter_set"}, steps=10, channels=3)

TORCHATTACKS: Mapping[str, Entry] = {
    **dict.fromkeys(("BIM", "DIFGSM", "EOTPGD", "Jitter", "MIFGSM", "NIFGSM", "PGD", "PGDRS"), _ITERATIVE),
    **dict.fromkeys(("RFGSM", "SINIFGSM", "TPGD", "UPGD", "VMIFGSM", "VNIFGSM"), _ITERATIVE),
    **dict.fromkeys(("PIFGSM", "PIFGSMPP"), _PATCHWISE),
    "TIFGSM": Entry(_ITERATIVE.takes, steps=10, step=1 / 4, channels=3),
    "FGSM": Entry(_EPS),
    "FFGSM": Entry({**_EPS, "step": "alpha"}, step=5 / 4),
    **dict.fromkeys(("PGDL2", "PGDRSL2"), _L2),
    "APGD": Entry(_SEARCH, steps=10, norms=_BOTH),
    "APGDT": Entry({**_SEARCH, "classes": "n_classes"}, steps=10, norms=_BOTH),
    "FAB": Entry(_SEARCH, steps=10, norms=_BOTH),
    "SPSA": Entry({**_EPS, "steps": "nb_iter", "step": "lr"}, step=1 / 30),
    "Square": Entry({**_SEARCH, "steps": "n_queries"}, steps=5000),
}

_DESCENT = {"steps": "steps", "step": "abs_stepsize"}
_RANDOM = {"restarts": "times"}  # argument of `repeat`; repeating a deterministic attack changes nothing
_NOISES = [(aware, noise) for aware in ("", "ClippingAware") for noise in ("Gaussian", "Uniform")]


def _by_steps(norm: ThreatNorm) -> Mapping[str, Entry]:
    """foolbox's attacks by gradient steps under l2 and l1, whose names differ in the norm alone."""
    start, norms = norm.upper(), (norm,)
    iterative = ("BasicIterativeAttack", "AdamBasicIterativeAttack", "MomentumIterativeFastGradientMethod")
    random = Entry({**_DESCENT, **_RANDOM}, steps=50, step=0.025, norms=norms)
    return {
        f"{start}FastGradientAttack": Entry({}, norms=norms),
        **{f"{start}{name}": Entry(_DESCENT, steps=10, step=0.2, norms=norms) for name in iterative},
        **dict.fromkeys((f"{start}PGD", f"{start}AdamPGD"), random),
    }


FOOLBOX: Mapping[str, Entry] = {
    "FGSM": Entry({}),
    "LinfBasicIterativeAttack": Entry(_DESCENT, steps=10, step=0.2),
    "LinfAdamBasicIterativeAttack": Entry(_DESCENT, steps=10, step=0.2),
    "MIFGSM": Entry(_DESCENT, steps=10, step=0.2),
    "LinfPGD": Entry({**_DESCENT, **_RANDOM}, steps=40, step=1 / 30),
    "LinfAdamPGD": Entry({**_DESCENT, **_RANDOM}, steps=50, step=0.025),
    "LinfDeepFoolAttack": Entry({"steps": "steps"}, steps=50),
    "LInfFMNAttack": Entry({"steps": "steps"}, steps=100),
    "LinfAdditiveUniformNoiseAttack": Entry(_RANDOM),
    "LinfRepeatedAdditiveUniformNoiseAttack": Entry({"steps": "repeats"}, steps=100),
    **_by_steps("l2"),
    **_by_steps("l1"),
    "L1FMNAttack": Entry({"steps": "steps"}, steps=100, norms=("l1",)),
    "L2DeepFoolAttack": Entry({"steps": "steps"}, steps=50, norms=("l2",)),
    "DDNAttack": Entry({"steps": "steps"}, steps=100, norms=("l2",)),
    "SparseL1DescentAttack": Entry(_DESCENT, steps=10, step=0.2, norms=("l1",)),
    **{f"L2{aware}Additive{noise}NoiseAttack": Entry(_RANDOM, norms=("l2",)) for aware, noise in _NOISES},
    **{
        f"L2{aware}RepeatedAdditive{noise}NoiseAttack": Entry({"steps": "repeats"}, steps=100, norms=("l2",))
        for aware, noise in _NOISES
    },
}

_MINIMAL = {"steps": "steps"}
_DUAL = {"steps": "num_steps"}
_ALL: tuple[ThreatNorm, ...] = ("linf", "l2", "l1")

ADVLIB: Mapping[str, Entry] = {
    "ddn": Entry(_MINIMAL, steps=100, norms=("l2",)),
    "fmn": Entry({**_MINIMAL, "norm": "norm"}, steps=10, norms=("linf", "l1")),
    "df": Entry({**_MINIMAL, "norm": "norm"}, steps=100, norms=_BOTH),
    "sdf": Entry(_MINIMAL, steps=100, norms=("l2",)),
    "fab": Entry({"steps": "n_iter", "norm": "norm"}, steps=100, norms=_ALL),
    "pdgd": Entry(_DUAL, steps=500, norms=("l2",)),
    "pdpgd": Entry({**_DUAL, "norm": "norm"}, steps=500, norms=_BOTH),
}
