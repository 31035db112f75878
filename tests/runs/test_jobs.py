"""Jobs that outlive their sweep: kept ids, adoption, time slices, cancelling. `helpers.queue` runs no process; the last
tests start one on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import click
import pytest
from helpers.queue import Killed, Queue, Queued, World, three_tasks

from robflat_bench.cli import sweep as command_line
from robflat_bench.core import Exit, Interrupted, Job, Params, Resources, UsageError
from robflat_bench.launchers.local import Local
from robflat_bench.runs.jobs import CANCELLED, Jobs, attach, cancel, job_of, kept
from robflat_bench.runs.sweep import Sweep
from robflat_bench.runs.tasks import Task


@pytest.fixture
def wanted(registry, tiny, tmp_path) -> list[Task]:
    return three_tasks(registry, tiny, tmp_path)


@pytest.fixture
def world(wanted, finished) -> World:
    return World(wanted, (finished.folder / "record.json").read_bytes())


def sweep_of(queue: Queue, slots: int = 2, kind: type[Queued] = Queued, **more) -> Sweep:
    return Sweep(queue.jobs(slots, kind), lambda task: [task.variant.method], **more)


def told(sweep: Sweep, task: Task) -> list[str]:
    return [event.what for event in sweep.events if event.task is task]


def killed_after(turns: int):
    """A `watch` that ends the sweep at its n-th turn, as SIGKILL would."""
    seen = iter(range(turns))

    def watch(sweep: Sweep) -> None:
        if next(seen, None) is None:
            raise Killed

    return watch


# ---------------------------------------------------------------------------------------------------------
# A killed sweep is typed again
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stands", ["queued (Priority)", "running"])
def test_a_sweep_adopts_the_jobs_of_a_killed_one_and_submits_none_twice(wanted, world, stands):
    queue = Queue(lambda job, attempt: stands)
    with pytest.raises(Killed):
        sweep_of(queue, watch=killed_after(1)).run(wanted)
    assert len(queue.submitted) == 2
    assert kept(wanted[0].folder).id == "1"

    queue.does = lambda job, attempt: world.finish(job)
    again = sweep_of(queue)
    ended = again.run(wanted)
    assert {event.what for event in ended.values()} == {"done"}
    assert len(queue.submitted) == len({*queue.submitted}) == 3
    assert [told(again, task) for task in wanted] == [["adopted", "done"], ["adopted", "done"], ["done"]]
    assert not [task for task in wanted if kept(task.folder)]


class DiesAfterSubmission(Queued):
    def start(self, job):
        super().start(job)
        raise Killed


class DiesBeforeSubmission(Queued):
    def start(self, job):
        raise Killed


@pytest.mark.parametrize("kind", [DiesAfterSubmission, DiesBeforeSubmission])
def test_a_kill_around_the_submission_makes_no_second_job(wanted, world, kind):
    """The id was not kept; the job is found by its name, or was never submitted."""
    queue = Queue(lambda job, attempt: "running")
    with pytest.raises(Killed):
        sweep_of(queue, kind=kind).run(wanted)
    assert kept(wanted[0].folder).id == ""
    queue.does = lambda job, attempt: world.finish(job)
    assert {event.what for event in sweep_of(queue).run(wanted).values()} == {"done"}
    assert sorted(queue.submitted) == sorted(world.folders)


def test_a_job_that_ended_unseen_is_no_obstacle(wanted, world):
    queue = Queue(lambda job, attempt: "running")
    with pytest.raises(Killed):
        sweep_of(queue, watch=killed_after(1)).run(wanted)
    queue.unended.clear()  # killed, and forgotten by the scheduler
    queue.does = lambda job, attempt: world.finish(job)
    again = sweep_of(queue)
    assert {event.what for event in again.run(wanted).values()} == {"done"}
    assert told(again, wanted[0]) == ["done"]


def test_a_damaged_file_of_a_job_is_no_job(wanted):
    file = wanted[0].folder.path / "job.json"
    file.parent.mkdir(parents=True)
    for text in ("", "{}", '{"launcher": 1, "id": "1"}', '{"launcher": "queue", "id": "1", "more": 1}', "[" * 10_000):
        file.write_text(text)
        assert kept(wanted[0].folder) is None


def test_the_job_of_a_waiting_run_is_built_when_the_sweep_begins_and_when_the_run_does(wanted, world):
    built: list[str] = []
    queue = Queue(lambda job, attempt: world.finish(job))
    Sweep(queue.jobs(1), lambda task: built.append(task.spec.key) or [task.variant.method]).run(wanted)
    assert [built.count(task.spec.key) for task in wanted] == [2, 2, 2]


def test_more_jobs_than_slots_are_all_adopted(wanted, world):
    queue = Queue(lambda job, attempt: "running")
    with pytest.raises(Killed):
        sweep_of(queue, slots=3, watch=killed_after(1)).run(wanted)
    queue.does = lambda job, attempt: world.finish(job)
    again = sweep_of(queue, slots=1)
    again.run(wanted)
    assert [told(again, task) for task in wanted] == [["adopted", "done"]] * 3


# ---------------------------------------------------------------------------------------------------------
# Two sweeps
# ---------------------------------------------------------------------------------------------------------


def test_a_second_sweep_waits_for_the_jobs_of_the_first(wanted, world):
    queue = Queue(lambda job, attempt: "running")
    second = sweep_of(queue, slots=3)

    def watch(first: Sweep) -> None:
        if not second.ended:
            queue.does = lambda job, attempt: world.finish(job)
            second.run(wanted)

    first = sweep_of(queue, slots=3, watch=watch)
    assert {event.what for event in first.run(wanted).values()} == {"done"}
    assert [told(second, task) for task in wanted] == [["adopted", "done"]] * 3
    assert len(queue.submitted) == 3


def test_a_run_that_another_sweep_has_just_claimed_is_left_to_it(wanted, world):
    """The other sweep starts it between this one's look at the folder and its claim."""
    queue = Queue(lambda job, attempt: world.finish(job))
    other = queue.jobs()

    class Late(Queued):
        pass

    sweep = sweep_of(queue, kind=Late)
    claim = sweep.jobs.claim

    def overtaken(task, job):
        if not queue.submitted:
            other.claim(task, job)
            other.start(task, job)
        claim(task, job)

    sweep.jobs.claim = overtaken
    assert {event.what for event in sweep.run(wanted).values()} == {"done"}
    assert told(sweep, wanted[0]) == ["busy", "adopted", "done"]
    assert len(queue.submitted) == 3


# ---------------------------------------------------------------------------------------------------------
# Ends of jobs that are no ends of runs
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit", [Exit(0), Exit(None), Exit(None, "time limit"), Exit(-15, "preempted")])
def test_a_run_is_continued_as_long_as_it_advances(wanted, world, exit):
    def slices(job, attempt):
        world.save(job, attempt)
        return world.finish(job) if attempt == 6 else exit

    queue = Queue(slices)
    sweep = sweep_of(queue)
    assert {event.what for event in sweep.run(wanted).values()} == {"done"}
    assert len(queue.submitted) == 18
    assert set(told(sweep, wanted[0])) == {"continued", "done"}


@pytest.mark.parametrize(
    ("exit", "end"),
    [(Exit(0), "failed"), (Exit(None, "time limit"), "interrupted"), (Exit(None), "interrupted"), (Exit(3), "failed")],
)
def test_a_run_that_does_not_advance_is_tried_once_more(wanted, exit, end):
    queue = Queue(lambda job, attempt: exit)
    sweep = sweep_of(queue)
    sweep.run(wanted)
    assert [told(sweep, task) for task in wanted] == [["again", end]] * 3
    assert len(queue.submitted) == 6


def test_a_failing_run_is_not_continued_although_it_advances(wanted, world):
    def fails(job, attempt):
        world.save(job, attempt)
        return Exit(3)

    sweep = sweep_of(Queue(fails))
    sweep.run(wanted)
    assert told(sweep, wanted[0]) == ["again", "failed"]


def test_units_of_evaluation_count_as_an_advance(wanted, world):
    def evaluates(job, attempt):
        work = world.folders[job.name].work / "section"
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{attempt}.npz").touch()
        return world.finish(job) if attempt == 4 else Exit(0)

    sweep = sweep_of(Queue(evaluates))
    assert {event.what for event in sweep.run(wanted).values()} == {"done"}


# ---------------------------------------------------------------------------------------------------------
# Ctrl-C and --cancel
# ---------------------------------------------------------------------------------------------------------


def stopped_at(turn: int):
    seen = iter(range(turn))

    def watch(sweep: Sweep) -> None:
        if next(seen, None) is None and not sweep.stopped_by:
            sweep.stop(15)

    return watch


def test_a_signal_leaves_the_jobs_of_a_detached_launcher(wanted, world):
    queue = Queue(lambda job, attempt: "running")
    sweep = sweep_of(queue, watch=stopped_at(1))
    with pytest.raises(Interrupted) as raised:
        sweep.run(wanted)
    assert (sweep.stopped_by, raised.value.args or raised.value.number) in [(15, (15,)), (15, 15)]
    assert (queue.interrupts, len(queue.unended), [*sweep.running.values()]) == (0, 2, wanted[:2])
    queue.does = lambda job, attempt: world.finish(job)
    again = sweep_of(queue)
    again.run(wanted)
    assert told(again, wanted[0]) == ["adopted", "done"]


class Attached(Queued):
    detached = False


def test_a_signal_interrupts_the_jobs_of_other_launchers(wanted):
    queue = Queue(lambda job, attempt: Exit(130) if queue.interrupts else "running")
    sweep = sweep_of(queue, kind=Attached, watch=stopped_at(1))
    with pytest.raises(Interrupted):
        sweep.run(wanted)
    assert queue.interrupts == 1
    assert [told(sweep, task) for task in wanted] == [["interrupted"], ["interrupted"], []]
    assert not kept(wanted[0].folder)


def attached(queue: Queue, wanted: list[Task], registry, monkeypatch, but: str = ""):
    """What another process finds, in which `queue` is a launcher's name."""

    class Component:
        def build(self, resources):
            return Queued(queue, resources.jobs)

    monkeypatch.setattr("robflat_bench.runs.jobs.resolve", lambda registry, kind, text: Component())
    return attach(registry, wanted, lambda task: job_of(task, ()), Resources(), but)


@pytest.mark.parametrize("kind", [Queued, Attached])
def test_cancelling_ends_the_jobs_and_the_sweep_that_waits_for_them(wanted, registry, monkeypatch, kind):
    """The waiting sweep starts nothing again, and sends no second signal: it would end runs before they have saved."""
    queue = Queue(lambda job, attempt: Exit(130) if queue.interrupts else "running")

    def cancelled(sweep: Sweep) -> None:
        if not queue.interrupts:
            (jobs,) = attached(queue, wanted, registry, monkeypatch)
            jobs.cancel()

    sweep = sweep_of(queue, kind=kind, watch=cancelled)
    with pytest.raises(Interrupted):
        sweep.run(wanted)
    assert {event.why for event in sweep.ended.values()} == {CANCELLED}
    assert (len(queue.submitted), queue.interrupts) == (2, 1)


def test_cancelling_after_the_sweep_has_ended(wanted, world, registry, monkeypatch):
    queue = Queue(lambda job, attempt: Exit(130) if queue.interrupts else "queued")
    with pytest.raises(Killed):
        sweep_of(queue, watch=killed_after(1)).run(wanted)
    found = attached(queue, wanted, registry, monkeypatch)
    assert [*map(id, cancel(found))] == [*map(id, wanted[:2])]
    assert not attached(queue, wanted, registry, monkeypatch)
    queue.does = lambda job, attempt: world.finish(job)
    assert {event.what for event in sweep_of(queue).run(wanted).values()} == {"done"}


def test_a_sweep_that_is_typed_while_a_cancelled_run_still_saves_goes_on_with_it(wanted, world, registry, monkeypatch):
    queue = Queue(lambda job, attempt: "running")
    with pytest.raises(Killed):
        sweep_of(queue, watch=killed_after(1)).run(wanted)
    (jobs,) = attached(queue, wanted, registry, monkeypatch)
    jobs.cancel()
    queue.does = lambda job, attempt: world.finish(job) if attempt == 2 else Exit(130)
    again = sweep_of(queue)
    assert {event.what for event in again.run(wanted).values()} == {"done"}
    assert told(again, wanted[0]) == ["adopted", "again", "done"]


def test_jobs_of_a_launcher_that_is_not_installed_are_named_with_their_file(wanted, registry):
    file = wanted[0].folder.path / "job.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"launcher": "nowhere", "id": "1", "cancelled": False}))
    with pytest.raises(UsageError, match="may wait or run: launcher nowhere is not installed") as raised:
        attach(registry, wanted, lambda task: job_of(task, ()), Resources())
    assert str(file) in str(raised.value)
    assert not attach(registry, wanted, lambda task: job_of(task, ()), Resources(), but="nowhere")
    wanted[0].folder.record_file.touch()
    assert not attach(registry, wanted, lambda task: job_of(task, ()), Resources()), "its run is done"


@pytest.mark.parametrize(
    ("package", "way"),
    [
        ("", ""),
        ("robflat-cluster", " (pip install robflat-cluster)"),
        ("niced.py", " (add --plugin niced.py)"),
        ("--index-url=http://a b; rm", ""),
    ],
)
def test_a_launcher_that_is_not_installed_costs_its_own_row_only(command, wanted, sleeping, tmp_path, package, way):
    """`--status` and `--cancel` go on with the other runs; the sweep itself is refused: it might start a run twice."""
    lost, running, new = wanted[0], wanted[1], wanted[2]
    lost.folder.path.mkdir(parents=True)
    document = {"launcher": "slurm(partition=a)", "package": package, "id": "1", "cancelled": False}
    (lost.folder.path / "job.json").write_text(json.dumps(document))
    line = ["sweep", tmp_path / "three.toml", "--store", tmp_path / "runs"]
    shown = command(*line, "--status", "--json")
    rows = {row["key"]: row for row in shown.document["runs"]}
    assert (shown.code, shown.err) == (0, "")
    assert [rows[task.spec.key]["state"] for task in (lost, running, new)] == ["unknown", "running", "new"]
    assert rows[lost.spec.key]["job"] == f"launcher slurm is not installed{way}"
    assert command(*line).code == 2
    ended = command(*line, "--cancel", "--json")
    assert ended.code == 0
    assert [row["key"] for row in ended.document["runs"]] == [running.spec.key]
    assert f"{lost.title}: launcher slurm is not installed{way}, so a job of it" in ended.err


def test_a_job_keeps_the_package_of_its_launcher(wanted):
    jobs = Jobs(Queued(Queue(lambda job, attempt: "running"), 1), "queue", "some-package")
    job = job_of(wanted[0], ())
    wanted[0].folder.path.mkdir(parents=True)
    jobs.find(wanted[0], job)
    jobs.claim(wanted[0], job)
    jobs.start(wanted[0], job)
    assert kept(wanted[0].folder).package == "some-package"


# ---------------------------------------------------------------------------------------------------------
# What a shared file system and a scheduler feel
# ---------------------------------------------------------------------------------------------------------


def test_waiting_runs_are_not_looked_at_every_turn(wanted, monkeypatch):
    looks: list[Task] = []
    state = Task.state
    monkeypatch.setattr(Task, "state", lambda task: looks.append(task) or state(task))
    sweep = sweep_of(Queue(lambda job, attempt: "running"), slots=1, watch=stopped_at(50))
    with pytest.raises(Interrupted):
        sweep.run(wanted)
    assert len(looks) == 3 + 1, "each at first, and the one that is started just before its start"


def test_a_job_has_one_name_in_every_process_and_another_in_every_store(wanted, tmp_path, monkeypatch):
    name = job_of(wanted[0], ()).name
    assert name.startswith(f"{wanted[0].spec.key}-")
    assert name.replace("-", "").isalnum()
    monkeypatch.chdir(tmp_path)
    relative = Task(**{**vars(wanted[0]), "folder": type(wanted[0].folder)(Path("runs") / wanted[0].spec.folder)})
    elsewhere = Task(**{**vars(wanted[0]), "folder": type(wanted[0].folder)(tmp_path / "b" / wanted[0].spec.folder)})
    assert job_of(relative, ()).name == name != job_of(elsewhere, ()).name


# ---------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def left(wanted):
    """A sweep that was interrupted while two of its jobs were in a queue."""
    queue = Queue(lambda job, attempt: Exit(130) if queue.interrupts else "queued")
    sweep = sweep_of(queue, watch=stopped_at(1))
    with pytest.raises(Interrupted):
        sweep.run(wanted)
    return sweep


def answered(monkeypatch, answer) -> list[str]:
    """A terminal at which a person gives this answer; the questions."""
    questions = []

    def confirm(question, **_):
        questions.append(question)
        return answer()

    monkeypatch.setattr(command_line.output.click, "confirm", confirm)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "argv", ["robflat-bench", "sweep", "three.toml", "--launcher", "slurm(time='1:00:00')"])
    return questions


def abort():
    raise click.Abort


LEFT = """robflat-bench: 2 jobs are left queued or running. Where they stand: \
robflat-bench sweep three.toml --launcher 'slurm(time='"'"'1:00:00'"'"')' --status; to end them: \
robflat-bench sweep three.toml --launcher 'slurm(time='"'"'1:00:00'"'"')' --cancel
"""


@pytest.mark.parametrize("answer", [lambda: True, abort], ids=["leave", "Ctrl-C again"])
def test_ctrl_c_at_a_terminal_asks_and_leaves_the_jobs(left, monkeypatch, capsys, answer):
    left._stops = [2]
    questions = answered(monkeypatch, answer)
    command_line._leave(left)
    assert questions == ["2 jobs are queued or running. Leave them there?"]
    assert capsys.readouterr().err == LEFT
    assert left.jobs.launcher.queue.interrupts == 0


def test_ctrl_c_at_a_terminal_cancels_if_the_user_says_so(left, monkeypatch, capsys):
    left._stops = [2]
    answered(monkeypatch, lambda: False)
    command_line._leave(left)
    assert "standard [epochs=1], seed 1: ended, new" in capsys.readouterr().err
    assert not left.jobs.unended


def test_other_signals_leave_the_jobs_without_a_question(left, monkeypatch, capsys):
    questions = answered(monkeypatch, abort)
    command_line._leave(left)
    assert (questions, capsys.readouterr().err) == ([], LEFT)


SLEEPS = "import sys, time; print('epoch 1/1: loss \x1b[2J', file=sys.stderr, flush=True); time.sleep(60)"


@pytest.fixture
def sleeping(wanted):
    """A process of this machine as the job of the second run, whose sweep is gone."""
    task = wanted[1]
    jobs = Jobs(Local(Params(), Resources()), "local")
    task.folder.checkpoints.mkdir(parents=True)
    job = Job(job_of(task, ()).name, (sys.executable, "-c", SLEEPS), task.folder.log_file)
    jobs.find(task, job)
    jobs.claim(task, job)
    jobs.start(task, job)
    task.folder.history_file.write_text('{"seconds": 60.0}\n')
    while not task.folder.log_file.read_text():
        pass
    yield jobs
    jobs.launcher.interrupt()
    with contextlib.suppress(KeyError):
        jobs.launcher.wait(20)


def test_status_says_where_each_run_stands(command, wanted, world, sleeping, tmp_path):
    done, running, _ = wanted
    line = ["sweep", tmp_path / "three.toml", "--store", tmp_path / "runs", "--status"]
    done.folder.path.mkdir(parents=True)
    world.finish(job_of(done, ()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shown = command(*line, "--json")
    assert (shown.code, shown.err) == (0, "")
    rows = {row["key"]: row for row in shown.document["runs"]}
    assert [rows[task.spec.key]["state"] for task in wanted] == ["done", "running", "new"]
    row = rows[running.spec.key]
    assert (row["job"], row["epoch"], row["epochs"], row["log"]) == ("running", 1, 2, "epoch 1/1: loss \x1b[2J")
    assert row["seconds"] > 60, "its second epoch and its evaluation"
    text = command(*line).out
    assert "epoch 2/2" in text
    assert "\x1b" not in text
    assert "1 done, 1 running, 1 new" in text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_launcher_is_refused_while_jobs_run(command, sleeping, tmp_path):
    refused = command("sweep", tmp_path / "three.toml", "--store", tmp_path / "runs", "--launcher", "inline")
    assert refused.code == 2
    assert (
        "1 job is unended at the launcher local, which an earlier sweep used. To go on there, type --launcher local"
        in refused.complaint
    )
    assert refused.complaint.endswith("--launcher inline --cancel")


def test_cancel_ends_the_jobs_of_a_sweep_that_is_gone(command, wanted, sleeping, tmp_path):
    line = ["sweep", tmp_path / "three.toml", "--store", tmp_path / "runs", "--cancel", "--json"]
    ended = command(*line)
    assert ended.code == 0
    assert [(row["key"], row["state"]) for row in ended.document["runs"]] == [(wanted[1].spec.key, "unfinished")]
    assert "1 job is told to save and end" in ended.err
    assert command(*line).document["runs"] == []
    assert command(*line[:-1]).out == "no job of this study waits or runs\n"


def test_only_one_option_replaces_the_sweep(command, tmp_path):
    assert "type one of them" in command("sweep", "paper-digits", "--plan", "--status").complaint


def test_a_run_without_a_job_is_seen_by_its_lease(command, wanted, tmp_path):
    """Typed by hand, say; `--cancel` names who works on it, for it can end it nowhere."""
    line = ["sweep", tmp_path / "three.toml", "--store", tmp_path / "runs"]
    one, *_ = wanted
    with one.folder.locked():
        rows = command(*line, "--status", "--json").document["runs"]
        left = command(*line, "--cancel").err
    assert [row["state"] for row in rows] == ["running", "new", "new"]
    assert rows[0]["job"].startswith(f"process {os.getpid()} on ")
    assert f"{one.title}: process {os.getpid()} on " in left
    assert "works on this run and is no job that --cancel can end; end that process itself" in left
    assert command(*line, "--status", "--json").document["runs"][0]["state"] == "new"
