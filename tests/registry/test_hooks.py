"""Hooks beyond registration: observers that change nothing, what is said of a record, the board's columns, commands."""

from __future__ import annotations

import copy
import inspect
import json
import os
import subprocess
import sys

import pluggy
import pytest
from helpers import misbehaving
from helpers.fake_records import fake_run, submitted
from helpers.misbehaving import EVENTS

from robflat_bench import __version__
from robflat_bench.config.protocol import load
from robflat_bench.core import PROJECT, CheckFailed, PluginError
from robflat_bench.leaderboard import entries
from robflat_bench.registry import hookspecs, plugins
from robflat_bench.registry.plugins import Plugins, Provider
from robflat_bench.registry.registry import discover

HOOKS = [name for name in vars(hookspecs) if name.startswith("robflat_bench_")]

NOTES = """
import json
from robflat_bench.api import hookimpl

def note(run, event, **what):
    with open(run.folder.parent / "seen.jsonl", "a") as file:
        file.write(json.dumps({"event": event, "key": run.key, **what}) + "\\n")

@hookimpl
def robflat_bench_run_starts(run):
    note(run, "starts", label=run.label, method=run.method, protocol=run.protocol, seed=run.seed, spec=run.spec)

@hookimpl
def robflat_bench_epoch_ends(run, epoch):
    note(run, "epoch", **epoch)

@hookimpl
def robflat_bench_evaluation_ends(run, checkpoint, result):
    note(run, "evaluation", checkpoint=checkpoint, result=result)

@hookimpl
def robflat_bench_run_ends(run, record):
    note(run, "ends", record=record)

@hookimpl
def robflat_bench_run_fails(run, error):
    note(run, "fails", error=str(error))
"""

MEDDLES = """
import os, random
import numpy, torch
from robflat_bench.api import hookimpl

def meddle(run, **what):
    print("MEDDLING")
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)
    torch.set_autocast_enabled("cpu", True)
    torch.backends.mkldnn.enabled = False
    numpy.seterr(all="raise")
    os.chdir("/")
    run.spec["recipe"]["learning_rate"] = 100.0
    for document in what.values():
        for key in list(document if isinstance(document, dict) else ()):
            document[key] = None

""" + "\n".join(
    f"@hookimpl\ndef robflat_bench_{event}(run{more}):\n    meddle(run{given})\n"
    for event, more, given in (
        ("run_starts", "", ""),
        ("epoch_ends", ", epoch", ", epoch=epoch"),
        ("evaluation_ends", ", result", ", result=result"),
        ("run_ends", ", record", ", record=record"),
    )
)


def raises_in(event: str, error: str = "RuntimeError('no luck\\ntoday')") -> str:
    """A plugin that counts how often it is called, and raises in one observer."""
    hooks = "\n".join(
        f"@hookimpl\ndef robflat_bench_{name}(run):\n    count(run)\n"
        + (f"    raise {error}\n" if name == event else "")
        for name in EVENTS
    )
    count = 'def count(run):\n    with open(run.folder.parent / "calls", "a") as file: file.write(".")\n'
    return f"from robflat_bench.api import hookimpl\n{count}\n{hooks}"


@pytest.fixture
def run(command, tiny, tmp_path):
    """`run("--method", "at")` under the tiny protocol, in a store of the test's own."""

    def go(*arguments, store="store"):
        return command("run", "--protocol", tiny, "--store", tmp_path / store, *arguments)

    return go


def weights(finished):
    return {path.name: path.read_bytes() for path in (finished / "checkpoints").glob("*.safetensors")}


# ---------------------------------------------------------------------------------------------------------
# Observers
# ---------------------------------------------------------------------------------------------------------


def test_observers_see_a_run_from_start_to_end(site, run, tmp_path, finished):
    site.install("notes-plugin", {"notes_plugin.py": NOTES})
    done = run("--method", "at", "--json")
    assert done.code == 0, done.err
    (folder,) = tmp_path.glob("store/tiny/at/seed-1-*")
    seen = [json.loads(line) for line in (folder.parent / "seen.jsonl").read_text().splitlines()]
    assert [row.pop("event") for row in seen] == ["starts", "epoch", "epoch", "evaluation", "evaluation", "ends"]
    assert {row.pop("key") for row in seen} == {finished.key}
    starts, *epochs, best, last, ends = seen
    record = json.loads((folder / "record.json").read_text())
    assert starts == {
        **{"label": "at", "method": record["method"], "protocol": "tiny", "seed": 1},
        "spec": json.loads((folder / "spec.json").read_text()),
    }
    assert (
        epochs
        == record["history"]
        == [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    )
    assert [best["checkpoint"], last["checkpoint"]] == ["best", "last"]
    assert {"best": best["result"], "last": last["result"]} == record["results"]
    observed = record["provenance"].pop("observers")
    assert ends["record"] == record
    assert list(observed) == ["notes-plugin 1.0"]
    assert set(observed["notes-plugin 1.0"]) == {"seconds"}
    assert observed["notes-plugin 1.0"]["seconds"] > 0

    assert run("--method", "at").code == 0
    assert len((folder.parent / "seen.jsonl").read_text().splitlines()) == 6, "a finished run is not run"


def test_observers_hear_of_a_failing_run(site, run, tmp_path):
    site.install("notes-plugin", {"notes_plugin.py": NOTES})
    done = run("--method", "at", "--set", "recipe.learning_rate=1e30")
    assert done.code == 1
    (path,) = tmp_path.glob("store/tiny/*/seen.jsonl")
    seen = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["event"] for row in (seen[0], seen[-1])] == ["starts", "fails"]
    assert seen[-1]["error"] in done.err


def test_observers_change_nothing(site, run, tmp_path, finished):
    """Whatever they set, draw or write into what they are shown: weights, outcomes, results are equal bit for bit."""
    site.install("meddling-plugin", {"meddling_plugin.py": MEDDLES})
    done = run("--method", "at", "--json")
    assert done.code == 0, done.err
    assert "MEDDLING" in done.err
    (folder,) = tmp_path.glob("store/tiny/at/seed-1-*")
    assert folder.name == finished.folder.name
    assert weights(folder) == weights(finished.folder)
    assert (folder / "outcomes.npz").read_bytes() == (finished.folder / "outcomes.npz").read_bytes()
    record = json.loads((folder / "record.json").read_text())
    assert "error" not in record["provenance"]["observers"]["meddling-plugin 1.0"]
    for mine, theirs in ((record, finished.record), (done.document, finished.record)):
        assert mine["spec"] == theirs["spec"]
        for checkpoint in ("best", "last"):
            for result in (mine["results"][checkpoint], theirs["results"][checkpoint]):
                result["seconds"] = None
                for measure in result["measures"].values():
                    measure["seconds"] = None
            assert mine["results"][checkpoint] == theirs["results"][checkpoint]


@pytest.mark.parametrize(("event", "calls"), [*zip(EVENTS, (1, 2, 4, 6, 2), strict=True)])
def test_an_observer_that_raises_is_reported_once_and_not_called_again(site, run, tmp_path, event, calls):
    """Calls: its own and those before it; without the exception there would be six."""
    site.install("bad-plugin", {"bad_plugin.py": raises_in(event)}, version="0.3")
    site.install("notes-plugin", {"notes_plugin.py": NOTES})
    failing = ("--set", "recipe.learning_rate=1e30") if event == "run_fails" else ()
    done = run("--method", "at", *failing)
    assert done.code == (1 if failing else 0), done.err
    (said,) = [line for line in done.err.splitlines() if "bad-plugin" in line]
    assert said.endswith(f"no longer told of this run: its observer of {event} raised RuntimeError: no luck")
    (count,) = tmp_path.glob("store/tiny/*/calls")
    assert count.read_text() == "." * calls
    assert (count.parent / "seen.jsonl").is_file(), "the others go on"
    if not failing:
        (record,) = tmp_path.glob("store/tiny/at/*/record.json")
        observers = json.loads(record.read_text())["provenance"]["observers"]
        assert observers["bad-plugin 0.3"]["error"] == f"{event}: RuntimeError: no luck"
        assert "error" not in observers["notes-plugin 1.0"]


def test_the_rest_of_the_state_is_restored_where_one_part_cannot_be(tmp_path, monkeypatch):
    """A folder that is gone is the run's trouble; the random state is put back all the same."""
    torch = pytest.importorskip("torch")
    observers = pytest.importorskip("robflat_bench.runs.observers")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    before = torch.get_rng_state()

    def disturb():
        with observers.undisturbed():
            torch.manual_seed(7)
            torch.set_default_dtype(torch.float64)
            os.chdir(tmp_path)
            gone.rmdir()

    with pytest.raises(FileNotFoundError):
        disturb()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_a_deleted_folder_is_no_fault_of_an_observer(tmp_path, monkeypatch):
    observers = pytest.importorskip("robflat_bench.runs.observers")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with observers.undisturbed():
        pass


def test_an_observer_that_exits_does_not_end_the_run(site, run):
    site.install("bad-plugin", {"bad_plugin.py": raises_in("epoch_ends", "SystemExit(9)")})
    done = run("--method", "at")
    assert done.code == 0
    assert "its observer of epoch_ends raised SystemExit: 9" in done.err


SLOW = """
from robflat_bench.api import hookimpl
from robflat_bench.core import clock

@hookimpl
def robflat_bench_epoch_ends():
    clock.time.now += 100
"""


class Clock:
    """Only the observer moves it."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_the_time_of_a_slow_observer_is_not_the_runs(site, run, monkeypatch):
    """Two epochs of 100 s each in the observer: told of, recorded, and in no number of the run."""
    from robflat_bench.core import clock
    from robflat_bench.runs import observers

    time = Clock()
    monkeypatch.setattr(clock, "time", time)
    monkeypatch.setattr(observers, "time", time)
    site.install("slow-plugin", {"slow_plugin.py": SLOW})
    done = run("--method", "at", "--json")
    assert done.code == 0, done.err
    record = done.document
    assert record["provenance"]["observers"]["slow-plugin 1.0"]["seconds"] == 200
    assert record["budget"]["seconds"] == record["budget"]["evaluation_seconds"]
    assert [epoch["seconds"] for epoch in record["history"]] == [0, 0]
    assert "the observers of slow-plugin 1.0 took 200.0 s beside this run's" in done.err


# ---------------------------------------------------------------------------------------------------------
# Evidence
# ---------------------------------------------------------------------------------------------------------

TELLS = """
from robflat_bench.api import hookimpl

@hookimpl
def robflat_bench_environment():
    return {"library": "1.2", "build": 7}

@hookimpl
def robflat_bench_validate_record(record):
    facts = record["environment"]["plugins"].get("tells-plugin", {})
    return [] if facts.get("library") == "1.2" else ["it does not say by which library"]
"""
FALTERS = """
from robflat_bench.api import hookimpl

@hookimpl
def robflat_bench_environment():
    raise OSError("no such file")

@hookimpl
def robflat_bench_validate_record(record):
    return 1 / 0
"""
LEAVES = """
import sys
from robflat_bench.api import hookimpl

@hookimpl
def robflat_bench_environment():
    sys.exit(3)
"""


def test_facts_that_plugins_report_are_in_record_and_doctor(site, run, command, tmp_path):
    site.install("tells-plugin", {"tells_plugin.py": TELLS})
    site.install("falters-plugin", {"falters_plugin.py": FALTERS})
    site.install("leaves-plugin", {"leaves_plugin.py": LEAVES})
    told = {
        "tells-plugin": {"library": "1.2", "build": "7"},
        "falters-plugin": {"error": "OSError: no such file"},
        "leaves-plugin": {"error": "SystemExit: 3"},
    }
    assert run("--method", "at", "--json").document["environment"]["plugins"] == told
    assert command("doctor", "--json", "--store", tmp_path).document["environment"]["plugins"] == told
    assert "tells-plugin: library" in command("doctor", "--store", tmp_path).out


def test_plugins_find_problems_with_a_record(site, finished):
    site.install("tells-plugin", {"tells_plugin.py": TELLS})
    site.install("falters-plugin", {"falters_plugin.py": FALTERS})
    assert discover().plugins.problems(finished.record) == [
        "falters-plugin 1.0: could not check this record: ZeroDivisionError: division by zero",
        "tells-plugin 1.0: it does not say by which library",
    ]


def test_a_plugin_that_changes_the_record_it_is_shown_changes_its_own_copy(site, finished):
    clears = TELLS.replace("    facts =", "    record['environment'].clear()\n    return []\n    facts =")
    site.install("a-clears-plugin", {"clears_plugin.py": clears})
    site.install("tells-plugin", {"tells_plugin.py": TELLS})
    before = copy.deepcopy(finished.record)
    said = discover().plugins.problems(finished.record)
    assert said == ["tells-plugin 1.0: it does not say by which library"]
    assert finished.record == before


def test_an_entry_that_a_plugin_finds_wrong_is_refused(site, tmp_path):
    run = fake_run(tmp_path / "runs", "at", 1)
    root = tmp_path / "leaderboard"
    (folder,) = submitted(root, [run])
    assert entries.read_entry(root, folder, discover()).record.method
    site.install("tells-plugin", {"tells_plugin.py": TELLS.replace('["plugins"]', '.get("plugins", {})')})
    with pytest.raises(CheckFailed, match=r"tells-plugin 1\.0: it does not say by which library"):
        entries.read_entry(root, folder, discover())


def test_evaluate_shows_the_problems_that_plugins_find(site, command, finished_copy, tiny):
    site.install("falters-plugin", {"falters_plugin.py": FALTERS})
    arguments = ("evaluate", finished_copy.folder, "--protocol", tiny, "--store", finished_copy.store)
    done = command(*arguments, "--attack", "fgsm", "--json")
    assert done.code == 0, done.err
    assert done.document["results"]
    assert "falters-plugin 1.0: could not check this record: ZeroDivisionError" in done.err


def test_a_record_names_the_provider_of_every_component(site, run, finished):
    mine = finished.record["provenance"]["components"]
    assert mine["method:at"] == {"distribution": "robflat-bench", "version": __version__, "source": ""}
    assert set(mine) == {
        *("method:at", "backbone:resnet8", "dataset:digits", "attack:pgd", "attack:fgsm"),
        *("measure:average-case", "measure:worst-case"),
    }
    source = (
        "from robflat_bench.api import MethodInfo, Passes, hookimpl\n@hookimpl\ndef robflat_bench_methods():\n"
        "    return [MethodInfo('strange', '-', 'robflat_bench.methods.at:AT', attack=Passes('T + 1', 'T'))]\n"
    )
    site.install("strange-plugin", {"strange_plugin.py": source}, version="2.0")
    done = run("--method", "strange", "--json")
    assert done.code == 0, done.err
    found = done.document["provenance"]["components"]["method:strange"]
    assert (found["distribution"], found["version"], len(found["source"])) == ("strange-plugin", "2.0", 64)
    assert {"strange-plugin 2.0": found["source"]} == done.document["spec"]["plugins"]


# ---------------------------------------------------------------------------------------------------------
# Protocols, commands, tracing
# ---------------------------------------------------------------------------------------------------------

OFFERS = """
import pathlib
from robflat_bench.api import hookimpl

@hookimpl
def robflat_bench_protocols():
    return sorted(pathlib.Path(__file__).parent.glob("*.toml"))
"""


def test_a_protocol_of_a_plugin_is_listed_and_loaded(site, command, tiny, tmp_path):
    site.install("offers-plugin", {"offers/__init__.py": OFFERS, "offers/tiny.toml": tiny.read_text()})
    rows = {row["name"]: row for row in command("list", "protocols", "--json").document}
    assert rows["tiny"]["provider"] == "offers-plugin 1.0"
    assert rows["digits-linf"]["provider"].startswith("robflat-bench ")
    assert command("info", "tiny", "--json").document["provider"] == "offers-plugin 1.0"
    plan = command("run", "--method", "at", "--protocol", "tiny", "--plan", "--json", "--store", tmp_path).document
    assert plan["spec"]["protocol"]["hash"] == load(discover(), str(tiny)).hash


def test_a_protocol_that_is_offered_twice_or_misnamed_is_refused(site, command, tiny):
    text = tiny.read_text()
    site.install("offers-plugin", {"offers/__init__.py": OFFERS, "offers/tiny.toml": text, "offers/other.toml": text})
    site.install("rival-plugin", {"rival/__init__.py": OFFERS, "rival/tiny.toml": text})
    registry = discover()
    assert registry.duplicates() == ["protocol 'tiny' is offered by offers-plugin and rival-plugin"]
    with pytest.raises(PluginError, match="DISABLE_PLUGINS=rival-plugin"):
        load(registry, "tiny")
    with pytest.raises(PluginError, match="protocol other calls itself tiny"):
        load(registry, "other")
    listed = command("list", "protocols", "--json")
    assert listed.code == 0
    assert "digits-linf" in {row["name"] for row in listed.document}


COMMANDS = """
import click
from robflat_bench.api import UsageError, hookimpl

@click.command("NAME")
@click.option("--twice", is_flag=True)
def greet(twice):
    "Say hello."
    click.echo("hello " * (1 + twice))
    if twice:
        raise UsageError("once is enough")

@hookimpl
def robflat_bench_commands():
    return [greet]
"""


@pytest.fixture
def group(monkeypatch):
    """Commands are looked for once per process; here anew."""
    from robflat_bench import cli

    cli.cli._offered.cache_clear()
    yield
    cli.cli._offered.cache_clear()


@pytest.mark.usefixtures("group")
def test_a_command_of_a_plugin_is_listed_and_runs(site, command):
    site.install("greets-plugin", {"greets_plugin.py": COMMANDS.replace("NAME", "greet")})
    assert "Say hello." in command("--help").out
    assert command("greet").out == "hello \n"
    refused = command("greet", "--twice")
    assert (refused.code, refused.err) == (2, "robflat-bench: once is enough\n")
    assert command("gret").code == 2


@pytest.mark.usefixtures("group")
def test_a_command_of_a_taken_name_breaks_its_plugin_only(site, command):
    site.install("greets-plugin", {"greets_plugin.py": COMMANDS.replace("NAME", "run")})
    site.install("kind-plugin", {"kind_plugin.py": COMMANDS.replace("NAME", "greet")})
    shown = command("--help")
    assert "plugin greets-plugin 1.0 (greets_plugin) is broken: ValueError: the command 'run' is taken" in shown.err
    assert "Train a method" in shown.out
    assert "Say hello." in shown.out


def test_every_call_of_a_hook_can_be_traced(site, command, monkeypatch):
    site.install("offers-plugin", {"offers/__init__.py": OFFERS})
    site.install("late-plugin", {"late_plugin.py": "from robflat_bench.api import hookimpl\n@hookimpl\n"
        "def robflat_bench_methods(): raise RuntimeError('later')\n"})  # fmt: skip
    quiet = command("list", "methods", "--json")
    assert "hook robflat_bench" not in quiet.err
    monkeypatch.setenv("ROBFLAT_BENCH_TRACE_HOOKS", "1")
    done = command("list", "methods", "--json")
    assert done.document == quiet.document
    lines = [line for line in done.err.splitlines() if "hook robflat_bench" in line]
    assert "robflat-bench: hook robflat_bench_methods() of robflat-bench:methods: done" in lines
    assert "robflat-bench: hook robflat_bench_protocols() of offers-plugin:offers: done" in lines
    assert "robflat-bench: hook robflat_bench_methods() of late-plugin:late_plugin: raised RuntimeError: later" in lines
    assert len(lines) == 8 + 2


# ---------------------------------------------------------------------------------------------------------
# What a plugin must not do
# ---------------------------------------------------------------------------------------------------------


def test_a_plugin_that_would_import_torch_is_broken_instead(site, child_environment):
    """Every command would wait for it. In a process of its own, where torch is not there yet."""
    site.install("heavy-plugin", {"heavy_plugin.py": "import torch\n"})
    site.install("late-plugin", {"late_plugin.py": "from robflat_bench.api import hookimpl\n@hookimpl\n"
        "def robflat_bench_methods():\n    import torch\n    return []\n"})  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys\nfrom robflat_bench.cli import main\ntry: main()\nfinally: "
         "print('torch' in sys.modules, file=sys.stderr)", "list", "methods", "--json"],
        env=child_environment(site.folder, plugins="heavy-plugin,late-plugin"),
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    *said, imported = done.stderr.splitlines()
    assert imported == "False"
    for name, line in zip(("heavy-plugin", "late-plugin"), said, strict=True):
        assert f"plugin {name} 1.0" in line
        assert "ImportError: a plugin must not import torch" in line
    assert len(json.loads(done.stdout)) > 10


def test_hook_wrappers_are_refused(site, command):
    source = (
        "from robflat_bench.api import hookimpl\n@hookimpl(wrapper=True)\ndef robflat_bench_methods():\n    yield\n"
    )
    site.install("wraps-plugin", {"wraps_plugin.py": source})
    done = command("list", "methods", "--json")
    assert done.code == 0
    assert "wraps-plugin 1.0 (wraps_plugin) is broken: TypeError: robflat_bench_methods is a wrapper" in done.err


class _Specs:
    """A specification whose second argument is on its way out."""

    @pluggy.HookspecMarker(PROJECT)(warn_on_impl_args={"old": DeprecationWarning("old goes with 2.0; use new")})
    def robflat_bench_run_starts(self, new, old):
        """-"""


def test_every_use_of_a_deprecated_hook_is_reported(monkeypatch):
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_Specs())
    found = Plugins(manager)
    for name, arguments in (("uses", "new, old"), ("does_not", "new")):
        module = type(sys)(name)
        exec(f"from robflat_bench.api import hookimpl\n@hookimpl\ndef robflat_bench_run_starts({arguments}): pass",
             vars(module))  # fmt: skip
        found.register(module, Provider(name, "1.0", name, module))
    assert found.deprecated == ["plugin uses 1.0: old goes with 2.0; use new"]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_typed_and_has_an_example(name):
    hook = getattr(hookspecs, name)
    signature = inspect.signature(hook)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(value.annotation is not inspect.Parameter.empty for value in signature.parameters.values())
    assert "Example::" in hook.__doc__


def test_the_core_uses_every_hook(registry):
    """By its name, or the kind's: a hook without a user would be taken out."""
    import robflat_bench.registry.registry
    import robflat_bench.runs.observers

    used = "".join(
        inspect.getsource(module) for module in (plugins, robflat_bench.registry.registry, robflat_bench.runs.observers)
    )
    from robflat_bench import cli
    from robflat_bench.leaderboard import publish

    used += inspect.getsource(publish) + inspect.getsource(cli)
    kinds = {f"robflat_bench_{kind}s" for kind in robflat_bench.registry.registry.KINDS}
    missing = [
        name for name in HOOKS if name not in used and name not in kinds
        and f'"{name.removeprefix("robflat_bench_")}"' not in used
    ]  # fmt: skip
    assert not missing


def test_every_broken_plugin_costs_one_line_and_the_rest_works(child_environment, tmp_path, tiny):
    """Eleven plugins that misbehave, installed together, in processes of their own."""
    misbehaving.install(tmp_path / "site")
    environment = child_environment(tmp_path / "site", plugins=",".join(misbehaving.SOURCES))

    def command(*arguments):
        line = [sys.executable, "-m", "robflat_bench", *map(str, arguments)]
        return subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    listed = command("list", "methods", "--json")
    assert listed.returncode == 0, listed.stderr
    names = {row["name"] for row in json.loads(listed.stdout)}
    assert {"at", "loud"} <= names
    assert "trades" not in names
    lines = [line for line in listed.stderr.splitlines() if "is broken: " in line]
    assert len(lines) == len(misbehaving.BROKEN)
    for name, why in misbehaving.BROKEN.items():
        assert any(f"plugin {name} 1.0" in line and why in line for line in lines)

    done = command("run", "--method", "at", "--protocol", tiny, "--json")
    assert done.returncode == 0, done.stderr
    observers = json.loads(done.stdout)["provenance"]["observers"]
    for event in EVENTS[:-1]:
        name = f"raises-in-{event.replace('_', '-')}"
        assert observers[f"{name} 1.0"]["error"] == f"{event}: RuntimeError: no luck"
        assert done.stderr.count(f"{name} 1.0 is no longer told of this run") == 1
    assert observers["slow-observer 1.0"]["seconds"] >= 1
    assert command("run", "--method", "trades", "--protocol", tiny, "--plan").returncode == 4
