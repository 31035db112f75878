"""The methods through the command line: true budgets, interruption, what goes together; a light import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from robflat_fastat import robflat_bench_methods
from robflat_fastat.guided import Guided

IMAGES = 60 * 3  # of the protocol's training split, times its epochs
PASSES = {"nuat": (4, 3), "gat": (4, 3), "zerograd": (2, 2), "nuat(ramp=0)+awp+label-smoothing": (6, 5)}


@pytest.mark.parametrize("method", PASSES)
def test_a_run_costs_what_is_declared(command, protocol, tmp_path, method):
    """An odd number of updates each epoch, guided and plain ones."""
    code, record = command("run", "--method", method, "--protocol", protocol, "--store", tmp_path / "runs", "--json")
    assert code == 0, record
    forward, backward = PASSES[method]
    assert record["budget"]["forward"] == IMAGES * forward
    assert record["budget"]["backward"] == IMAGES * backward


def test_declared_passes_are_those():
    """T, the recipe's attack steps, is in none."""
    for info in robflat_bench_methods():
        both = [int(info.attack.forward) + int(info.loss.forward), int(info.attack.backward) + int(info.loss.backward)]
        assert tuple(both) == PASSES[info.name]


def test_an_interrupted_run_continues_as_if_undisturbed(command, protocol, tmp_path, monkeypatch):
    def run(store: str):
        return command("run", "--method", "nuat", "--protocol", protocol, "--store", tmp_path / store, "--json")

    code, undisturbed = run("one")
    assert code == 0
    calls, loss = [], Guided.loss

    def interrupted(self, *given):
        calls.append(given)
        if len(calls) == 5:  # in the second epoch, after a guided step
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, *given)

    monkeypatch.setattr(Guided, "loss", interrupted)
    code, _ = run("two")
    assert (code, len(calls)) == (130, 5)
    code, resumed = run("two")
    assert (code, len(calls)) == (0, 9)
    for record in (undisturbed, resumed):
        for epoch in record["history"]:
            del epoch["seconds"]
    assert resumed["history"] == undisturbed["history"]
    assert resumed["results"]["last"]["robust_loss"] == undisturbed["results"]["last"]["robust_loss"]


@pytest.mark.parametrize("name", ["nuat", "gat", "zerograd"])
def test_a_modifier_of_the_recipes_attack_is_refused(command, name):
    code, complaint = command("run", "--method", f"{name}+pgd-tau", "--plan")
    assert code == 2
    assert f"{name} has its own attack, which pgd-tau would change" in complaint


def test_descriptions_do_not_import_torch():
    program = "import sys, robflat_fastat; robflat_fastat.robflat_bench_methods(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
