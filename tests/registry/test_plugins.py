"""Plugins: a stranger's distribution works like a built-in one, and a broken one breaks nothing but itself."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from robflat_bench.config.protocol import load
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.core import PluginError, UsageError
from robflat_bench.methods import robflat_bench_methods
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.files import MAX_BYTES
from robflat_bench.registry.plugins import Provider
from robflat_bench.registry.registry import discover

BUILT_IN = {info.name for info in robflat_bench_methods()}

GOOD = {
    "good_plugin/__init__.py": """
from robflat_bench.api import MethodInfo, Params, hookimpl

class GoodParams(Params):
    gamma: float = 0.5

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("good", "a good method", "good_plugin.code:Good", GoodParams)]
""",
    "good_plugin/code.py": """
class Good:
    def __init__(self, params):
        self.params = params
""",
}


def offering(*names: str, before: str = "", kind: str = "method", factory: str = "nowhere:Nothing") -> str:
    """The source of a plugin that offers methods of these names."""
    rows = ", ".join(f'{kind.capitalize()}Info("{name}", "one line", "{factory}")' for name in names)
    return f"""
{before}
from robflat_bench.api import AttackInfo, MethodInfo, hookimpl

@hookimpl
def robflat_bench_{kind}s():
    return [{rows}]
"""


DATA = DatasetRef(name="digits", checksum="0" * 64, canonical=True, origin="a test")


def spec_of(registry, method):
    return make_spec(registry, load(registry, "digits-linf"), compose(registry, method), DATA, 1)


def listed(command, *arguments):
    return {row["name"]: row for row in command("list", "methods", "--json", *arguments).document}


# ---------------------------------------------------------------------------------------------------------
# A good plugin
# ---------------------------------------------------------------------------------------------------------


def test_a_method_of_a_plugin_is_listed_with_its_provider_and_not_imported(site, command):
    site.install("good-plugin", GOOD, version="2.1")
    rows = listed(command)
    assert set(rows) == BUILT_IN | {"good"}
    assert rows["good"]["provider"] == "good-plugin 2.1"
    assert rows["good"]["summary"] == "a good method"
    assert [parameter["name"] for parameter in rows["good"]["parameters"]] == ["gamma"]
    assert command("info", "good", "--json").document["provider"] == "good-plugin 2.1"
    assert site.imported("good_plugin")
    assert not site.imported("good_plugin.code")

    made = resolve(discover(), "method", "good(gamma=0.25)").build()
    assert (type(made).__name__, made.params.gamma) == ("Good", 0.25)


def test_plugin_list_shows_the_components_of_each_plugin(site, command):
    site.install("good-plugin", GOOD, version="2.1")
    site.install("bad-plugin", {"bad_plugin.py": "raise RuntimeError('no luck today')"}, version="0.3")
    site.install("off-plugin", {"off_plugin.py": offering("off")})
    site.patch.setenv("ROBFLAT_BENCH_DISABLE_PLUGINS", "off-plugin")
    rows = {row["distribution"]: row for row in command("plugin", "list", "--json").document}
    assert rows["good-plugin"]["state"] == "ok"
    assert rows["good-plugin"]["version"] == "2.1"
    assert rows["good-plugin"]["components"] == ["method:good"]
    assert len(rows["good-plugin"]["source"]) == 64
    assert rows["bad-plugin"]["state"] == "broken"
    assert rows["bad-plugin"]["version"] == "0.3"
    assert rows["bad-plugin"]["error"] == "RuntimeError: no luck today"
    assert rows["off-plugin"]["state"] == "disabled"
    assert rows["robflat-bench"]["state"] == "ok"
    table = command("plugin", "list")
    assert table.code == 0
    assert "no luck today" in table.out
    assert "method:good" in table.out


def test_installed_plugins_are_found_in_a_new_process(site, child_environment):
    site.install("good-plugin", GOOD)
    done = subprocess.run(
        [sys.executable, "-m", "robflat_bench", "list", "methods", "goo*", "--json"],
        env=child_environment(site.folder, plugins="good-plugin"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row["provider"] for row in json.loads(done.stdout)] == ["good-plugin 1.0"]


# ---------------------------------------------------------------------------------------------------------
# Switching plugins on and off
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"ROBFLAT_BENCH_PLUGINS": ""}, set()),
        ({"ROBFLAT_BENCH_PLUGINS": "one-plugin"}, {"one"}),
        ({"ROBFLAT_BENCH_PLUGINS": " One_Plugin , two.plugin "}, {"one", "two"}),
        ({"ROBFLAT_BENCH_PLUGINS": "elsewhere"}, set()),
        ({"ROBFLAT_BENCH_DISABLE_PLUGINS": "ONE.plugin"}, {"two"}),
        ({"ROBFLAT_BENCH_DISABLE_PLUGINS": "one-plugin,two-plugin"}, set()),
        ({"ROBFLAT_BENCH_DISABLE_PLUGINS": "robflat-bench"}, {"one", "two"}),
        ({"ROBFLAT_BENCH_PLUGINS": "one-plugin", "ROBFLAT_BENCH_DISABLE_PLUGINS": "one-plugin"}, set()),
    ],
)
def test_the_environment_admits_and_leaves_out_distributions(site, monkeypatch, variables, found):
    site.install("one-plugin", {"one_plugin.py": offering("one")})
    site.install("two-plugin", {"two_plugin.py": offering("two")})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    registry = discover()
    assert set(registry.names("method")) == BUILT_IN | found
    off = {"one-plugin": "one", "two-plugin": "two"}
    assert sorted(registry.plugins.disabled) == sorted(name for name, short in off.items() if short not in found)


# ---------------------------------------------------------------------------------------------------------
# Broken plugins
# ---------------------------------------------------------------------------------------------------------

RAISES = "raise RuntimeError('no luck\\ntoday')"
EXITS = "import sys\nsys.exit('so long')"
MISSING = "import a_module_that_does_not_exist"
SYNTAX = "def robflat_bench_methods(:"
MISSPELT = offering("mine").replace("robflat_bench_methods", "robflat_bench_method")
ARGUMENTS = offering("mine").replace("methods()", "methods(registry)")
RAISES_LATER = offering("mine").replace("return", "raise RuntimeError('later') #")
EXITS_LATER = offering("mine").replace("return", "raise SystemExit('later') #")
WRONG_KIND = offering("mine").replace("robflat_bench_methods", "robflat_bench_attacks")
WRONG_NAME = offering("Mine")
WRONG_FACTORY = offering("mine", factory="nowhere")
NO_ROWS = offering("mine").replace("return", "return 7 #")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        pytest.param(RAISES, "RuntimeError: no luck", id="raises"),
        pytest.param(EXITS, "SystemExit: so long", id="exits"),
        pytest.param(MISSING, "ModuleNotFoundError: No module named", id="import missing"),
        pytest.param(SYNTAX, "SyntaxError: ", id="syntax"),
        pytest.param(MISSPELT, "unknown hook 'robflat_bench_method'", id="misspelt hook"),
        pytest.param(ARGUMENTS, "PluginValidationError: ", id="hook with unknown arguments"),
        pytest.param(RAISES_LATER, "RuntimeError: later", id="hook raises"),
        pytest.param(EXITS_LATER, "SystemExit: later", id="hook exits"),
        pytest.param(WRONG_KIND, "TypeError: robflat_bench_attacks must return AttackInfo", id="wrong kind"),
        pytest.param(WRONG_NAME, "ValueError: method 'Mine'", id="wrong name"),
        pytest.param(WRONG_FACTORY, "ValueError: method 'mine'", id="wrong factory"),
        pytest.param(NO_ROWS, "TypeError: ", id="no rows"),
    ],
)
def test_a_broken_plugin_is_one_line_and_the_rest_works(site, command, source, line):
    site.install("aaa-broken", {"aaa_broken.py": source}, version="0.9")
    site.install("good-plugin", GOOD)

    done = command("list", "methods", "--json")
    assert done.code == 0
    assert {"at", "good"} <= {row["name"] for row in done.document}
    (said,) = done.err.splitlines()
    assert "plugin aaa-broken 0.9 (aaa_broken) is broken: " in said
    assert line in said

    asked = command("run", "--method", "mine", "--plan")
    assert asked.code == 4
    assert asked.out == ""
    assert "unknown method 'mine'" in asked.err
    assert line in asked.err
    assert "Traceback (most recent call last)" in asked.err or "SyntaxError" in asked.err

    assert command("info", "mine").code == 4
    assert command("info", "good").code == 0
    checked = command("doctor", "--json")
    assert checked.code == 3
    assert any(line in problem for problem in checked.document["problems"])


@pytest.mark.parametrize(
    ("kind", "row", "line"),
    [
        ("method", "MethodInfo('mine', 's', 'm:C', dict)", "'params' = <class 'dict'>: "),
        ("method", "MethodInfo('mine', None, 'm:C')", "'summary' = None: "),
        ("method", "MethodInfo('mine', 's', 'm:C', untrained=['a'])", "'untrained' = ['a']: "),
        ("method", "MethodInfo('mine', 's', 'm:C', attack=Passes(1))", "'attack.forward' = 1: "),
        ("method", "MethodInfo(7, 's', 'm:C')", "'name' = 7: "),
        ("modifier", "ModifierInfo('mine', 's', 'm:C', joints=(1,))", "'joints.0' = 1: "),
        ("modifier", "ModifierInfo('mine', 's', 'm:C', joints=('target', 'loose'))", "'joints.1' = 'loose': "),
        ("measure", "MeasureInfo('mine', 's', 'm:C', powers={'layers': 'a'})", "'powers.layers' = 'a': "),
        (
            "protocol",
            "pathlib.Path(__file__).with_name('none.toml')",
            "must return files called NAME.toml or NAME@VERSION.toml, got ",
        ),
        (
            "protocol",
            "pathlib.Path(__file__).with_name('folder.toml')",
            "must return files called NAME.toml or NAME@VERSION.toml, got ",
        ),
        ("protocol", "'digits.toml'", "must return files called NAME.toml or NAME@VERSION.toml, got "),
    ],
)
def test_a_malformed_row_breaks_its_plugin_only(site, command, kind, row, line):
    """No table, document or page meets a field of another type than its annotation's."""
    source = (
        f"import pathlib\nfrom robflat_bench.api import *\n@hookimpl\ndef robflat_bench_{kind}s(): return [{row}]\n"
    )
    site.install("aaa-broken", {"aaa_broken.py": source, "folder.toml/inside": ""})
    for arguments in ([f"{kind}s"], [f"{kind}s", "--json"]):
        done = command("list", *arguments)
        assert done.code == 0, done.err
        (said,) = done.err.splitlines()
        assert "plugin aaa-broken 1.0 (aaa_broken) is broken: TypeError: " in said
        assert line in said
    assert command("info", "at").code == 0


def test_an_entry_point_names_a_module(site, command):
    site.install("object-plugin", {"object_plugin.py": "class plugin: pass"}, module="object_plugin:plugin")
    done = command("plugin", "list", "--json")
    (row,) = [row for row in done.document if row["distribution"] == "object-plugin"]
    assert row["state"] == "broken"
    assert "must name a module" in row["error"]


@pytest.mark.parametrize(
    ("names", "whose"),
    [
        pytest.param({"rival": "robflat_bench.methods"}, "robflat-bench ", id="a built-in's"),
        pytest.param({"a": "good_plugin", "b": "good_plugin"}, "good-plugin 1.0", id="its own"),
    ],
)
def test_a_module_registered_twice_keeps_its_first_plugin(site, command, names, whose):
    """The entry point that names it again is broken, and nothing that worked before is lost."""
    site.install("good-plugin", GOOD, points=names)
    done = command("list", "methods", "--json")
    assert done.code == 0
    expected = BUILT_IN | ({"good"} if "good_plugin" in names.values() else set())
    assert {row["name"] for row in done.document} == expected
    *_, again = names
    (said,) = done.err.splitlines()
    assert f"plugin good-plugin 1.0 ({again}) is broken: ValueError: module {names[again]} is already" in said
    assert f"the plugin {whose}" in said


def test_without_a_broken_plugin_an_unknown_name_is_a_usage_error(site, command):
    site.install("good-plugin", GOOD)
    done = command("run", "--method", "mine", "--plan")
    assert done.code == 2
    assert "unknown method 'mine'" in done.complaint


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import a_module_that_does_not_exist", "ModuleNotFoundError: No module named 'a_module_that_does_not_exist'"),
        ("print('hello')\nx = 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('so long')", "SystemExit: so long"),
        ("class Other: pass", "AttributeError: module 'good_plugin.code' has no attribute 'Good'"),
    ],
)
def test_a_factory_that_cannot_be_imported_fails_when_asked_for(site, capsys, code, line):
    site.install("good-plugin", GOOD | {"good_plugin/code.py": code}, version="1.4")
    component = resolve(discover(), "method", "good")
    with pytest.raises(PluginError) as caught:
        component.build()
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert message.startswith(f"method 'good' of good-plugin 1.4 cannot be loaded: {line}")
    assert "Traceback (most recent call last)" in message
    assert "good_plugin" in message.partition("Traceback")[2]
    assert capsys.readouterr().out == ""


def test_a_broken_factory_ends_the_run_with_4(site, command, tiny, tmp_path):
    site.install("good-plugin", GOOD | {"good_plugin/code.py": "raise RuntimeError('when used')"})
    done = command("run", "--method", "good", "--protocol", tiny, "--store", tmp_path, "--json")
    assert (done.code, done.out) == (4, "")
    assert "RuntimeError: when used" in done.err
    assert not list(tmp_path.rglob("record.json"))


def test_what_a_plugin_prints_while_loading_stays_out_of_the_document(site, command):
    site.install("loud-plugin", {"loud_plugin.py": "print('LOUD import')\n" + offering("loud").replace(
        "return", "print('LOUD hook')\n    return")})  # fmt: skip
    done = command("list", "methods", "--json")
    assert done.code == 0
    assert "loud" in {row["name"] for row in done.document}
    assert "LOUD" not in done.out


# ---------------------------------------------------------------------------------------------------------
# Names offered twice
# ---------------------------------------------------------------------------------------------------------


def test_a_name_offered_twice_is_refused_until_one_is_disabled(site, command, monkeypatch):
    site.install("first-plugin", {"first_plugin.py": offering("twin", "first")})
    site.install("second-plugin", {"second_plugin.py": offering("twin", "second")}, version="3.0")
    done = command("run", "--method", "twin", "--plan")
    assert done.code == 4
    assert "first-plugin 1.0 and second-plugin 3.0" in done.complaint
    assert "ROBFLAT_BENCH_DISABLE_PLUGINS=second-plugin" in done.complaint
    assert command("info", "twin").code == 4

    for arguments in (
        ["list", "methods"],
        ["list", "methods", "--json"],
        ["plugin", "list"],
        ["plugin", "list", "--json"],
    ):
        seen = command(*arguments)
        assert seen.code == 0
        assert "method 'twin' is offered by first-plugin and second-plugin" in seen.err
        assert "first" in seen.out
        assert ("twin" in seen.out) == (arguments[0] == "plugin")

    monkeypatch.setenv("ROBFLAT_BENCH_DISABLE_PLUGINS", "second-plugin")
    rows = listed(command)
    assert rows["twin"]["provider"] == "first-plugin 1.0"
    assert "second" not in rows


def test_a_built_in_name_that_a_plugin_offers_is_refused(site, command, monkeypatch):
    site.install("rival-plugin", {"rival_plugin.py": offering("trades")})
    done = command("run", "--method", "trades", "--plan")
    assert done.code == 4
    assert "robflat-bench " in done.complaint
    assert "ROBFLAT_BENCH_DISABLE_PLUGINS=rival-plugin" in done.complaint
    assert resolve(discover(), "method", "at").name == "at"
    monkeypatch.setenv("ROBFLAT_BENCH_DISABLE_PLUGINS", "rival-plugin")
    assert resolve(discover(), "method", "trades").offer.provider.built_in


def test_two_kinds_may_share_a_name(site, command):
    site.install("one-plugin", {"one_plugin.py": offering("pgd")})
    assert listed(command)["pgd"]["provider"] == "one-plugin 1.0"
    done = command("info", "pgd")
    assert done.code == 2
    assert "attack:pgd" in done.complaint
    assert "method:pgd" in done.complaint
    assert command("info", "method:pgd", "--json").document["kind"] == "method"
    assert command("info", "attack:pgd", "--json").document["kind"] == "attack"


# ---------------------------------------------------------------------------------------------------------
# Provenance: a stranger's code is part of a run's identity
# ---------------------------------------------------------------------------------------------------------


def test_version_and_source_of_a_plugin_are_in_the_run_key(site):
    site.install("good-plugin", GOOD)
    before = spec_of(discover(), "good")
    assert list(before.plugins) == ["good-plugin 1.0"]
    assert len(before.plugins["good-plugin 1.0"]) == 64
    assert spec_of(discover(), "at").plugins == {}

    site.install("good-plugin", GOOD | {"good_plugin/code.py": GOOD["good_plugin/code.py"] + "\n# changed\n"})
    changed = spec_of(discover(), "good")
    assert changed.key != before.key
    assert spec_of(discover(), "at").key == spec_of(discover(), "at").key


def test_a_new_version_is_another_run(make_site):
    keys = set()
    for version in ("1.0", "1.1"):
        site = make_site(version)
        site.install("good-plugin", GOOD, version=version)
        keys.add(spec_of(discover(), "good").key)
        site.forget()
    assert len(keys) == 2


def test_the_same_plugin_installed_elsewhere_is_the_same_run(make_site):
    first, second = make_site("here"), make_site("there")
    keys = []
    for site in (first, second):
        site.install("good-plugin", GOOD)
        spec = spec_of(discover(), "good")
        import good_plugin

        assert good_plugin.__file__.startswith(str(site.folder))
        keys.append(spec.key)
        site.forget()
    assert keys[0] == keys[1]


def test_code_beside_the_entry_points_module_counts_too(site):
    """The entry point may be a module of its own, and the factory in another one of the same distribution."""
    files = {
        "flat_plugin.py": GOOD["good_plugin/__init__.py"].replace("good_plugin.code", "flat_code"),
        "flat_code.py": GOOD["good_plugin/code.py"],
    }
    site.install("flat-plugin", files)
    before = spec_of(discover(), "good").key
    site.install("flat-plugin", files | {"flat_code.py": files["flat_code.py"] + "\n# changed\n"})
    assert spec_of(discover(), "good").key != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("table.json", True),
        ("data/weights.bin", True),
        (".hidden", True),
        ("__pycache__/code.cpython-311.pyc", False),
        ("code.pyc", False),
        (".mypy_cache/x.json", False),
        (".git/HEAD", False),
    ],
)
def test_data_of_a_plugin_are_in_the_run_key_and_caches_are_not(site, name, counts):
    site.install("good-plugin", GOOD)
    registry = discover()
    before = spec_of(registry, "good").key
    file = site.folder / "good_plugin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = []
    for text in ("one", "two"):
        file.write_text(text)
        keys.append(spec_of(registry, "good").key)
    assert len({before, *keys}) == (3 if counts else 1)


def test_the_source_hash_of_code_keeps_its_value(site):
    """Over each path and its bytes: runs of plugins without data keep their keys."""
    site.install("good-plugin", GOOD)
    files = sorted((name.removeprefix("good_plugin/"), text) for name, text in GOOD.items())
    expected = hashlib.sha256("".join(name + text for name, text in files).encode()).hexdigest()
    assert spec_of(discover(), "good").plugins == {"good-plugin 1.0": expected}


def test_a_list_reads_no_files_of_plugins(site, command, monkeypatch):
    """They may be large; `info`, of one component, tells the hash."""
    site.install("good-plugin", GOOD)
    assert len(command("info", "good", "--json").document["source"]) == 64
    monkeypatch.setattr(Provider, "source_hash", lambda *_: pytest.fail("hashed"))
    assert "good" in listed(command)


# ---------------------------------------------------------------------------------------------------------
# One-file plugins
# ---------------------------------------------------------------------------------------------------------

ONE_FILE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from robflat_bench.api import MethodInfo, Params, hookimpl

class MineParams(Params):
    way: Literal["up", "down"] = "up"

@dataclass
class Mine:
    params: MineParams
    ways: ClassVar[int] = 2

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("mine", "in one file", "mine:Mine", MineParams)]
"""


def test_a_file_is_a_plugin(command, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(ONE_FILE)
    assert listed(command, "--plugin", file)["mine"]["provider"] == "mine.py file"
    plan = ["run", "--method", "mine", "--plan", "--json", "--store", tmp_path, "--plugin", file]
    before = command(*plan).document
    assert list(before["spec"]["plugins"]) == ["mine.py file"]
    file.write_text(ONE_FILE + "\n# changed\n")
    assert command(*plan).document["key"] != before["key"]
    assert resolve(discover((file,)), "method", "mine(way=down)").build().params.way == "down"
    assert "mine" not in listed(command)


def test_a_file_that_is_missing_or_broken(command, tmp_path):
    missing = command("list", "methods", "--plugin", tmp_path / "none.py")
    assert missing.code == 2
    assert "no such file" in missing.complaint
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    other = command("list", "methods", "--plugin", text)
    assert other.code == 2
    assert "not a Python file" in other.complaint
    large = tmp_path / "large.py"
    large.write_text("#" * (MAX_BYTES + 1))
    assert f"larger than {MAX_BYTES} bytes" in command("list", "methods", "--plugin", large).complaint
    os.mkfifo(tmp_path / "pipe.py")
    assert "no such file" in command("list", "methods", "--plugin", tmp_path / "pipe.py").complaint
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    done = command("list", "methods", "--json", "--plugin", broken)
    assert done.code == 4
    assert "plugin broken.py file (broken) is broken: ZeroDivisionError" in done.complaint
    assert "(broken.py, line 1)" in done.complaint
    with pytest.raises(UsageError):
        resolve(discover(), "method", "mine")
