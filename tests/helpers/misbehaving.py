"""Plugins that misbehave, each in one way, as installed distributions: for tests and `benchmarks/test_startup.py`."""

from __future__ import annotations

from pathlib import Path

EVENTS = ("run_starts", "epoch_ends", "evaluation_ends", "run_ends", "run_fails")
_ROW = """
from robflat_bench.api import MethodInfo, hookimpl

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("{name}", "-", "nowhere:Nothing")]
"""

SOURCES = {
    "raises": "raise RuntimeError('no luck today')",
    "twin": _ROW.format(name="trades"),
    "misspelt": _ROW.format(name="mine").replace("robflat_bench_methods", "robflat_bench_method"),
    "heavy": "import torch\n" + _ROW.format(name="heavy"),
    "slow-observer": "import time\nfrom robflat_bench.api import hookimpl\n\n@hookimpl\n"
    "def robflat_bench_epoch_ends():\n    time.sleep(0.5)\n",
    "loud": "print('LOUD')\n" + _ROW.format(name="loud").replace("    return", "    print('LOUD')\n    return"),
    **{
        f"raises-in-{event.replace('_', '-')}": "from robflat_bench.api import hookimpl\n\n@hookimpl\n"
        f"def robflat_bench_{event}():\n    raise RuntimeError('no luck')\n"
        for event in EVENTS
    },
}
"""Distribution -> source of its only module."""

BROKEN = {"raises": "RuntimeError: no luck today", "misspelt": "unknown hook", "heavy": "must not import torch"}
"""Distributions that do not load in a fresh process -> a part of the error."""


def install(folder: Path) -> None:
    """Write every distribution below `folder`; put the folder on the path to install them."""
    for name, source in SOURCES.items():
        module = name.replace("-", "_")
        about = folder / f"{module}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[robflat_bench]\n{module} = {module}\n")
        (about / "RECORD").write_text(f"{module}.py,,\n")
