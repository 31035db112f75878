"""Every component passes the kit, and the kit bites: a component broken in one way fails exactly that check."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import zoo

from robflat_bench.core import UsageError
from robflat_bench.registry.components import resolve
from robflat_bench.registry.plugins import Plugins, Provider
from robflat_bench.registry.registry import KINDS, Registry, discover
from robflat_bench.testing import CHECKS, every_kind, parametrize_checks, run_checks
from robflat_bench.testing.methods_and_modifiers import check_declared_passes

BUILT_IN = [(kind, name) for kind in KINDS for name in discover().names(kind)]

NOT_DECLARED = {
    "check_declared_passes": {
        *("attack:autoattack", "measure:basin-width", "measure:hessian-lambda-max", "measure:keskar"),
        *("measure:pac-bayes-sharpness", "measure:pac-bayes-sigma", "measure:soft-rank"),
        "measure:weighted-curvature",
    },
    "check_declared_powers": {
        *("measure:distance-from-init", "measure:keskar", "measure:lpf", "measure:m-sharpness"),
        *("measure:sam-sharpness", "measure:soft-rank"),
    },
    "check_examples_are_alone": {"attack:autoattack"},
    "check_seed": {"attack:autoattack", "attack:fgsm"},
    "check_log": {"launcher:inline"},
    "check_shards_train_apart": {
        *("method:free-at", "method:gairat", "method:ikl", "method:mma", "method:self-adaptive", "method:sora"),
        *("method:te", "method:te-trades"),
    },
    "check_two_jobs_at_once": {"launcher:inline"},
}
"""Check -> the built-in components that have nothing to check: nothing else may be skipped, but what needs files that
are not here."""
NOT_HERE = {
    **{f"dataset:{name}": "not found" for name in ("arrays", "cifar10", "cifar100", "image-folder", "parquet", "svhn")},
    "dataset:tiny-imagenet": "not found",
    "attack:images": "has not read the file",
}
"""Component -> the reason of a skipped check. Each has tests on files of its own."""


@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[f"{kind}:{name}" for kind, name in BUILT_IN])
def test_component_passes_every_check(one_thread, registry, kind, name):
    results = run_checks(registry, kind, name)
    assert [result.check for result in results] == [check.__name__ for check in CHECKS[kind]]
    assert not [result for result in results if result.outcome == "failed"]
    skipped = {result.check for result in results if result.outcome == "skipped"}
    if missing := NOT_HERE.get(f"{kind}:{name}"):
        assert all(missing in result.reason for result in results if result.check in skipped)
    else:
        assert skipped == {check for check, idle in NOT_DECLARED.items() if f"{kind}:{name}" in idle}


TRAINED = [(kind, name) for kind, name in BUILT_IN if kind in ("method", "modifier")]


@pytest.mark.parametrize(("kind", "name"), TRAINED, ids=[f"{kind}:{name}" for kind, name in TRAINED])
def test_the_declared_passes_hold_at_default_parameters_from_the_first_update_on(one_thread, registry, kind, name):
    """The trial parameters of the kit start everything at once; many methods begin after a part of training."""
    check_declared_passes(resolve(registry, kind, name))


def test_every_check_has_a_docstring_and_a_name_of_its_own():
    promises = [check.__doc__ for checks in CHECKS.values() for check in checks]
    assert all(promises)
    for kind, checks in CHECKS.items():
        assert len({check.__name__ for check in checks}) == len(checks), kind


# ---------------------------------------------------------------------------------------------------------
# The zoo
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo_registry() -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        plugins: Plugins = discover().plugins
    extended = Registry(plugins)
    # A one-file plugin's factories are attributes of its module, wherever that came from.
    provider = Provider("zoo.py", "file", "zoo", zoo)
    for info in [*zoo.HONEST, *zoo.ALSO_HONEST, zoo.EARLIER, *(info for info, _ in zoo.BROKEN)]:
        extended.add(info, provider)
    return extended


@pytest.mark.parametrize("info", [*zoo.HONEST, *zoo.ALSO_HONEST], ids=lambda info: info.name)
def test_honest_component_passes_every_check(one_thread, zoo_registry, info):
    results = run_checks(zoo_registry, info.kind, info.name)
    assert not [result for result in results if result.outcome != "passed"]


def test_an_exemption_is_shown(one_thread, zoo_registry):
    notes = {result.check: result.reason for result in run_checks(zoo_registry, "method", "exempt") if result.reason}
    assert notes == {"check_gradient_reaches_every_module": "network.head.* is exempt: a fixed classifier"}


def test_a_launcher_of_an_earlier_minor_version_fails_nothing_and_is_told_what_it_lacks(one_thread, zoo_registry):
    results = run_checks(zoo_registry, "launcher", zoo.EARLIER.name)
    assert not [result for result in results if result.outcome == "failed"]
    notes = {result.check: result.reason for result in results if result.reason}
    assert "as launchers of API 1.3 do" in notes["check_exit_codes"]
    assert "outlives = False" in notes["check_adopts_by_id"]


@pytest.mark.parametrize(("info", "bitten"), zoo.BROKEN, ids=[info.name for info, _ in zoo.BROKEN])
def test_broken_component_fails_exactly_its_check(one_thread, zoo_registry, info, bitten):
    results = run_checks(zoo_registry, info.kind, info.name)
    assert [result.check for result in results if result.outcome == "failed"] == [bitten], results


def test_every_check_of_every_kind_has_bitten():
    bitten = {(info.kind, check) for info, check in zoo.BROKEN}
    assert bitten == {(kind, check.__name__) for kind, checks in CHECKS.items() for check in checks}


SILENT = """
from robflat_bench.api import BackboneInfo, Params, hookimpl

class SilentParams(Params):
    depth: int = 2
    width: int = 8

@hookimpl
def robflat_bench_backbones():
    return [BackboneInfo("silent", "a network", "silent:SilentParams", SilentParams)]
"""


def test_parameters_without_a_description_are_noted_and_fail_nothing(tmp_path):
    (tmp_path / "silent.py").write_text(SILENT)
    (found, *_) = run_checks(discover((tmp_path / "silent.py",)), "backbone", "silent")
    assert (found.check, found.outcome) == ("check_description", "passed")
    assert found.reason == "no description: depth, width; write Field(description=...), which `info` shows"


# ---------------------------------------------------------------------------------------------------------
# The kit as pytest cases
# ---------------------------------------------------------------------------------------------------------

PLUGIN = """
from robflat_bench.api import DatasetInfo, Dataset, UsageError, hookimpl

class Nowhere(Dataset):
    def sources(self, root, download=True):
        raise UsageError("this dataset is nowhere")

    def canonical(self, source):
        return False

@hookimpl
def robflat_bench_datasets():
    return [
        DatasetInfo("nowhere", "no images at all", "{module}:Nowhere"),
        DatasetInfo("untitled", "its title is wrong", "{module}:Nowhere", title="{{{{size}}}}"),
    ]
"""


def case_names(mark) -> list[str]:
    return [str(case) for case in mark.args[1]]


def test_cases_are_chosen_by_distribution_file_or_name(site, tmp_path):
    site.install("my-data", {"my_data.py": PLUGIN.format(module="my_data")})
    file = tmp_path / "other.py"
    file.write_text(PLUGIN.format(module="other"))
    names = case_names(parametrize_checks("My_Data").mark)
    assert len(names) == len(set(names)) == 2 * len(CHECKS["dataset"])
    assert names[0] == "dataset:nowhere-check_description"
    assert case_names(parametrize_checks("dataset:digits").mark) == [
        f"dataset:digits-{check.__name__}" for check in CHECKS["dataset"]
    ]
    site.patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
    assert case_names(parametrize_checks(str(file)).mark) == names
    with pytest.raises(UsageError, match="'my-data' is installed"):
        parametrize_checks("my-data")


def test_the_packaged_tests_try_installed_plugins_and_skips_are_skips(site, child_environment, tmp_path):
    site.install("my-data", {"my_data.py": PLUGIN.format(module="my_data")})
    command = [sys.executable, "-m", "pytest", "--pyargs", "robflat_bench.testing", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=tmp_path, env=child_environment(site.folder, plugins="my-data"), capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = Counter(line.partition(" ")[0] for line in done.stdout.splitlines())
    common = sum(name.startswith("check_") for name in vars(every_kind))
    images = len(CHECKS["dataset"]) - common
    assert outcomes["FAILED"] == 1
    assert "test_component[dataset:untitled-check_description]" in done.stdout
    assert outcomes["PASSED"] == 2 * common - 1 + 1, "what needs no images, and that no plugin is broken"
    assert f"{2 * images} skipped" in done.stdout
    assert "this dataset is nowhere" in done.stdout


def test_the_kit_does_without_pytest():
    program = "import sys; sys.modules['pytest'] = None; import robflat_bench.testing"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0
