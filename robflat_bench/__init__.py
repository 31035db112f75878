"""robflat-bench: adversarially robust generalization and flat minima, measured side by side.

    import robflat_bench as rb

    rb.evaluate(model, data="DIR", protocol="cifar10-linf")         robustness and flatness of a network or checkpoint
    rb.measure(model, (x, y), "average-case", epsilon=8 / 255)      one measure
    rb.attack(model, x, y, "pgd(steps=20)", epsilon=8 / 255)        adversarial images
    rb.run("trades+awp", seed=1)                                    train, attack and measure
    rb.load("349043bd"), rb.results(), rb.board()                   runs, and the board
    rb.push("349043bd", "hf://OWNER/NAME")                          a run on the Hugging Face hub
    rb.list("measures"), rb.info("awp")                             the catalogue

Importing this package is cheap and never imports torch. Plugins import `robflat_bench.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robflat_bench.core import CheckFailed, RobflatError, RunFailed, UsageError
    from robflat_bench.front.catalogue import info, list
    from robflat_bench.front.evaluations import Evaluation, evaluate
    from robflat_bench.front.measurements import Measurement, attack, measure
    from robflat_bench.front.publishing import Pushed, push
    from robflat_bench.front.runs import Run, load, run
    from robflat_bench.front.tables import Rows, board, results

__version__ = "0.1.0"

NUMERICS = 5
"""Part of every run key. Raise it with every change that may move a number (see tests/runs/test_golden.py)."""

_FRONT = {
    "core": ("CheckFailed", "RobflatError", "RunFailed", "UsageError"),
    "front.catalogue": ("info", "list"),
    "front.evaluations": ("Evaluation", "evaluate"),
    "front.measurements": ("Measurement", "attack", "measure"),
    "front.publishing": ("Pushed", "push"),
    "front.runs": ("Run", "load", "run"),
    "front.tables": ("Rows", "board", "results"),
}
"""Module -> the names it offers here."""

__all__ = [
    "NUMERICS",
    "CheckFailed",
    "Evaluation",
    "Measurement",
    "Pushed",
    "RobflatError",
    "Rows",
    "Run",
    "RunFailed",
    "UsageError",
    "__version__",
    "attack",
    "board",
    "evaluate",
    "info",
    "list",
    "load",
    "measure",
    "push",
    "results",
    "run",
]


if not TYPE_CHECKING:  # type checkers read the imports above, and see a misspelt name

    def __getattr__(name: str) -> Any:
        for module, names in _FRONT.items():
            if name in names:
                return getattr(importlib.import_module(f"robflat_bench.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> Any:
    return __all__
