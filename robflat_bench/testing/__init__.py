"""The conformance kit: what every component, built in or not, must do from its first day.

from robflat_bench.testing import run_checks
for result in run_checks(registry, "method", "my-at"): ...
"""

from robflat_bench.testing.runner import CHECKS, CheckResult, run_checks

__all__ = ["CHECKS", "CheckResult", "run_checks"]
