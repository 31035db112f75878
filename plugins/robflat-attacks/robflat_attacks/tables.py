"""The libraries' l-inf attacks by name: the parameters each takes, their names in the library, and the defaults.

This module imports neither torch nor a library, so that a spec can be validated without them. The libraries' other
attacks have another norm, or need more than an evaluation gives (see the README).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    """

    takes: Mapping[str, str]
    steps: int = 1
    step: float = 0.0
    channels: int | None = None


_EPS = {"epsilon": "eps"}
_ITERATIVE = Entry({**_EPS, "steps": "steps", "step": "alpha"}, steps=10, step=1 / 4)
_SEARCH = {**_EPS, "steps": "steps", "restarts": "n_restarts", "seed": "seed"}
_PATCHWISE = Entry({"epsilon": "max_epsilon", "steps": "num_iter_set"}, steps=10, channels=3)

TORCHATTACKS: Mapping[str, Entry] = {
    **dict.fromkeys(("BIM", "DIFGSM", "EOTPGD", "Jitter", "MIFGSM", "NIFGSM", "PGD", "PGDRS"), _ITERATIVE),
    **dict.fromkeys(("RFGSM", "SINIFGSM", "TPGD", "UPGD", "VMIFGSM", "VNIFGSM"), _ITERATIVE),
    **dict.fromkeys(("PIFGSM", "PIFGSMPP"), _PATCHWISE),
    "TIFGSM": Entry(_ITERATIVE.takes, steps=10, step=1 / 4, channels=3),
    "FGSM": Entry(_EPS),
    "FFGSM": Entry({**_EPS, "step": "alpha"}, step=5 / 4),
    "APGD": Entry(_SEARCH, steps=10),
    "APGDT": Entry({**_SEARCH, "classes": "n_classes"}, steps=10),
    "FAB": Entry(_SEARCH, steps=10),
    "SPSA": Entry({**_EPS, "steps": "nb_iter", "step": "lr"}, step=1 / 30),
    "Square": Entry({**_SEARCH, "steps": "n_queries"}, steps=5000),
}

_DESCENT = {"steps": "steps", "step": "abs_stepsize"}
_RANDOM = {"restarts": "times"}  # argument of `repeat`; repeating a deterministic attack changes nothing

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
}
