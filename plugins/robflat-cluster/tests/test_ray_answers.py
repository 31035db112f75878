"""The launcher over a stand-in of Ray's dashboard: what a real Ray rarely says, and what it is asked."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from jobs_server import JobsServer, jobs_server
from one_machine import until

from robflat_bench.api import Exit, Job, Resources, UsageError
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover
from robflat_cluster.ray import Ray, RayParams

JOB = Job("a", ("true",), Path("log.txt"))
FIRST, SECOND = "robflat-a-1", "robflat-a-2"
TIMED_OUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"


def ray(server: JobsServer, device: str = "cpu", **params: object) -> Ray:
    return Ray(RayParams(address=server.address, **params), Resources(1, 2, device))


def submitted(server: JobsServer) -> list[str]:
    return [body["submission_id"] for body in server.bodies]


# ---------------------------------------------------------------------------------------------------------
# How jobs end
# ---------------------------------------------------------------------------------------------------------

RACE = {
    "error_type": "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    "message": "Traceback (most recent call last):\n  File ...\npsutil.NoSuchProcess: process PID not found (pid=7)\n",
}
"""What Ray says of a job that ended while it was being stopped."""

DIED = {"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "Job supervisor actor died: its node has died.\nmore"}


@pytest.mark.parametrize(
    ("status", "values", "expected"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0}, Exit(0)),
        ("FAILED", {"driver_exit_code": 3, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, Exit(3)),
        ("FAILED", {"driver_exit_code": -9, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, Exit(-9)),
        ("STOPPED", {}, Exit(None, "stopped")),
        ("FAILED", DIED, Exit(None, "node lost: Job supervisor actor died: its node has died.")),
        (
            "FAILED",
            RACE,
            Exit(None, "ended while Ray started or stopped it: psutil.NoSuchProcess: process PID not found (pid=7)"),
        ),
        ("FAILED", {"error_type": "NEW_KIND", "message": "so"}, Exit(None, "failed: so")),
        ("FAILED", {}, Exit(None, "failed: Ray does not say why")),
        ("FAILED", {"message": "\n\n"}, Exit(None, "failed: Ray does not say why")),
    ],
)
def test_every_end_has_its_code_and_cause(server, status, values, expected):
    launcher = ray(server)
    assert launcher.start(JOB) == FIRST
    server.job(FIRST, status, **values)
    assert launcher.wait(5) == {"a": expected}
    assert launcher.standings() == {}


def test_a_job_that_waits_or_runs_is_unended(server):
    launcher = ray(server)
    launcher.start(JOB)
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": "queued"}
    server.job(FIRST, "RUNNING", driver_agent_http_address="http://10.0.0.7:52365")
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": "running (on 10.0.0.7)"}


def test_a_job_that_ray_has_forgotten_has_ended_and_nobody_saw_how(server):
    launcher = ray(server)
    launcher.start(JOB)
    server.jobs.clear()
    assert launcher.wait(5) == {"a": Exit(None)}


def test_a_job_that_waited_longer_than_ray_lets_it_is_submitted_again(server):
    launcher = ray(server)
    launcher.start(JOB)
    server.job(FIRST, "FAILED", error_type=TIMED_OUT)
    until(lambda: launcher.wait(0) or SECOND in server.jobs)
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": "queued"}
    server.job(SECOND, "SUCCEEDED", driver_exit_code=0)
    assert launcher.wait(5) == {"a": Exit(0)}
    assert submitted(server) == [FIRST, SECOND]


def test_an_interrupt_submits_no_job_again_that_waited_too_long(server):
    launcher = ray(server)
    launcher.start(JOB)
    server.job(FIRST, "FAILED", error_type=TIMED_OUT)
    launcher.interrupt()
    assert launcher.wait(5) == {"a": Exit(None, "cancelled")}
    assert submitted(server) == [FIRST]


@pytest.mark.parametrize("error", [(503, "starting"), (200, "<html>"), (200, "[{}]"), (404, "nothing here")])
def test_no_answer_ends_no_job(server, error):
    launcher = ray(server)
    launcher.start(JOB)
    server.job(FIRST, "RUNNING")
    launcher.wait(0.5)
    server.errors["GET"] = error
    assert launcher.wait(0.5) == {}
    assert launcher.standings()["a"].startswith("running; Ray does not answer: ")
    server.errors.clear()
    server.job(FIRST, "SUCCEEDED")
    assert launcher.wait(5) == {"a": Exit(0)}


# ---------------------------------------------------------------------------------------------------------
# Ids
# ---------------------------------------------------------------------------------------------------------


def test_each_start_of_a_run_has_the_next_number(server):
    for number in range(1, 12):
        launcher = ray(server)
        assert launcher.start(JOB) == f"robflat-a-{number}"
        server.job(f"robflat-a-{number}", "STOPPED")
        assert launcher.wait(5) == {"a": Exit(None, "stopped")}
    server.job("robflat-a-1-99", "STOPPED")  # the run "a-1"
    server.job("robflat-a-x", "STOPPED")
    assert ray(server).start(JOB) == "robflat-a-12"


def test_two_sweeps_that_start_the_same_run_start_one_job(server):
    first, second = ray(server), ray(server)
    first.wait(0), second.look()
    assert first.start(JOB) == second.start(JOB) == FIRST
    assert submitted(server) == [FIRST, FIRST]
    assert [*server.jobs] == [FIRST]
    server.job(FIRST, "SUCCEEDED")
    assert first.wait(5) == second.wait(5) == {"a": Exit(0)}


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED"])
def test_a_submission_without_an_answer_that_succeeded_is_not_repeated(server, status):
    launcher = ray(server)
    launcher.look()
    server.loses_answers = True
    assert launcher.start(JOB) == ""
    assert launcher.standings()["a"].startswith("queued (Ray has not taken it: ")
    server.loses_answers = False
    server.job(FIRST, status)
    ended = status == "SUCCEEDED"
    assert launcher.wait(5 if ended else 0.5) == ({"a": Exit(0)} if ended else {})
    assert submitted(server) == [FIRST]


def test_a_job_that_ray_cannot_take_yet_is_submitted_later_under_the_same_id(server):
    launcher = ray(server)
    server.errors["POST"] = 500, "No available agent to submit job, please try again later."
    assert launcher.start(JOB) == ""
    until(lambda: launcher.wait(0) or server.asked.count("POST /api/jobs/") > 2)
    assert "try again later" in launcher.standings()["a"]
    server.errors.clear()
    until(lambda: launcher.wait(0) or FIRST in server.jobs)
    assert submitted(server) == [FIRST]


@pytest.mark.parametrize("known", [FIRST, ""])
def test_a_later_launcher_adopts_the_unended_job_of_a_run(server, known):
    server.job(FIRST, "RUNNING")
    launcher = ray(server)
    assert launcher.adopt(JOB, known)
    server.job(FIRST, "FAILED", driver_exit_code=3)
    assert launcher.wait(5) == {"a": Exit(3)}
    assert submitted(server) == []


@pytest.mark.parametrize("known", [FIRST, ""])
def test_ended_jobs_and_jobs_of_others_are_not_adopted(server, known):
    server.job(FIRST, "SUCCEEDED")
    server.job("robflat-a-1-1", "RUNNING")
    server.job("robflat-aa-1", "RUNNING")
    assert not ray(server).adopt(JOB, known)
    del server.jobs[FIRST]
    assert not ray(server).adopt(JOB, known)


@pytest.mark.parametrize("known", [FIRST, ""])
def test_without_an_answer_nothing_is_started_twice(server, known):
    launcher = ray(server)
    server.errors["GET"] = 503, "starting"
    assert launcher.adopt(JOB, known)
    assert launcher.wait(0.5) == {}
    server.errors.clear()
    server.job(FIRST, "RUNNING")
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": "running"}
    assert submitted(server) == []


# ---------------------------------------------------------------------------------------------------------
# Interrupts
# ---------------------------------------------------------------------------------------------------------


def test_each_job_is_stopped_once_and_again_if_ray_did_not_reach_it(server):
    def stops() -> int:
        return server.asked.count(f"STOP /api/jobs/{FIRST}/stop")

    launcher = ray(server)
    launcher.start(JOB)
    server.errors["STOP"] = 200, '{"stopped": false}'
    launcher.interrupt()
    until(lambda: launcher.wait(0) or stops() > 1)
    server.errors["STOP"] = 503, "busy"
    until(lambda: launcher.wait(0) or stops() > 2)
    server.errors.clear()
    before = stops()
    until(lambda: launcher.wait(0) or stops() > before)
    launcher.wait(1.5)
    assert stops() == before + 1


# ---------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------


def test_one_look_serves_all_jobs_and_comes_no_more_often_than_its_pace(server, monkeypatch):
    monkeypatch.setattr(Ray, "pace", 1.0)
    jobs = [Job(f"j{number}", ("true",), Path("log.txt")) for number in range(40)]
    for job in jobs:
        server.job(f"robflat-{job.name}-1", "RUNNING")
    launcher = ray(server)
    launcher.look()
    assert all(launcher.adopt(job, "") for job in jobs)
    began = time.monotonic()
    while time.monotonic() < began + 3.5:
        assert launcher.wait(0.05) == {}
    assert 3 <= server.asked.count("GET /api/jobs/") <= 5


@pytest.mark.parametrize(
    ("device", "params", "needs", "expected"),
    [
        ("cpu", {}, {}, {"num_cpus": 2, "num_gpus": 0}),
        ("cuda", {}, {}, {"num_cpus": 2, "num_gpus": 1}),
        ("cuda", {"gpus": 0}, {}, {"num_cpus": 2, "num_gpus": 0}),
        ("cpu", {"gpus": 2, "memory": "3G"}, {"memory": 2**40}, {"num_cpus": 2, "num_gpus": 2, "memory": 3 * 2**30}),
        ("cpu", {}, {"memory": 2**20}, {"num_cpus": 2, "num_gpus": 0, "memory": 2**31}),
        ("cpu", {}, {"memory": 2**32}, {"num_cpus": 2, "num_gpus": 0, "memory": 3 * 2**31}),
    ],
)
def test_resources_are_the_users_or_follow_from_the_expected_need(server, device, params, needs, expected):
    ray(server, device, **params).start(Job("a", ("true",), Path("log.txt"), **needs))
    (body,) = server.bodies
    prefix = "entrypoint_"
    assert {name.removeprefix(prefix): body[name] for name in body if name.startswith(prefix)} == expected


def test_the_entrypoint_ends_in_one_exec_with_each_argument_as_it_is(server, tmp_path, monkeypatch):
    folder = tmp_path / "a 'b' $HOME"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ROBFLAT_BENCH_DATA", "/data here")
    odd = ("python", "$HOME `id` \"x\" 'y'", "two\nlines", "; exit 9")
    ray(server).start(Job("a", odd, Path("log.txt")))
    (body,) = server.bodies
    words = shlex.split(body["entrypoint"])
    assert words == ["cd", str(folder), "&&", "exec", *odd, "</dev/null", ">/dev/null", f"2>>{folder / 'log.txt'}"]
    variables = {"ROBFLAT_BENCH_DATA": "/data here", "OMP_NUM_THREADS": "2", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert variables.items() <= body["runtime_env"]["env_vars"].items()
    assert "PATH" not in body["runtime_env"]["env_vars"]


def test_headers_of_rays_own_variable_reach_the_address_and_no_other(server, monkeypatch):
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Authorization": "Bearer secret"}')
    with jobs_server() as other:
        ray(server).start(JOB)
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
        server.errors["GET"] = 302, f"{other.address}/api/jobs/"
        with pytest.raises(UsageError, match="HTTP 302"):
            ray(server).start(JOB)
        assert other.asked == []


# ---------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------


def test_a_wrong_address_is_one_line_that_says_what_to_type():
    launcher = Ray(RayParams(address="http://127.0.0.1:9"), Resources())
    with pytest.raises(
        UsageError, match=r"Ray does not answer at http://127.0.0.1:9: .*refused.*ray\(address='http://"
    ):
        launcher.start(JOB)
    assert launcher.wait(0.2) == {}


def test_something_else_than_ray_at_the_address_is_one_line(server):
    server.errors["GET"] = 200, "<html>Jupyter</html>"
    with pytest.raises(UsageError, match="is no list of jobs, so it is not from Ray's dashboard"):
        ray(server).start(JOB)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_what_ray_refuses_is_one_line(server, status):
    server.errors["POST"] = status, "Traceback (most recent call last):\nValueError: not so\n"
    with pytest.raises(UsageError, match=f"refuses the job: HTTP {status}: ValueError: not so; see "):
        ray(server).start(JOB)


def test_the_address_is_rays_own_variable_where_none_is_given(server, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"{server.address}/")
    Ray(RayParams(), Resources()).start(JOB)
    assert [*server.jobs] == [FIRST]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "auto")
    with pytest.raises(UsageError, match="RAY_API_SERVER_ADDRESS is 'auto', which is no address"):
        Ray(RayParams(), Resources())


@pytest.mark.parametrize("text", ["token", '{"a": 1}', "[]"])
def test_headers_that_cannot_be_read_are_not_shown(monkeypatch, text):
    monkeypatch.setenv("RAY_JOB_HEADERS", text)
    with pytest.raises(UsageError) as refused:
        Ray(RayParams(), Resources())
    assert "RAY_JOB_HEADERS is no JSON object" in str(refused.value)
    assert text not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ray(address='head:8265')", "'address' = 'head:8265'"),
        ("ray(address='ray://head:10001')", "'address' = "),
        ("ray(address='http://me:secret@head:8265')", "'address' = "),
        ("ray(memory='16')", "'memory' = '16'"),
        ("ray(gpus=-1)", "'gpus' = -1"),
    ],
)
def test_bad_parameters_are_one_line(text, problem):
    with pytest.raises(UsageError) as refused:
        resolve(discover(), "launcher", text)
    assert problem in str(refused.value)
