"""The conformance kit: what every component must do from its first day, built in or not.

Each kind has a list of small checks in `CHECKS`; each check is a promise in one sentence. Three ways to run them:

    from robflat_bench.testing import run_checks             # from Python
    for result in run_checks(registry, "method", "my-at"): ...

    pytest --pyargs robflat_bench.testing                    # over all installed plugins, see `test_components`

    from robflat_bench.testing import parametrize_checks     # in a plugin's own tests
    @parametrize_checks("my-package")
    def test_conformance(check):
        check()

fixtures         the tiny network and the digits     expectations     watching a component; checks that kinds share
trial_training   the real loop on a few digits       runner           the checks of each kind, and running them
parametrize      the checks as pytest cases          audit            `plugin check`
tiny             a protocol for tests of runs

The checks themselves: `every_kind`, `methods`, `modifiers`, `methods_and_modifiers`, `attacks`, `measures`, `evaluated`
(attacks and measures), `backbones`, `datasets`, `launchers`. A function of these modules called `check_...` is a check.
"""

from robflat_bench.testing.parametrize import parametrize_checks
from robflat_bench.testing.runner import CHECKS, Case, CheckResult, cases, run_checks

__all__ = ["CHECKS", "Case", "CheckResult", "cases", "parametrize_checks", "run_checks"]
