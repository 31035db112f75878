"""Signals that ask a process to end: which are answered, when, and what a command and a call make of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from robflat_bench.core import signals
from robflat_bench.core.signals import ENDINGS, IN_CALLS, Interrupted
from robflat_bench.front.progress import Progress


@pytest.fixture(autouse=True)
def _as_in_a_new_process():
    """Every signal has its usual handler, before and after."""
    usual = dict.fromkeys(ENDINGS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    assert {number: signal.getsignal(number) for number in ENDINGS} == usual
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("block", "number"),
    [
        *((signals.interruptible_command, number) for number in ENDINGS),
        *((signals.interruptible, number) for number in IN_CALLS),
    ],
)
def test_a_signal_interrupts_and_says_which_it_was(block, number):
    with signals.interruptible_command(), pytest.raises(Interrupted) as caught, block():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert signals.ending_of(caught.value).exit_code in (128 + number, 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGALRM])
def test_a_call_leaves_the_other_signals_to_the_process(number):
    with signals.interruptible():
        assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("block", [signals.interruptible, signals.interruptible_command, signals.uninterrupted])
def test_an_ignored_signal_stays_ignored(block):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with block():
        signal.raise_signal(signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) == signal.SIG_IGN


@pytest.mark.parametrize("number", IN_CALLS)
def test_a_handler_of_the_users_own_is_called_and_stays(number):
    seen = []
    handler = lambda number, frame: seen.append(number)  # noqa: E731
    before = signal.signal(number, handler)
    with signals.interruptible(), signals.answered(lambda number: pytest.fail("the user's handler was replaced")):
        signal.raise_signal(number)
    assert seen == [number]
    assert signal.signal(number, before) == handler


def test_no_other_thread_sets_handlers():
    def work():
        with signals.interruptible(), signals.answered(print), signals.uninterrupted():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize("fails", [False, True])
def test_every_signal_waits_for_the_end_of_an_uninterrupted_block(number, fails):
    ended = []

    def work():
        with signals.uninterrupted():
            signal.raise_signal(number)
            ended.append(True)
            if fails:
                raise ValueError

    with signals.interruptible_command(), pytest.raises(Interrupted) as caught:
        work()
    assert ended
    assert caught.value.number == number


def test_an_answer_gets_each_signal_but_no_repetition(monkeypatch):
    seen = []
    with signals.interruptible_command(), signals.answered(seen.append):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert seen == [signal.SIGTERM]
        time.sleep(1.5 * signals.REPEATED_SECONDS)
        signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM] * 2


CALL = """
import signal
import torch
import robflat_bench as rb

class Net(torch.nn.Linear):
    def forward(self, x):
        signal.raise_signal(signal.SIGTERM)
        return super().forward(x.flatten(1))

try:
    rb.attack(Net(4, 2), torch.rand(3, 1, 2, 2), torch.zeros(3).long(), "fgsm", epsilon=0.1, progress=False)
finally:
    print("went on")
"""


def test_sigterm_in_a_call_ends_the_process_as_it_would_without_and_leaves_nothing(child_environment, tmp_path):
    environment = child_environment() | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, ""), done.stderr
    assert list(tmp_path.iterdir()) == []


IMPORTED = """
import signal, sys

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "rich_click":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Slow())
from robflat_bench.__main__ import main
main()
"""


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(child_environment):
    program = [sys.executable, "-c", IMPORTED, "list", "methods"]
    done = subprocess.run(program, env=child_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "robflat-bench: interrupted; run the same command again, it resumes\n"


# ---------------------------------------------------------------------------------------------------------
# --stop-after
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("55m", 3300), ("2h", 7200), ("1h30m", 5400), ("1h1m1s", 3661), ("90", 90)]
)
def test_a_duration_sets_the_alarm(command, tmp_path, monkeypatch, text, seconds):
    began, left = time.monotonic(), []
    monkeypatch.setattr(signals, "_BEGAN", began)
    monkeypatch.setattr(
        "robflat_bench.cli.output.registry", lambda: left.append(signal.getitimer(signal.ITIMER_REAL)[0])
    )
    with pytest.raises(AttributeError):
        command("run", "--method", "at", "--stop-after", text)
    assert (
        seconds - signals.LEAVING_SECONDS - (time.monotonic() - began) <= left[0] <= seconds - signals.LEAVING_SECONDS
    )
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "1.5h", "1h30", "30m1h", "5 m", "m", "soon", "9" * 7])
@pytest.mark.parametrize("words", [("run", "--method", "at"), ("evaluate", "net.pt"), ("experiment", "landscape", "a")])
def test_what_is_no_duration_is_refused(command, words, text):
    done = command(*words, "--stop-after", text)
    assert done.code == 2
    assert f"{text!r} is no duration; write 90s, 55m, 2h, 1h30m or a number of seconds" in done.complaint


@pytest.mark.parametrize("text", ["1", "5s", "29s"])
@pytest.mark.parametrize("words", [("run", "--method", "at"), ("evaluate", "net.pt"), ("experiment", "landscape", "a")])
def test_a_time_that_is_too_short_for_any_work_is_refused_before_it(command, words, text):
    done = command(*words, "--stop-after", text)
    assert done.code == 2
    assert f"{text!r} leaves no time for work" in done.complaint
    assert "5 s are kept for its end; give 30s or more" in done.complaint
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_time_slice_ends_with_code_0_and_is_saved(command, tiny, tmp_path, monkeypatch):
    """The alarm comes at once, since more time than there is left is reserved after the first epoch."""
    real = Progress.epoch_ends
    monkeypatch.setattr(Progress, "epoch_ends", lambda *given: real(*given) or signals.reserve(1e6))
    monkeypatch.setattr(signals, "_BEGAN", time.monotonic())
    options = ["--method", "at", "--protocol", tiny, "--set", "recipe.epochs=100000", "--store", tmp_path, "--json"]
    done = command("run", *options, "--stop-after", "2h")
    assert (done.code, done.out) == (0, "")
    last = done.err.splitlines()[-1]
    assert last == "robflat-bench: stopped after the time of --stop-after; run the same command again, it resumes"
    assert list(tmp_path.rglob("state-*.safetensors"))


def test_the_time_of_a_save_is_reserved_until_the_alarm_has_come():
    def left() -> float:
        return signal.getitimer(signal.ITIMER_REAL)[0]

    came: list[int] = []
    with signals.interruptible_command(), signals.answered(came.append):
        signals.reserve(5.0)
        assert left() == 0, "no time was set"
        with signals.stopping_after(time.monotonic() - signals._BEGAN + 100):
            signals.reserve(5.0)
            assert 85 < left() <= 95 - signals.LEAVING_SECONDS
            signals.reserve(100.0)
            time.sleep(0.1)
            assert came == [signal.SIGALRM]
            signals.reserve(100.0)
            assert left() == 0, "a second alarm would end the save"
