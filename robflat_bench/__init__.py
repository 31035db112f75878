"""robflat-bench: adversarially robust generalization and flat minima, measured side by side.

Importing this package is cheap and never imports torch. Plugins import `robflat_bench.api`.
"""

__version__ = "0.1.0"

NUMERICS = 4
"""Part of every run key. Raise it with every change that may move a number (see tests/runs/test_golden.py)."""
