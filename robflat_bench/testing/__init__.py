"""The conformance kit: what every component must do from its first day, built in or not.

Each kind has a list of small checks in `CHECKS`; each check is a promise in one sentence. Three ways to run them:

    from robflat_bench.testing import run_checks             # from Python
    for result in run_checks(registry, "method", "my-at"): ...

    pytest --pyargs robflat_bench.testing                    # over all installed plugins, see `test_components`

    from robflat_bench.testing import parametrize_checks     # in a plugin's own tests
    @parametrize_checks("my-package")
    def test_conformance(check):
        check()

fixtures      the tiny network and the digits       expectations           watching a component, shared checks
trial_training    the real loop, in a moment        runner, parametrize    running the checks, as pytest cases
every_kind, attacks, measures, evaluated (both), methods_and_modifiers, backbones, datasets, launchers    the checks
audit         `plugin check`                        tiny                   a protocol for tests of whole runs
"""

from robflat_bench.testing.parametrize import parametrize_checks
from robflat_bench.testing.runner import CHECKS, Case, CheckResult, cases, run_checks

__all__ = ["CHECKS", "Case", "CheckResult", "cases", "parametrize_checks", "run_checks"]
