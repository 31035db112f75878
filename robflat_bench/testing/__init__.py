"""The conformance kit: what every component, built in or not, must do from its first day.

A list of small checks for each kind, `runner.CHECKS`, each a promise in one sentence. The same list runs

    from robflat_bench.testing import run_checks             # anywhere
    for result in run_checks(registry, "method", "my-at"): ...

    pytest --pyargs robflat_bench.testing                    # over all installed plugins, see `test_components`

    from robflat_bench.testing import parametrize_checks     # in a plugin's own tests
    @parametrize_checks("my-package")
    def test_conformance(check):
        check()
"""

from robflat_bench.testing.parametrize import parametrize_checks
from robflat_bench.testing.runner import CHECKS, Case, CheckResult, cases, run_checks

__all__ = ["CHECKS", "Case", "CheckResult", "cases", "parametrize_checks", "run_checks"]
