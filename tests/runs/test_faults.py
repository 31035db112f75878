"""Plugin code that raises what would end the process, prints past Python, or needs more memory than there is."""

from __future__ import annotations

import json
import os
import signal

import pytest

from robflat_bench.config.protocol import load
from robflat_bench.config.study import load_study
from robflat_bench.core import Interrupted, Launcher, Params, Resources, contained, interruptible, out_of_memory
from robflat_bench.evaluation.session import Session
from robflat_bench.records.store import Store
from robflat_bench.registry.registry import discover
from robflat_bench.runs.doctor import check_machine
from robflat_bench.runs.jobs import Jobs
from robflat_bench.runs.sweep import Sweep
from robflat_bench.runs.tasks import tasks

pytestmark = pytest.mark.usefixtures("one_thread")

PLUGIN = """
import os, signal, sys
from robflat_bench.api import (
    Attack, AttackInfo, BackboneInfo, Dataset, DatasetInfo, Launcher, LauncherInfo, Measure, MeasureInfo, Method,
    MethodInfo, hookimpl,
)
import torch

class Strange(BaseException):
    pass

def fail(*_, **__):
    RAISE

class Quits(Method):
    loss = attack = lambda *_: fail()

class Breaks(Attack):
    def perturb(self, model, examples, seed):
        fail()

class Reads(Measure):
    def measure(self, model, examples, workspace):
        fail()

class Starts(Launcher):
    start = wait = interrupt = lambda *_: fail()

class Loads(Dataset):
    canonical = sources = lambda *_, **__: fail()

def net(*_):
    fail()

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("quits", "-", "bad:Quits")]

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("breaks", "-", "bad:Breaks")]

@hookimpl
def robflat_bench_measures():
    return [MeasureInfo("reads", "-", "bad:Reads")]

@hookimpl
def robflat_bench_backbones():
    return [BackboneInfo("net", "-", "bad:net")]

@hookimpl
def robflat_bench_datasets():
    return [DatasetInfo("loads", "-", "bad:Loads")]

@hookimpl
def robflat_bench_launchers():
    return [LauncherInfo("starts", "-", "bad:Starts")]
"""


@pytest.fixture
def bad(tmp_path):
    """`bad("raise SystemExit(0)")`: a one-file plugin with a component of each kind, which fails so where it works."""

    def write(statement):
        file = tmp_path / "bad.py"
        file.write_text(PLUGIN.replace("RAISE", statement))
        return file

    return write


@pytest.fixture
def run(command, tiny, tmp_path):
    def here(*arguments, protocol=tiny):
        return command("run", "--protocol", protocol, "--store", tmp_path / "store", *arguments)

    return here


RAISED = {
    "raise SystemExit(0)": "SystemExit: 0",
    "sys.exit('bye')": "SystemExit: bye",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise EOFError": "EOFError",
    "raise Strange('no luck')": "Strange: no luck",
}


@pytest.mark.parametrize(("statement", "said"), RAISED.items())
def test_whatever_a_method_raises_fails_the_run_in_its_name(bad, run, tmp_path, statement, said):
    done = run("--method", "quits", "--plugin", bad(statement), "--json")
    assert (done.code, done.out) == (1, "")
    assert f"robflat-bench: method 'quits' of bad.py file raised {said}, which would end" in done.err
    (failed,) = tmp_path.glob("store/tiny/quits/*/failed.json")
    document = json.loads(failed.read_text())
    assert document["error"].startswith("method 'quits' of bad.py file raised ")
    assert "in fail" in document["trace"]


@pytest.mark.parametrize(
    ("component", "old", "new"),
    [
        ("measure 'reads'", 'measure = "average-case(draws=2, steps=2)"', 'measure = "reads"'),
        ("attack 'breaks'", 'attack = "fgsm"', 'attack = "breaks"'),
        ("backbone 'net'", 'backbone = "resnet8(width=4, strides=[1, 1, 1], stem_stride=2)"', 'backbone = "net"'),
        ("dataset 'loads'", 'dataset = "digits"', 'dataset = "loads"'),
    ],
)
def test_a_component_of_any_kind_that_exits_fails_the_run_in_its_name(bad, run, tiny, tmp_path, component, old, new):
    text = tiny.read_text()
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new))
    plugin = bad("raise SystemExit(0)")
    done = run("--method", "standard", "--plugin", plugin, "--set", "recipe.epochs=1", protocol=tmp_path / "tiny.toml")
    assert (done.code, done.out) == (1, "")
    assert f"robflat-bench: {component} of bad.py file raised SystemExit: 0, which would end" in done.err


@pytest.mark.parametrize("option", ["--measure=reads", "--attack=breaks"])
def test_an_evaluation_does_not_end_as_a_component_wants(bad, command, finished_copy, tiny, option):
    evaluate = ("evaluate", finished_copy.folder, "--protocol", tiny, "--store", finished_copy.store)
    done = command(*evaluate, option, "--plugin", bad("raise SystemExit(0)"))
    assert (done.code, done.out) == (1, "")
    assert f"{option[2:].replace('=', chr(32) + chr(39))}' of bad.py file raised SystemExit: 0" in done.err


STUDY = """
name = "one"
version = "1.0"
summary = "-"
protocol = "tiny.toml"

[[groups]]
title = "one"
methods = ["METHOD"]
"""


@pytest.fixture
def study(tiny, tmp_path):
    def write(method):
        (tmp_path / "tiny.toml").write_text(tiny.read_text())
        (tmp_path / "one.toml").write_text(STUDY.replace("METHOD", method))
        return tmp_path / "one.toml"

    return write


def test_a_launcher_that_exits_fails_the_sweep_in_its_name(bad, command, study, tmp_path):
    options = ("--store", tmp_path / "store", "--launcher", "starts", "--plugin", bad("raise SystemExit(0)"))
    done = command("sweep", study("at"), *options)
    assert (done.code, done.out) == (1, "")
    assert "launcher 'starts' of bad.py file raised SystemExit: 0" in done.err


class Exits(Launcher):
    """Every process ends with code 0, as after os._exit(0) in a component."""

    def start(self, job):
        self.name = job.name

    def wait(self, seconds):
        return {self.name: 0}

    def interrupt(self):
        pass


def test_a_sweep_reports_a_run_that_ended_its_process(registry, study, tmp_path):
    chosen = load_study(str(study("at")))
    session = Session(registry, load(registry, chosen.protocol), None, Store(tmp_path / "store"), "cpu")
    wanted, _ = tasks(session, chosen, 1)
    (ended,) = Sweep(Jobs(Exits(Params(), Resources(1)), "exits"), lambda task: []).run(wanted).values()
    assert (ended.what, ended.why) == ("failed", "exit code 0")
    assert json.loads(ended.task.folder.failed_file.read_text())["error"] == "exit code 0"


# ---------------------------------------------------------------------------------------------------------
# Hooks
# ---------------------------------------------------------------------------------------------------------

AT_IMPORT = "class Strange(BaseException): pass\nimport sys\n"
_HOOK = """
from robflat_bench.api import hookimpl
class Strange(BaseException): pass
import sys

@hookimpl
def robflat_bench_HOOK(ARGUMENT):
    RAISE
"""


def hook(name, statement, argument=""):
    """The source of a plugin whose implementation of a hook is one statement."""
    return _HOOK.replace("HOOK", name).replace("ARGUMENT", argument).replace("RAISE", statement)


@pytest.mark.parametrize(("statement", "said"), RAISED.items())
def test_whatever_a_plugin_raises_when_it_is_read_makes_it_broken(site, command, statement, said):
    site.install("a-plugin", {"a_plugin.py": AT_IMPORT + statement})
    site.install("b-plugin", {"b_plugin.py": hook("measures", statement)})
    done = command("list", "measures", "--json")
    assert done.code == 0
    assert len(done.document) > 10
    for name in "ab":
        assert f"plugin {name}-plugin 1.0 ({name}_plugin) is broken: {said}; `robflat-bench plugin list`" in done.err
    assert command("info", "at").code == 0


@pytest.mark.parametrize(("statement", "said"), RAISED.items())
def test_whatever_a_hook_about_records_raises_is_its_answer(site, statement, said):
    site.install("a-plugin", {"a_plugin.py": hook("environment", statement)})
    site.install("b-plugin", {"b_plugin.py": hook("validate_record", statement, "record")})
    plugins = discover().plugins
    assert plugins.environment() == {"a-plugin": {"error": said}}
    assert plugins.problems({}) == [f"b-plugin 1.0: could not check this record: {said}"]


@pytest.mark.parametrize(("statement", "said"), RAISED.items())
def test_whatever_an_observer_raises_leaves_the_run_going(site, run, statement, said):
    site.install("a-plugin", {"a_plugin.py": hook("run_starts", statement)})
    done = run("--method", "standard", "--set", "recipe.epochs=1", "--json")
    assert done.code == 0, done.err
    assert done.document["provenance"]["observers"]["a-plugin 1.0"]["error"].removesuffix(": ") == f"run_starts: {said}"


def test_a_dataset_that_exits_does_not_end_doctor(bad, tmp_path):
    found = check_machine(discover((bad("raise SystemExit(0)"),)), tmp_path, None)
    assert found["data"]["loads"] == ["none: SystemExit: 0"]
    assert found["data"]["digits"]


def test_a_component_that_exits_fails_its_check_in_the_kit(bad, command):
    done = command("plugin", "check", bad("raise SystemExit(0)"), "--json")
    assert done.code == 3
    failed = [row for row in done.document["results"] if row["outcome"] == "failed"]
    assert any(row["component"] == "method:quits" and "SystemExit: 0" in row["reason"] for row in failed)


# ---------------------------------------------------------------------------------------------------------
# Ctrl-C
# ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_plugin_code_and_an_interrupt_of_its_own_does_not():
    caught = []
    with contained(caught.append):
        raise KeyboardInterrupt
    assert [type(error) for error in caught] == [KeyboardInterrupt]
    with pytest.raises(Interrupted), contained(caught.append):
        os.kill(os.getpid(), signal.SIGINT)
    assert len(caught) == 1


def test_a_program_with_a_handler_of_its_own_keeps_it():
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        own = signal.getsignal(signal.SIGINT)
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_component_interrupts_the_run_and_is_no_failure(bad, run, tmp_path):
    done = run("--method", "quits", "--plugin", bad("for _ in '12': os.kill(os.getpid(), signal.SIGINT)"))
    assert done.code == 130, done.err
    assert "robflat-bench: interrupted; run the same command again, it resumes" in done.err
    assert not [*tmp_path.glob("store/tiny/quits/*/failed.json")]


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...')",
        "torch.empty(2**60, dtype=torch.uint8)",
        "import numpy; numpy.empty(2**60, dtype='uint8')",
        "raise MemoryError",
        "bytearray(2**62)",
    ],
)
def test_a_run_without_enough_memory_fails_in_one_line(bad, run, tmp_path, statement):
    done = run("--method", "quits", "--plugin", bad(statement), "--json")
    assert (done.code, done.out) == (1, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("robflat-bench: ")]
    assert line.startswith("robflat-bench: out of memory (")
    assert "type the same command again" in line
    (failed,) = tmp_path.glob("store/tiny/quits/*/failed.json")
    assert json.loads(failed.read_text())["error"] in line


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(2, "No such file")):
        assert out_of_memory(error) is None
    assert out_of_memory(OSError(12, "Cannot allocate memory"))
