"""Studies, launchers and sweeps: which studies are valid, runs in processes of their own, failures, Ctrl-C, kills."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.commands import promised

from robflat_bench.cli import sweep_progress as progress
from robflat_bench.config.cost import passes_of, passes_of_evaluation, undeclared
from robflat_bench.config.protocol import load
from robflat_bench.config.study import load_study, studies
from robflat_bench.core import Examples, Exit, Job, Params, Resources, Threat, UsageError, Workspace, processes
from robflat_bench.core.batching import MEMORY_BATCH
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import build_model
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.launchers.local import Inline, Local, slots
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.record import RunRecord
from robflat_bench.records.store import RunFolder, Store
from robflat_bench.registry.components import compose, resolve
from robflat_bench.runs.exits import last_line
from robflat_bench.runs.jobs import Jobs
from robflat_bench.runs.pace import pace
from robflat_bench.runs.sweep import Event, Sweep
from robflat_bench.runs.tasks import tasks

STUDY = """
name = "mine"
version = "1.0"
summary = "A good one, one that diverges, one whose loss is not finite, and another good one."
protocol = "tiny.toml"

[[groups]]
title = "good"
methods = ["standard"]

[[groups]]
title = "diverging"
methods = ["standard"]
grid = { "recipe.learning_rate" = [1e30] }

[[groups]]
title = "not finite"
methods = ["nan"]

[[groups]]
title = "mistakes"
methods = ["trades(bta=1)", "at+awp+sam", "att"]

[[groups]]
title = "also good"
methods = ["standard"]
grid = { "recipe.epochs" = [1] }
"""

NAN = """
from robflat_bench.api import Method, MethodInfo, hookimpl

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("nan", "a loss that is not finite", "nan:NaN", claims=("attack",))]

class NaN(Method):
    def attack(self, model, batch, inner):
        return batch.x

    def loss(self, model, batch, x_adv):
        return model(x_adv).sum(1) * float("nan")
"""


@pytest.fixture
def study(tmp_path, tiny) -> Path:
    (tmp_path / "tiny.toml").write_text(tiny.read_text())
    path = tmp_path / "mine.toml"
    path.write_text(STUDY)
    (tmp_path / "nan.py").write_text(NAN)
    return path


ONE = STUDY[: STUDY.index('[[groups]]\ntitle = "diverging"')]
GOOD = STUDY.replace('["nan"]', '["at"]').replace('["trades(bta=1)", "at+awp+sam", "att"]', '["trades"]')


def here(jobs: int = 1) -> Jobs:
    return Jobs(Local(Params(), Resources(jobs)), "local")


def command_of(path: Path, store: Path):
    """What a sweep of the study at `path` types after `run`."""
    protocol = load_study(str(path)).protocol

    def arguments(task) -> list[str]:
        settings = [part for setting in task.variant.settings for part in ("--set", setting)]
        return ["--method", task.variant.method, "--protocol", protocol, "--store", str(store), *settings]

    return arguments


def refusing(task) -> list[str]:
    """A run that cannot begin."""
    return ["--method", "att"]


def listed(registry, path: Path, store: Path, seeds: int = 1):
    chosen = load_study(str(path))
    session = Session(registry, load(registry, chosen.protocol), None, Store(store), "cpu")
    wanted, refused = tasks(session, chosen, seeds)
    assert not refused
    return wanted


# ---------------------------------------------------------------------------------------------------------
# Studies
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", studies())
def test_shipped_studies_are_valid_and_name_each_run_once(registry, name):
    study = load_study(name)
    made = set()
    for variant in study.variants():
        protocol = load(registry, study.protocol, variant.settings)
        made.add((compose(registry, variant.method).canonical, protocol.recipe))
    assert len(made) == len(study.variants())


def test_the_digits_study_stays_small(registry):
    study = load_study("paper-digits")
    assert study.protocol == "digits-linf"
    assert 25 <= len(study.variants()) <= 30


def test_a_group_is_every_method_times_every_combination(study):
    grid = '{ "recipe.epochs" = [1, 2], "recipe.schedule" = ["cyclic(cycles=2)"] }'
    study.write_text(f'{STUDY}\n[[groups]]\ntitle="both"\nmethods=["at", "trades"]\ngrid = {grid}\n')
    variants = load_study(str(study)).variants()[-4:]
    assert [(variant.method, variant.settings) for variant in variants] == [
        (method, (f"recipe.epochs={epochs}", "recipe.schedule=cyclic(cycles=2)"))
        for method in ("at", "trades")
        for epochs in (1, 2)
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["nan"]', "[]", "'groups.2.methods'"),
        ('"recipe.epochs" = [1]', '"fixed.seed" = [1]', "should match pattern"),
        ('"recipe.epochs" = [1]', f'"recipe.epochs" = {list(range(1, 1200))}', "more than 1000"),
        ("protocol =", "protocl =", "did you mean 'protocol'?"),
        ("[[groups]]", "[[groups", "not valid TOML"),
        ('"recipe.epochs" = [1]', ", ".join(f'"recipe.x{i}" = [1, 2]' for i in range(64)), "more than 1000"),
        ('"recipe.epochs" = [1]', '"recipe.epochs" = []', "at least 1 item"),
        ('title = "good"', 'title = "\\u001b[2J"', "should match pattern"),
    ],
)
def test_bad_studies_are_refused_before_anything_runs(study, old, new, says):
    study.write_text(STUDY.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_study(str(study))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_oversized_studies_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown study 'paper-digit'; did you mean 'paper-digits'"):
        load_study("paper-digit")
    (tmp_path / "big.toml").write_text("#" * 70_000)
    with pytest.raises(UsageError, match="larger than"):
        load_study(str(tmp_path / "big.toml"))


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


def test_each_slot_has_its_gpu_and_its_threads(monkeypatch, tmp_path):
    """Four jobs in two slots: never two at a time on one GPU, and a free slot is used again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    launcher = Local(Params(), Resources(jobs=2, threads=4, device="cuda"))
    tell = "import os, sys; e = os.environ; print(e['CUDA_VISIBLE_DEVICES'], e['OMP_NUM_THREADS'], file=sys.stderr)"
    seen, running = {}, {}
    waiting = [Job(name, (sys.executable, "-c", tell), tmp_path / f"{name}.txt") for name in "abcd"]
    while waiting or running:
        while waiting and len(running) < 2:
            job = waiting.pop(0)
            launcher.start(job)
            running[job.name] = job
        at_once = set(running)
        for name, exit in launcher.wait(60).items():
            assert exit == Exit(0)
            seen[name] = (running.pop(name).log.read_text().split(), at_once)
    assert {tuple(words) for words, _ in seen.values()} == {("3", "4"), ("5", "4")}
    together = [(a, b) for a in seen for b in seen if a < b and b in seen[a][1]]
    assert together
    assert all(seen[a][0] != seen[b][0] for a, b in together)


def test_more_slots_than_gpus_share_them_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = slots(Resources(jobs=3, device="cuda"))
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in found] == ["0", "1", "0"]
    assert not any("CUDA_VISIBLE_DEVICES" in slot for slot in slots(Resources(jobs=3)))


def test_an_adopted_process_keeps_its_slot(monkeypatch, tmp_path):
    """A launcher that adopts the process on the first GPU starts the next one on the second."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    sleeps = (
        "import os, sys, time; print(os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr, flush=True); time.sleep(60)"
    )
    one, two = (Job(name, (sys.executable, "-c", sleeps), tmp_path / f"{name}.txt") for name in ("one", "two"))
    first, later = (Local(Params(), Resources(jobs=2, device="cuda")) for _ in range(2))
    known = first.start(one)
    assert later.adopt(one, known)
    assert not later.adopt(one, known.replace(" 0 ", " 0 9", 1)), "another process has this pid"
    assert not later.adopt(one, f"{known}.elsewhere"), "another machine"
    assert not later.adopt(one, "no id")
    later.start(two)
    while not (one.log.read_text() and two.log.read_text()):
        time.sleep(0.02)
    assert (one.log.read_text(), two.log.read_text()) == ("3\n", "5\n")
    later.interrupt()
    ended: dict[str, Exit] = {}
    while len(ended) < 2:
        ended |= later.wait(10)
    assert ended == {"one": Exit(None), "two": Exit(-15)}
    assert first.wait(10) == {"one": Exit(-15)}


def test_the_id_of_a_process_may_hold_words_or_nonsense(monkeypatch, tmp_path):
    """The time of a start has words off Linux. A file that anyone may have written is no reason to fail."""
    monkeypatch.setattr(processes, "started", lambda pid: "Sun Nov 29 12:00:00 2026")
    job = Job("one", (sys.executable, "-c", "import time; time.sleep(60)"), tmp_path / "log.txt")
    first = Local(Params(), Resources())
    known = first.start(job)
    assert Local(Params(), Resources()).adopt(job, known)
    for damaged in (f"{'9' * 5000}{known}", known.replace(" 0 ", f" {'9' * 5000} ", 1)):
        assert not Local(Params(), Resources()).adopt(job, damaged)
    first.interrupt()
    assert first.wait(20)


def test_the_inline_launcher_writes_to_this_terminal_and_refuses_two_jobs_at_a_time(capfd, tmp_path):
    with pytest.raises(UsageError, match="one run at a time, not 2: use `--launcher local`"):
        Inline(Params(), Resources(jobs=2))
    launcher = Inline(Params(), Resources())
    launcher.start(Job("loud", (sys.executable, "-c", "raise SystemExit('heard here')"), tmp_path / "log.txt"))
    assert launcher.wait(60) == {"loud": Exit(1)}
    assert "heard here" in capfd.readouterr().err
    assert not (tmp_path / "log.txt").exists()


def test_an_unknown_launcher_is_refused_before_anything_runs(command, study, tmp_path):
    done = command("sweep", study, "--launcher", "locl", "--store", tmp_path / "runs")
    assert done.code == 2
    assert "unknown launcher 'locl'; did you mean 'local'?" in done.complaint


QUEUE = """
import subprocess
from robflat_bench.api import Launcher, LauncherInfo, Params, hookimpl

class QueueParams(Params):
    partition: str = "cpu"

@hookimpl
def robflat_bench_launchers():
    return [LauncherInfo("queue", "one at a time, to its end", "queue:Queue", QueueParams)]

class Queue(Launcher):
    def start(self, job):
        with job.log.open("w") as log:
            print("partition", self.params.partition, file=log, flush=True)
            self.ended = {job.name: subprocess.run(job.command, stderr=log, stdout=log).returncode}

    def wait(self, seconds):
        ended, self.ended = self.ended, {}
        return ended

    def interrupt(self):
        pass
"""


def test_a_strangers_launcher_runs_a_sweep(command, registry, study, tmp_path):
    study.write_text(ONE)
    (tmp_path / "queue.py").write_text(QUEUE)
    store, plugin = tmp_path / "runs", ["--plugin", tmp_path / "queue.py"]
    done = command("sweep", study, "--launcher", "queue(partition=gpu)", "--store", store, *plugin, "--json")
    assert done.code == 0, done.err
    (task,) = listed(registry, study, store)
    assert task.state() == "done"
    assert (task.folder.path / "log.txt").read_text().startswith("partition gpu\n")


# ---------------------------------------------------------------------------------------------------------
# Sweeps
# ---------------------------------------------------------------------------------------------------------


def test_a_plan_lists_runs_with_their_image_passes(command, registry, study, tmp_path):
    study.write_text(GOOD.replace('["at"]', '["at+awp"]'))
    done = command("sweep", study, "--seeds", 2, "--plan", "--store", tmp_path / "runs", "--json")
    assert done.code == 0
    rows = done.document["runs"]
    groups = ["good", "diverging", "not finite", "mistakes", "also good"]
    assert [(row["group"], row["seed"]) for row in rows] == [(group, seed) for seed in (1, 2) for group in groups]
    assert {row["state"] for row in rows} == {"new"}
    # 60 images, 2 epochs, 2 attack steps: AT-AWP is T+1 and T for the attack and twice 1 and 1 for the loss
    assert (rows[2]["forward"], rows[2]["backward"]) == (60 * 2 * 5, 60 * 2 * 4)
    study.write_text(GOOD.replace('["at"]', '["free-at(repeats=4)", "hat"]'))
    rows = command("sweep", study, "--plan", "--store", tmp_path / "runs", "--json").document["runs"]
    assert (rows[2]["forward"], rows[2]["backward"]) == (60 * 2 * 4, 60 * 2 * 4)
    # HAT: T+2 and T, then 4 (one of them the helper's) and 3; and 1 and 1 to train the helper
    assert (rows[3]["forward"], rows[3]["backward"]) == (60 * 2 * (8 + 1), 60 * 2 * (5 + 1))
    assert not (tmp_path / "runs").exists()


def test_a_plan_estimates_seconds_from_finished_runs(command, registry, study, finished_copy, tmp_path):
    """Training takes seconds per pass, an evaluation its mean seconds; two jobs halve the elapsed time."""
    study.write_text(ONE.replace('["standard"]', '["at", "trades"]'))
    plan = ["sweep", study, "--store", finished_copy.store, "--jobs", 2, "--plan"]
    document = command(*plan, "--json").document
    at, trades = document["runs"]
    assert (at["state"], at["skipped"], at["seconds"]) == ("done", "its record is there", None)
    budget = finished_copy.record["budget"]
    passes = trades["forward"] + trades["backward"]
    rate = (budget["seconds"] - budget["evaluation_seconds"]) / (budget["forward"] + budget["backward"])
    assert trades["seconds"] == pytest.approx(rate * passes + budget["evaluation_seconds"])
    assert document["estimate"] == {"runs": 1, "seconds": trades["seconds"], "elapsed": trades["seconds"] / 2}
    assert pace(Store(finished_copy.store), "0" * 64) is None, "runs under another protocol tell nothing"
    (unfinished,) = [task for task in listed(registry, study, finished_copy.store) if task.state() == "new"]
    unfinished.folder.checkpoints.mkdir(parents=True)
    train(unfinished, 1)
    left = command(*plan, "--json").document["runs"][1]
    assert left["seconds"] == pytest.approx(2.0 + budget["evaluation_seconds"]), (
        "its second epoch takes what the first took"
    )
    shown = command(*plan).out
    assert "unfinished, 1 epochs" in shown
    assert "estimated from 1 finished runs in this store" in shown


def test_an_evaluation_makes_the_passes_that_its_components_declare(registry, tiny, one_thread, tmp_path):
    """Attacks and measures of the tiny protocol on both checkpoints; clean images and flags are extra. Passes of images
    that rest are declared and not made."""
    protocol = load(registry, str(tiny))
    fixed, session = protocol.fixed, Session(registry, protocol, None, Store(tmp_path), "cpu")
    model = build_model(session, 1)
    counter = PassCounter(model)
    clean = flags = 0
    for checkpoint in ("best", "last"):
        plan, journal = Plan.of(fixed, checkpoint), StoredJournal(tmp_path / checkpoint)
        evaluate(session, plan, EvaluatedModel(model, checkpoint), journal)
        clean, flags = clean + 30 + 20, flags + min(MEMORY_BATCH, 30)
    selection = protocol.recipe.epochs * fixed.data.heldout.count
    forward, backward = passes_of_evaluation(registry, protocol)
    assert undeclared(registry, protocol) == []
    forward, backward = forward - selection * (3 + 2), backward - selection * 2
    assert 0.5 * forward < counter.forward - clean - 2 * flags <= forward
    assert 0.5 * backward < counter.backward - flags <= backward


@pytest.mark.parametrize("text", ["fgsm", "pgd(steps=3, restarts=2)", "autoattack(version=apgd)"])
def test_attacks_make_the_passes_they_declare(registry, tiny, one_thread, tmp_path, text):
    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path), "cpu")
    model = build_model(session, 1).eval()
    examples: Examples = session.examples("test")
    counter, attack = PassCounter(model), resolve(registry, "attack", text)
    declared = passes_of(attack)
    if declared is None:
        assert attack.name == "autoattack"
        return
    attack.build(Threat(0.1)).run(model, examples, Workspace())
    assert (counter.forward, counter.backward) == (30 * declared[0], 30 * declared[1])


def test_a_plan_names_variants_that_cannot_be_run(command, study, tmp_path):
    study.write_text(STUDY.replace('"recipe.epochs" = [1]', '"recipe.epochs" = [0]'))
    done = command("sweep", study, "--plan", "--store", tmp_path / "runs")
    assert done.code == 1
    assert "cannot run standard recipe.epochs=0" in done.err
    assert "unknown method 'nan'" in done.err
    assert "learning_rate=1e+30" in done.out


def test_a_failed_run_stops_no_other_run_and_is_listed(command, registry, study, tmp_path):
    """A diverging run, a loss that is not finite, an unknown parameter, a conflicting composition: one line each;
    the others complete; the exit code is 1."""
    store, plugin = tmp_path / "runs", tmp_path / "nan.py"
    done = command("sweep", study, "--store", store, "--plugin", plugin, "--jobs", 2, "--json")
    assert done.code == 1
    refused = {row["run"]: row["error"] for row in done.document["runs"] if row["state"] == "refused"}
    assert refused.keys() == {"trades(bta=1)", "at+awp+sam", "att"}
    assert "unknown key 'bta'; did you mean 'beta'?" in refused["trades(bta=1)"]
    assert "awp and sam both replace the backward of a training step" in refused["at+awp+sam"]
    rows = {row["group"]: row for row in done.document["runs"] if row["state"] != "refused"}
    assert {group: row["state"] for group, row in rows.items()} == {
        "good": "done",
        "diverging": "failed",
        "not finite": "failed",
        "also good": "done",
    }
    assert "the loss is nan at epoch 0, step 0" in rows["not finite"]["error"]
    assert re.search(r"loss .*is (nan|inf) .*\(learning rate 1e\+30\)", rows["diverging"]["error"])
    for row in rows.values():
        assert ("results" in row) == (row["state"] == "done")
    lines = done.err.splitlines()
    assert sum(line.startswith("robflat-bench: failed: ") for line in lines) == 2
    assert sum(line.startswith("robflat-bench: cannot run ") for line in lines) == 3
    assert lines[-1] == "robflat-bench: 5 of 7 runs are not done (listed above); --retry-failed tries failed runs again"

    record = RunFolder(Path(rows["good"]["folder"])).record()
    assert isinstance(record, RunRecord)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("record.json")}
    again = command("sweep", study, "--store", store, "--plugin", plugin)
    assert again.code == 1, "what failed before is not forgotten"
    assert {path: path.stat().st_mtime_ns for path in store.rglob("record.json")} == before, "finished runs are skipped"
    assert "best checkpoint" in again.out
    assert "last checkpoint" in again.out


def test_retry_failed_runs_failed_runs_again(command, registry, study, tmp_path):
    study.write_text(ONE)
    store = tmp_path / "runs"
    (task,) = listed(registry, study, store)
    task.folder.path.mkdir(parents=True)
    task.folder.failed_file.write_text(json.dumps({"key": task.spec.key, "error": "the disk\nwas full"}))
    assert task.error() == "the disk"
    assert Sweep(here(), refusing).run([task])[task.spec.key].what == "failed"
    plan = command("sweep", study, "--store", store, "--plan")
    assert "--retry-failed tries it again: the disk" in plan.out
    assert "1 runs (1 failed), 0 to make" in plan.out
    done = command("sweep", study, "--store", store, "--retry-failed", "--json")
    assert done.code == 0, done.err
    assert [row["state"] for row in done.document["runs"]] == ["done"]
    assert "[1/1] standard, seed 1: done" in done.err


def test_a_log_that_is_a_pipe_has_no_last_line(tmp_path):
    os.mkfifo(tmp_path / "log.txt")  # reading would wait for a writer
    assert last_line(tmp_path / "log.txt") == ""


def test_a_run_that_cannot_begin_is_a_failure_with_the_last_line_of_its_log(registry, study, tmp_path):
    study.write_text(ONE)
    (task,) = listed(registry, study, tmp_path / "runs")
    sweep = Sweep(here(), refusing)
    assert sweep.run([task])[task.spec.key].what == "failed"
    assert "exit code 2: robflat-bench: unknown method 'att'" in task.error()
    assert [event.what for event in sweep.events] == ["again", "failed"]


# ---------------------------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------------------------


def train(task, epochs: int) -> None:
    """Write the history of so many epochs, of two seconds each."""
    task.folder.path.mkdir(parents=True, exist_ok=True)
    (task.folder.path / "history.jsonl").write_text('{"seconds": 2.0}\n' * epochs)


@pytest.fixture
def stages(registry, study, tmp_path):
    """A sweep of four runs after each of three turns: they start, one has trained for an epoch, one is done."""
    study.write_text(GOOD)
    one, two, *rest = listed(registry, study, tmp_path / "runs")
    sweep = Sweep(here(2), refusing)
    sweep.standings = {two.spec.key: "queued (Priority)"}

    def play():
        sweep.waiting, sweep.running = [*rest[:2]], {one.spec.key: one, two.spec.key: two}
        sweep.events = [Event(rest[0], "busy", "process 7 is working on it")]
        yield sweep
        sweep.standings = {one.spec.key: "running", two.spec.key: "running"}
        train(one, 1)
        train(two, 2)
        sweep.estimates.look(one)
        sweep.estimates.look(two)
        yield sweep
        sweep.ended[one.spec.key] = Event(sweep.running.pop(one.spec.key), "failed", "diverged")
        sweep.events += sweep.ended.values()
        yield sweep

    return play


def test_progress_without_a_terminal_is_plain_lines(stages, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.SweepProgress(4, drawing=True) as shown:
        for sweep in stages():
            shown(sweep)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "at, seed 1: waiting for it: process 7 is working on it"
    assert (
        lines[1] == "1 running, 1 queued, 2 waiting; standard, seed 1: starting; "
        "standard [learning_rate=1e+30], seed 1: queued (Priority)"
    )
    assert re.fullmatch(r"2 running, 2 waiting, about \d+ \w+ left; .* epoch 2/2; .*: evaluation", lines[2])
    assert lines[3] == "[1/4] standard, seed 1: failed: diverged"
    assert re.fullmatch(r"1 failed, 1 running, 2 waiting, about \d+ \w+ left; .*: evaluation", lines[4])


def shown_on(terminal: int) -> str:
    """Everything written to the terminal until its other side is closed."""
    chunks = []
    with os.fdopen(terminal, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while chunk := screen.read(4096):
            chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.mark.parametrize("drawing", [True, False])
def test_progress_on_a_terminal(stages, monkeypatch, drawing):
    """Bars are drawn unless a run draws on the terminal itself."""
    monkeypatch.setenv("COLUMNS", "120")
    terminal, side = pty.openpty()
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(shown_on, terminal)
        with os.fdopen(side, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            with progress.SweepProgress(4, drawing=drawing) as shown:
                for sweep in stages():
                    shown(sweep)
        seen = reading.result()
    assert "at, seed 1: waiting for it: process 7 is working on it" in seen
    assert "[1/4] standard, seed 1: failed: diverged" in seen
    for text in (
        "1 failed, 1 running, 2 waiting, about",
        "[learning_rate=1e+30], seed 1: evaluation",
        "2/2",
        "1/4\x1b",
    ):
        assert (text in seen) == drawing


# ---------------------------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------------------------


def test_a_run_of_another_process_is_waited_for_and_then_made(registry, study, tmp_path):
    """The sweep starts it when its lock is free, after all other runs."""
    study.write_text(GOOD)
    one, two, *_ = listed(registry, study, tmp_path / "runs")
    with contextlib.ExitStack() as held:
        held.enter_context(one.folder.locked())
        sweep = Sweep(here(), refusing)
        sweep.watch = lambda sweep: held.close() if two.spec.key in sweep.ended else None
        sweep.run([one, two])
    told = [(event.task is one, event.what) for event in sweep.events]
    assert told == [(True, "busy"), (False, "again"), (False, "failed"), (True, "again"), (True, "failed")]
    assert f"process {os.getpid()}" in sweep.events[0].why


def test_a_run_that_another_process_finishes_is_done(registry, study, finished, tmp_path):
    study.write_text(ONE)
    (task,) = listed(registry, study, tmp_path / "runs")
    with contextlib.ExitStack() as held:
        held.enter_context(task.folder.locked())

        def finish(sweep) -> None:
            if [event.what for event in sweep.events] == ["busy"]:
                task.folder.record_file.write_bytes((finished.folder / "record.json").read_bytes())

        sweep = Sweep(here(), refusing, watch=finish)
        assert sweep.run([task])[task.spec.key].what == "done"
    assert [event.what for event in sweep.events] == ["busy", "done"]


def test_a_run_taken_by_another_process_meanwhile_is_no_failure(registry, study, tmp_path):
    """It ended without a record, and another process took its lock: the other process decides how it ends."""
    study.write_text(ONE)
    (task,) = listed(registry, study, tmp_path / "runs")
    with contextlib.ExitStack() as held:

        class Slow(Local):
            def wait(self, seconds):
                ended = super().wait(seconds)
                if ended and sweep._attempts[task.spec.key] == 2:
                    held.enter_context(task.folder.locked())
                return ended

        def look(sweep) -> None:
            if sweep.events and sweep.events[-1].what == "busy":
                assert not task.folder.failed_file.exists()
                sweep.stop()

        sweep = Sweep(Jobs(Slow(Params(), Resources()), "local"), refusing, watch=look)
        with pytest.raises(KeyboardInterrupt):
            sweep.run([task])
    assert [event.what for event in sweep.events] == ["again", "busy"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_sweep_saves_its_run_and_resumes(child_environment, study, tmp_path, number):
    """Stopped during training, the run saves its state, has not failed, and releases its lock."""
    study.write_text(ONE.replace("standard", "at"))
    protocol = tmp_path / "tiny.toml"
    protocol.write_text(protocol.read_text().replace("epochs = 2", "epochs = 100000"))
    store = tmp_path / "runs"
    arguments = [sys.executable, "-m", "robflat_bench", "sweep", str(study), "--store", str(store)]
    sweep = subprocess.Popen(arguments, env=child_environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("*/*/*/history.jsonl")):
        assert time.monotonic() < deadline, "training never began"
        assert sweep.poll() is None
        time.sleep(0.1)
    os.kill(sweep.pid, number)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + number
    assert "interrupted" in err
    (folder,) = store.glob("*/*/*")
    assert list(folder.glob("checkpoints/state-*.safetensors"))
    assert not (folder / "failed.json").exists()
    with RunFolder(folder).locked():
        pass


def test_a_stopped_sweep_forgets_no_failure_and_starts_nothing(registry, study, tmp_path):
    study.write_text(GOOD)
    one, two, *_ = listed(registry, study, tmp_path / "runs")
    for task in (one, two):
        task.folder.path.mkdir(parents=True)
        task.folder.failed_file.write_text(json.dumps({"key": task.spec.key, "error": "the disk was full"}))

    class Stopped(Local):
        def start(self, job):
            sweep.stop()
            return super().start(job)

    sweep = Sweep(Jobs(Stopped(Params(), Resources(jobs=2)), "local"), refusing, retry_failed=True)
    with pytest.raises(KeyboardInterrupt):
        sweep.run([one, two])
    assert [event.what for event in sweep.events] == ["interrupted"]
    assert two.error() == "the disk was full"
    assert not (two.folder.path / "log.txt").exists()


# ---------------------------------------------------------------------------------------------------------
# kill -9
# ---------------------------------------------------------------------------------------------------------


def runs_of(store: Path) -> list[int]:
    """Processes that are `robflat-bench run ... --store STORE`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"run" in words and str(store).encode() in words:
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(("kills", "ends"), [(1, "done"), (2, "interrupted")])
def test_a_killed_run_is_tried_once_more_and_is_no_failure(registry, study, tmp_path, kills, ends):
    study.write_text(ONE)
    store = tmp_path / "runs"
    (task,) = listed(registry, study, store)
    killed: set[int] = set()

    def kill(sweep) -> None:
        for pid in set(runs_of(store)) - killed:
            if len(killed) < kills:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    sweep = Sweep(here(), command_of(study, store), watch=kill)
    assert sweep.run([task])[task.spec.key].what == ends
    assert [(event.what, event.why) for event in sweep.events] == [
        ("again", "ended by SIGKILL"),
        ("done", "") if ends == "done" else ("interrupted", "ended by SIGKILL"),
    ]
    assert not task.folder.failed_file.exists()


def test_a_sweep_adopts_the_process_of_a_killed_one(child_environment, study, tmp_path):
    """The process goes on; the sweep that is typed again waits for it, starts none, and interrupts it on Ctrl-C."""
    study.write_text(ONE.replace("standard", "at"))
    protocol, store = tmp_path / "tiny.toml", tmp_path / "runs"
    protocol.write_text(protocol.read_text().replace("epochs = 2", "epochs = 100000"))
    arguments = [sys.executable, "-m", "robflat_bench", "sweep", str(study), "--store", str(store)]

    def begin() -> subprocess.Popen:
        return subprocess.Popen(arguments, env=child_environment(), stderr=subprocess.PIPE, text=True)

    with begin() as first:
        while not runs_of(store):
            time.sleep(0.02)
        (pid,) = runs_of(store)
        first.kill()  # before or after it has written the process's id
    with begin() as second:
        while not list(store.glob("*/*/*/history.jsonl")):
            assert runs_of(store) == [pid]
            time.sleep(0.1)
        while "its job was there already" not in second.stderr.readline():
            pass
        os.kill(second.pid, signal.SIGINT)
        second.communicate(timeout=60)
    assert second.returncode == 130
    assert not runs_of(store)
    assert list(store.glob("*/*/*/checkpoints/state-*.safetensors"))
    assert not list(store.glob("*/*/*/job.json"))


KILLED = """
name = "killed"
version = "1.0"
summary = "Seconds of everything that a kill can hit."
protocol = "tiny.toml"

[[groups]]
title = "all"
methods = ["at", "trades+ema"]
"""

# Saving after every step lets a kill land between any two of them.
OFTEN = "from robflat_bench.training import loop\nloop.SAVE_EVERY_SECONDS = 0.05\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny, child_environment):
    """The folder of a study, and `start(store, seeds)`, which begins a sweep of it."""
    folder = tmp_path_factory.mktemp("killed")
    protocol = tiny.read_text().replace("epochs = 2", "epochs = 30").replace("draws=2, steps=2", "draws=10, steps=9")
    (folder / "tiny.toml").write_text(protocol)
    (folder / "killed.toml").write_text(KILLED)
    (folder / "often.py").write_text(OFTEN)

    def start(store: Path, seeds: int) -> subprocess.Popen:
        words = ["sweep", "killed.toml", "--seeds", seeds, "--launcher", "local", "--jobs", 2]
        arguments = [*words, "--plugin", "often.py", "--store", store]
        with (folder / "sweep.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "robflat_bench", *map(str, arguments)],
                cwd=folder,
                env=child_environment(),
                stdout=log,
                stderr=log,
            )

    return folder, start


def board(store: Path) -> dict:
    """Every run's record without seconds, environment and provenance."""
    runs = Store(store).runs()
    assert not [run for run in runs if run.failed_file.exists()]
    return {run.path.name: promised(run.record().model_dump(mode="json")) for run in runs}


def kill_and_compare(undisturbed, seeds: int, kills: int, moments: random.Random) -> None:
    """Kill the sweep, or one of its runs, at random moments; start it again whenever it has ended; compare."""
    folder, start = undisturbed
    expected, store = folder / f"undisturbed-{seeds}", folder / f"killed-{seeds}-{kills}"
    began = time.monotonic()
    assert start(expected, seeds).wait(timeout=1000) == 0
    longest = 1.2 * (time.monotonic() - began) / (kills + 1)
    sweep, done = start(store, seeds), Counter()
    while done.total() < kills:
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert sweep.wait(timeout=moments.uniform(0, longest)) != 0, f"it was done after {done}"
        whom = moments.choice(["sweep", *runs_of(store)])
        with contextlib.suppress(ProcessLookupError):  # it may have been quicker than its killer
            os.kill(sweep.pid if whom == "sweep" else whom, signal.SIGKILL)
            done["sweep" if whom == "sweep" else "run"] += 1
        if whom == "sweep":
            sweep.wait()
        if sweep.poll() is not None:
            sweep = start(store, seeds)
    for _ in range(kills):
        if sweep.wait(timeout=1000) == 0:
            break
        sweep = start(store, seeds)
    assert sweep.returncode == 0
    assert not runs_of(store)
    assert board(store) == board(expected)
    print(f"{kills} kills, {dict(done)}, of {len(board(store))} runs")  # noqa: T201


def test_a_killed_sweep_ends_as_an_undisturbed_one(undisturbed):
    kill_and_compare(undisturbed, seeds=1, kills=2, moments=random.Random(1))


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_as_an_undisturbed_one(undisturbed):
    kill_and_compare(undisturbed, seeds=2, kills=10, moments=random.Random(2))
