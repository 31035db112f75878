"""`evaluate` of a checkpoint trained elsewhere, and the mistakes that it answers before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.networks import NET

from robflat_bench.registry.files import load_file

FGSM = ("--attack", "fgsm", "--measure", "margin(coupling=clean)", "--examples", "20")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a network's code and its weights, as a training program leaves them."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = load_file(Path("net.py")).Net(width=2)
    content = {"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}, "epoch": 9}
    torch.save(content, "ckpt.pth.tar")
    return tmp_path


def test_a_checkpoint_from_elsewhere_is_evaluated_and_every_assumption_is_said(place, command, tiny):
    arguments = ["evaluate", "ckpt.pth.tar", "--model", "net.py:Net", "--model-args", "width=2"]
    done = command(*arguments, "--protocol", tiny, *FGSM)
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.startswith("robflat-bench: ")] == [
        "robflat-bench: ckpt.pth.tar: tensors of 'state_dict'",
        "robflat-bench: the network is net.py:Net(width=2)",
        "robflat-bench: names are read without their prefix 'module.'",
        "robflat-bench: no normalisation: images in [0,1] go in as they are; --mean and --std put one in front",
    ]
    assert "ckpt  |  tiny" in done.out
    front = command(*arguments, "--mean", "0.3", "--std", "75/255", "--protocol", tiny, *FGSM, "--json")
    assert front.code == 0, front.err
    assert "images are normalised: mean 0.3, std 0.294118" in front.document["provenance"]["notes"]


def test_examples_alone_cut_the_protocols_plan(finished_copy, command, tiny):
    common = ["evaluate", finished_copy.key, "--protocol", tiny, "--store", finished_copy.store, "--json"]
    done = command(*common, "--examples", "10")
    assert done.code == 0, done.err
    (result,) = done.document["results"].values()
    expected = finished_copy.record["results"]["last"]
    assert result["robust_error"].keys() == expected["robust_error"].keys()
    assert {found["n"] for found in result["measures"].values()} == {10}
    assert result["measures"].keys() == expected["measures"].keys()
    (folder,) = (finished_copy.folder / "evaluations").glob("*.json")
    assert json.loads(folder.read_text())["key"] == done.document["key"]


def test_a_figure_of_a_checkpoint_from_elsewhere(place, command, tiny):
    arguments = ["ckpt.pth.tar", "--model", "net.py:Net", "--model-args", "width=2", "--protocol", tiny]
    done = command("experiment", "landscape(points=3, directions=2, examples=10)", *arguments, "--json")
    assert done.code == 0, done.err
    (entry,) = done.document["readings"]
    assert entry["model"]["label"] == "ckpt"
    assert "robflat-bench: the network is net.py:Net(width=2)" in done.err.splitlines()
    Path("net.py").write_text(NET.replace("relu()", "tanh()"))
    other = command("experiment", "landscape(points=3, directions=2, examples=10)", *arguments, "--json")
    assert other.document["readings"] != done.document["readings"]


# ---------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "nothing.pt": "nothing.pt: no such file; `robflat-bench results ls`",
    "ckpt.pth.ta": "no file of weights (.safetensors",
    "ckpt.pt.tar": "did you mean 'ckpt.pth.tar'?",
    "net.py": "`evaluate WEIGHTS.pt --model net.py:Net`",
    "folder": "name the weights in it, e.g. `evaluate folder/w.pt`",
    "notes.txt": "no file of weights",
    "net.onnx": "torch.save(model.state_dict()",
    "script.pt": "is TorchScript",
    "page.pth": "is a web page",
    "resnet18": "`evaluate WEIGHTS.pt --backbone resnet18`",
    "nosuchrun": "see `robflat-bench results ls",
    "resnet9(width=4)": "did you mean 'resnet8'?",
    "ckpt.pth.tar --model net.py": "e.g. --model net.py:Net",
    "ckpt.pth.tar --model net.py:": "e.g. --model net.py:Net",
    "ckpt.pth.tar --model :": "e.g. --model net.py:Net",
    "ckpt.pth.tar --model net.py:Nett": "did you mean 'Net'?",
    "ckpt.pth.tar --model surely.py:Net": "surely.py cannot be read",
    "ckpt.pth.tar --model broken.py:Net": "broken.py is not Python (line 2:",
    "ckpt.pth.tar --model surely_none.net:Net": "no module 'surely_none'",
    "ckpt.pth.tar --model net.py:Net --backbone resnet18": "leave one out",
    "ckpt.pth.tar --model net.py:Net --model-args depth": "write NAME=VALUE",
    "ckpt.pth.tar --model net.py:Net --model-args a=1 --model-args a=2": "given twice",
    "ckpt.pth.tar --model-args a=1": "add --model net.py:Net",
    "ckpt.pth.tar --backbone resnt18": "did you mean 'resnet18'?",
    "ckpt.pth.tar --mean 0.5": "add --std",
    "ckpt.pth.tar --std 0.5": "add --mean",
    "ckpt.pth.tar --mean a,b --std 1": "e.g. --mean 0.4914,0.4822,0.4465",
    "ckpt.pth.tar --mean 125.3 --std 63": "as 125.3/255",
    "ckpt.pth.tar --mean 0.5 --std 0": "--std: 0 is out of range",
    "nosuchrun --mean 0.5 --std 0.5": "leave --mean out",
    "ckpt.pth.tar --measure flatnes*": "see `robflat-bench list measures`",
    "ckpt.pth.tar --attack pdg": "did you mean 'pgd'?",
    "ckpt.pth.tar --examples 99999": "test examples; ask for fewer",
}


@pytest.fixture
def mistaken(place) -> Path:
    for name, text in {
        "notes.txt": "hello",
        "net.onnx": "hello",
        "page.pth": "<html>",
        "broken.py": "x = 1\ndef f(:\n",
    }.items():
        Path(name).write_text(text)
    Path("folder").mkdir()
    Path("folder/w.pt").write_text("hello")
    with zipfile.ZipFile("script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", "")
    return place


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_that_ends_with_the_next_thing_to_type(arguments, mistaken, command, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("robflat_bench.evaluation.model.find_model", refuse)
    done = command("evaluate", *arguments.split())
    assert done.code in (2, 3)
    assert MISTAKES[arguments] in done.complaint


ALL_AT_ONCE = """
import sys, json
from robflat_bench.cli import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(["evaluate", *arguments.split()], standalone_mode=False)
    except Exception as error:
        print(type(error).__name__)
    assert "torch" not in sys.modules, arguments
"""


def test_mistakes_are_answered_without_torch(mistaken, child_environment):
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE, json.dumps([*MISTAKES])],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.split()) == {"UsageError"}
    assert time.perf_counter() - began < 10
