"""`plugin check`: what is right passes, and a plugin broken in one way fails exactly the check that is for it."""

from __future__ import annotations

import pytest

from robflat_bench.api import API_VERSION
from robflat_bench.registry import hookspecs

NAME = "some-plugin"
ABOUT = {
    "Metadata-Version": "2.1",
    "Name": NAME,
    "Version": "1.0",
    "Summary": "An attack that does nothing.",
    "Requires-Dist": "robflat-bench>=0.1,<0.2",
}
ROWS = """
from robflat_bench.api import AttackInfo, Passes, hookimpl

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("idle", "moves nothing", "some_plugin.idle:Idle", passes=Passes())]
"""
IDLE = """
from robflat_bench.api import Attack

class Idle(Attack):
    def perturb(self, model, examples, seed):
        return examples.x.clone()
"""
WHOLE = ["check_entry_points", "check_metadata", "check_hooks", "check_names", "check_import"]


def install(site, rows=ROWS, code=IDLE, **about):
    site.install(NAME, {"some_plugin/__init__.py": rows, "some_plugin/idle.py": code})
    lines = [f"{key}: {value}\n" for key, value in (ABOUT | about).items() if value]
    (site.folder / "some_plugin-1.0.dist-info" / "METADATA").write_text("".join(lines))


def outcomes(done, outcome):
    """Check -> reason, of the results with that outcome; the document's counts are right."""
    found = done.document
    for counted in ("passed", "skipped", "failed"):
        assert found[counted] == sum(row["outcome"] == counted for row in found["results"])
    return {row["check"]: row["reason"] for row in found["results"] if row["outcome"] == outcome}


# ---------------------------------------------------------------------------------------------------------
# A good plugin
# ---------------------------------------------------------------------------------------------------------


def test_a_good_plugin_passes_everything(site, command):
    install(site)
    done = command("plugin", "check", "Some.Plugin", "--json")
    assert done.code == 0, done.out
    found = done.document
    assert list(found) == ["plugin", "version", "api_version", "results", "passed", "skipped", "failed"]
    assert (found["plugin"], found["version"], found["api_version"]) == (NAME, "1.0", API_VERSION)
    assert [row["check"] for row in found["results"] if row["component"] == NAME] == WHOLE
    assert "check_within_the_ball" in {row["check"] for row in found["results"] if row["component"] == "attack:idle"}
    assert not outcomes(done, "failed")
    assert set(outcomes(done, "skipped")) == {"check_seed"}, "what moves nothing draws nothing"


def test_a_person_reads_a_table_and_sees_what_goes_on(site, command):
    install(site, ROWS.replace("moves nothing", ""))
    done = command("plugin", "check", NAME)
    assert done.code == 3
    lines = [line.split() for line in done.out.splitlines()]
    assert [NAME, "entry_points", "passed"] in lines
    (failed,) = [line for line in done.out.splitlines() if " failed " in line and "description" in line]
    assert "the summary is one line" in failed
    counts = done.out.splitlines()[-1]
    assert counts.endswith("1 skipped, 1 failed")
    assert "attack:idle (1 of 1)" in done.err
    assert done.err.splitlines()[-1] == f"robflat-bench: {NAME}: {counts}"


# ---------------------------------------------------------------------------------------------------------
# Broken in one way
# ---------------------------------------------------------------------------------------------------------

UNDECORATED = f"{ROWS}\ndef robflat_bench_measures():\n    return []\n"
PRINTS = IDLE.replace("        return", "        print('hello')\n        return")
TOO_FAR = IDLE.replace("examples.x.clone()", "1 - examples.x")


@pytest.mark.parametrize(
    ("parts", "check", "reason"),
    [
        ({"Summary": ""}, "check_metadata", "no summary"),
        ({"Requires-Dist": ""}, "check_metadata", "does not require robflat-bench"),
        ({"Requires-Dist": "robflat-bench-extras<2"}, "check_metadata", "does not require robflat-bench"),
        ({"Requires-Dist": "robflat-bench>=0.1"}, "check_metadata", "no upper bound"),
        ({"rows": UNDECORATED}, "check_hooks", "robflat_bench_measures is not decorated"),
        ({"rows": f"import torch\n{ROWS}"}, "check_import", "imports torch"),
        ({"rows": f"from some_plugin.idle import Idle\nimport scipy.linalg\n{ROWS}"}, "check_import", "scipy"),
        ({"code": TOO_FAR}, "check_within_the_ball", "the radius is"),
    ],
)
def test_one_fault_fails_its_check_alone(site, command, parts, check, reason):
    install(site, **parts)
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    failed = outcomes(done, "failed")
    assert list(failed) == [check]
    assert reason in failed[check]
    assert set(outcomes(done, "skipped")) == {"check_seed"}, "what moves nothing draws nothing"


@pytest.mark.parametrize(
    "wanted", ["robflat_bench[timm] (>=0.1,<1) ; python_version>'3'", "Robflat.Bench~=0.1", "robflat-bench==0.1"]
)
def test_an_upper_bound_may_be_written_in_many_ways(site, command, wanted):
    install(site, **{"Requires-Dist": wanted})
    assert command("plugin", "check", NAME).code == 0


def test_rows_of_a_wrong_type_fail_the_check_of_hooks(site, command):
    install(
        site,
        ROWS.replace('[AttackInfo("idle", "moves nothing", "some_plugin.idle:Idle", passes=Passes())]', "['idle']"),
    )
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    assert "must return AttackInfo rows" in outcomes(done, "failed")["check_hooks"]
    assert outcomes(done, "skipped") == {"check_components": "it offers no component"}


def test_code_that_cannot_be_imported_fails_the_kit(site, command):
    install(site, code="import a_module_that_does_not_exist")
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    assert "a_module_that_does_not_exist" in outcomes(done, "failed")["check_factory"]
    assert set(WHOLE).isdisjoint(outcomes(done, "failed"))


def test_an_example_that_its_own_parameters_refuse_is_a_finding(site, command):
    install(site, ROWS.replace(':Idle"', ":Idle\", example={'size': 1}"))
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    assert outcomes(done, "failed") == {"check_example": "UsageError: attack idle: unknown key 'size'; it has no keys"}


def test_a_name_offered_twice_is_not_checked_and_does_not_pass(site, command):
    install(site)
    site.install("other-plugin", {"other_plugin.py": ROWS})
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    failed = outcomes(done, "failed")
    assert failed["check_names"] == "attack 'idle' is offered by other-plugin and some-plugin"
    assert "ROBFLAT_BENCH_DISABLE_PLUGINS" in failed["run_checks"]
    assert not [
        row for row in done.document["results"] if row["component"] == "attack:idle" and row["outcome"] == "passed"
    ]


def test_a_deprecated_hook_fails_the_check_of_hooks(site, command, monkeypatch):
    install(site)
    options = hookspecs.robflat_bench_attacks.robflat_bench_spec
    monkeypatch.setitem(options, "warn_on_impl", DeprecationWarning("offer robflat_bench_foes instead"))
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 3
    assert outcomes(done, "failed") == {"check_hooks": "offer robflat_bench_foes instead"}


def test_what_a_component_prints_is_not_in_the_document(site, command):
    install(site, code=PRINTS)
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 0
    assert done.document["failed"] == 0
    assert "hello" in done.err


# ---------------------------------------------------------------------------------------------------------
# Nothing of it loads
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "check", "reason"),
    [
        ("raise RuntimeError('no luck today')", "check_entry_points", "RuntimeError: no luck today"),
        (ROWS.replace("_attacks", "_atacks"), "check_hooks", "robflat_bench_atacks"),
        (ROWS.replace("attacks()", "attacks(model)"), "check_hooks", "model"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_shown_and_exits_as_broken(site, command, rows, check, reason):
    install(site, rows)
    done = command("plugin", "check", NAME, "--json")
    assert done.code == 4
    failed = outcomes(done, "failed")
    assert list(failed) == [check]
    assert reason in failed[check]
    assert "Traceback" in done.err
    assert "it could not be loaded" in outcomes(done, "skipped").values()


def test_a_broken_plugin_does_not_fail_the_check_of_another(site, command):
    install(site)
    site.install("bad-plugin", {"bad_plugin.py": "raise RuntimeError('no luck today')"})
    assert command("plugin", "check", NAME).code == 0


# ---------------------------------------------------------------------------------------------------------
# A single file
# ---------------------------------------------------------------------------------------------------------


def test_a_file_is_checked_as_far_as_a_file_goes(tmp_path, command):
    file = tmp_path / "idle.py"
    file.write_text(ROWS + IDLE)
    done = command("plugin", "check", file, "--json")
    assert done.code == 0, done.out
    assert (done.document["plugin"], done.document["version"]) == ("idle.py", "file")
    assert set(outcomes(done, "skipped")) == {"check_metadata", "check_import", "check_seed"}
    assert "check_within_the_ball" in outcomes(done, "passed")

    file.write_text("raise RuntimeError('no luck today')")
    assert command("plugin", "check", file).code == 4


def test_a_plugin_without_components_says_that_there_is_nothing_for_the_kit(tmp_path, command):
    file = tmp_path / "empty.py"
    file.write_text("")
    done = command("plugin", "check", file, "--json")
    assert done.code == 0
    assert outcomes(done, "skipped")["check_components"] == "it offers no component"


# ---------------------------------------------------------------------------------------------------------
# Protocols
# ---------------------------------------------------------------------------------------------------------

OFFERS = """
import pathlib
from robflat_bench.api import hookimpl

@hookimpl
def robflat_bench_protocols():
    return sorted(pathlib.Path(__file__).parent.glob("*.toml"))
"""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tiny": "1.1", "tiny@1.0": "1.0"}, ""),
        ({"tiny": "1.0", "tiny@1.0": "1.0"}, "tiny.toml and tiny@1.0.toml are both version 1.0: raise `version` in"),
        ({"tiny": "1.1", "tiny@0.9": "1.0"}, "protocol tiny@0.9 calls itself tiny@1.0; rename its file to tiny@1.0"),
        ({"tiny@1.0": "1.0"}, "tiny@1.0.toml is an earlier version of no protocol: call the file tiny.toml"),
        ({"tiny": "1.x"}, "protocol tiny: 'version' = '1.x'"),
    ],
)
def test_each_version_of_a_protocol_is_one_valid_file(site, command, tiny, files, reason):
    text = {name: tiny.read_text().replace('version = "1.0"', f'version = "{v}"') for name, v in files.items()}
    site.install(NAME, {"offers/__init__.py": OFFERS, **{f"offers/{name}.toml": each for name, each in text.items()}})
    failed = outcomes(command("plugin", "check", NAME, "--json"), "failed").get("check_names", "")
    assert failed.startswith(reason)
    assert bool(failed) == bool(reason)


def test_a_protocol_in_place_of_a_plugin_is_answered_with_the_command_that_checks_it(command, tiny):
    done = command("plugin", "check", tiny)
    assert done.code == 2
    assert f"type `robflat-bench run --method at --protocol {tiny} --plan`" in done.complaint


# ---------------------------------------------------------------------------------------------------------
# Not found
# ---------------------------------------------------------------------------------------------------------


def test_a_missing_or_disabled_plugin_is_a_usage_error(site, command, tmp_path):
    install(site)
    assert "did you mean 'some-plugin'?" in command("plugin", "check", "some-plugins").complaint
    assert "no such file" in command("plugin", "check", tmp_path / "none.py").complaint
    site.patch.setenv("ROBFLAT_BENCH_DISABLE_PLUGINS", NAME)
    done = command("plugin", "check", NAME)
    assert done.code == 2
    assert "switched off" in done.complaint
