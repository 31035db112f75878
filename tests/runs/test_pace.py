"""How long runs take: estimates from finished and from running runs."""

from __future__ import annotations

import json
import os
import time

import pytest
from helpers.queue import World, three_tasks

from robflat_bench.records.record import Budget
from robflat_bench.runs.jobs import job_of
from robflat_bench.runs.pace import Estimates, Pace, pace_of
from robflat_bench.runs.tasks import Course, Task


@pytest.fixture
def wanted(registry, tiny, tmp_path) -> list[Task]:
    return three_tasks(registry, tiny, tmp_path)


def budget(seconds: float, evaluation: float, passes: int = 100, memory: int = 1) -> Budget:
    return Budget(forward=passes, backward=0, seconds=seconds, evaluation_seconds=evaluation, peak_memory_bytes=memory)


def trained(task: Task, *seconds: float) -> None:
    task.folder.path.mkdir(parents=True, exist_ok=True)
    task.folder.history_file.write_text("".join(f'{{"seconds": {epoch}}}\n' for epoch in seconds))


def finish(task: Task, record: dict, seconds: float, evaluation: float) -> None:
    budget = record["budget"] | {"seconds": seconds, "evaluation_seconds": evaluation}
    World([task], json.dumps(record | {"budget": budget}).encode()).finish(job_of(task, ()))


def test_a_pace_is_the_mean_of_finished_runs_and_their_largest_memory():
    assert pace_of([]) is None
    found = pace_of([budget(20.0, 10.0, passes=100, memory=7), budget(8.0, 2.0, passes=300, memory=9)])
    assert found == Pace(16.0 / 400, 6.0, 9, 2)


def test_a_run_goes_on_at_its_own_speed_as_soon_as_it_has_trained_for_an_epoch(wanted):
    task, pace = wanted[2], Pace(0.01, 5.0, start=8.0)
    whole = 0.01 * sum(task.training)
    assert pace.seconds(task, Course()) == pytest.approx(8.0 + whole + 5.0)
    assert pace.seconds(task, Course(1, 30.0)) == pytest.approx(2 * 30.0 + 5.0)
    assert pace.seconds(task, Course(3, 90.0, evaluated=4.0)) == pytest.approx(1.0)
    assert pace.seconds(task, Course(3, 90.0, evaluated=6.0)) == 0.0, "it takes longer than others did"


def test_the_start_of_a_process_counts_once_a_run_not_once_a_pass(wanted, finished):
    """Thirty runs of 0.5 s, whose processes take 8 s to start: after the first one, the rest takes 29 times 8.5 s."""
    first, second, third = wanted
    estimates = Estimates()
    assert estimates.left([first], [second], 1) is None, "nothing is known yet"
    finish(first, finished.record, seconds=0.5, evaluation=0.5)
    estimates.finished(first, 8.5)
    assert estimates.left([], [second] * 29, 1) == pytest.approx(29 * 8.5)
    assert estimates.left([], [second] * 29, 2) == pytest.approx(15 * 8.5), "the last one runs alone"
    trained(second, 0.001)
    estimates.look(second)
    assert estimates.left([second], [], 2) == pytest.approx(0.501), "it has started"
    assert estimates.seconds(third) == pytest.approx(8.5)


def test_a_process_that_did_a_part_of_a_run_tells_nothing_of_its_start(wanted, finished):
    finish(wanted[0], finished.record, seconds=10.0, evaluation=0.5)
    estimates = Estimates()
    estimates.finished(wanted[0], None)
    assert estimates.pace.start == 0.0
    estimates.finished(wanted[0], 4.0)  # it waited for a helper that another process had trained
    assert estimates.pace.start == 0.0


def test_own_runs_count_before_those_of_the_store(wanted, finished):
    before = Pace(1.0, 1000.0, runs=9)
    estimates = Estimates(before)
    assert estimates.pace == before
    finish(wanted[0], finished.record, seconds=3.0, evaluation=2.0)
    estimates.finished(wanted[0], None)
    assert (estimates.pace.evaluation, estimates.pace.runs) == (2.0, 1)


def test_epochs_of_running_runs_tell_the_speed_before_any_run_is_done(wanted):
    task, other, _ = wanted[1], wanted[0], wanted[2]
    estimates = Estimates()
    trained(task, 12.0)
    estimates.look(task)
    rate = 12.0 / (sum(task.training) / 2)
    assert estimates.seconds(other) == pytest.approx(rate * (sum(other.training) + sum(other.evaluation)))


def test_an_evaluation_that_runs_has_less_left_and_one_that_was_stopped_has_all(wanted):
    task, pace = wanted[0], Pace(0.01, 100.0)
    trained(task, 1.0)
    task.folder.checkpoints.mkdir()
    state = task.folder.checkpoints / "state-000000009.safetensors"
    state.touch()
    os.utime(state, (time.time() - 40.0, time.time() - 40.0))
    estimates = Estimates(pace)
    assert estimates.seconds(task) == pytest.approx(100.0)
    estimates.look(task)
    assert estimates.seconds(task) == pytest.approx(60.0, abs=5.0)
    estimates.stopped(task)
    assert estimates.seconds(task) == pytest.approx(100.0)


def test_a_damaged_history_is_no_progress(wanted):
    wanted[0].folder.path.mkdir(parents=True)
    for text in ("{}\n", "[1]\n", '{"seconds": "x"}\n', '{"seconds": [1]}\n', "\x00", "[" * 100_000):
        wanted[0].folder.history_file.write_text(text)
        assert wanted[0].course() == Course()
    for seconds in ("Infinity", "NaN", "-5", "1e308", "1" + 400 * "0"):
        wanted[0].folder.history_file.write_text(f'{{"seconds": {seconds}}}\n')
        assert wanted[0].course() == Course()
    wanted[0].folder.history_file.unlink()
    os.mkfifo(wanted[0].folder.history_file)  # reading would wait for a writer
    assert wanted[0].course() == Course()
