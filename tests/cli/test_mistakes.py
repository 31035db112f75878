"""Mistakes at the command line: each is answered in one line, before torch is imported, with the next thing to type."""

import json
import os
import resource
import shlex
import subprocess
import sys

import pytest

from robflat_bench.cli import cli
from robflat_bench.cli.advice import EXAMPLES, USUAL_WORDS

MISTAKES = [
    # What has no option before it, and what is missing
    ("run trades", 2, "stands alone", "`robflat-bench run --method trades`"),
    ("run 'trades(beta=3)' --seed 2", 2, "`robflat-bench run --method 'trades(beta=3)' --seed 2`"),
    ("run", 2, "run needs --method", "`robflat-bench run --method trades`"),
    ("run --method", 2, "requires an argument", "`robflat-bench run --method trades`"),
    ("info", 2, "info needs NAME", "`robflat-bench info trades`"),
    ("evaluate", 2, "evaluate needs MODEL", "`robflat-bench evaluate RUN --measure average-case`", "results ls"),
    ("sweep", 2, "sweep needs STUDY", "`robflat-bench sweep paper-digits --plan`"),
    ("results", 2, "needs a command: compare, correlate", "`robflat-bench results ls`"),
    ("results show", 2, "needs RUN", "`robflat-bench results show RUN`", "a key of `robflat-bench results ls`"),
    ("results compare", 2, "needs A", "`robflat-bench results compare trades at`"),
    ("results compare trades", 2, "needs B", "`robflat-bench results compare trades at`"),
    ("leaderboard", 2, "needs a command", "`robflat-bench leaderboard show`"),
    ("plugin", 2, "needs a command", "`robflat-bench plugin list`"),
    ("completion", 2, "{bash|zsh|fish}", "`robflat-bench completion bash`"),
    ("landscape", 2, "needs MODEL", "`robflat-bench landscape RUN`"),
    # Commands and options that do not exist
    ("train", 2, "'train' is not a command", "`robflat-bench run --method trades`"),
    ("attack", 2, "'attack' is not a command", "`robflat-bench evaluate RUN --attack pgd`"),
    ("measure x.pt", 2, "'measure' is not a command", "`robflat-bench evaluate RUN --measure average-case`"),
    ("methods", 2, "'methods' is not a command", "`robflat-bench list methods`"),
    ("bench", 2, "`robflat-bench run --method trades`"),
    ("show", 2, "`robflat-bench results ls`"),
    ("evalaute x.pt", 2, "did you mean `robflat-bench evaluate x.pt`?"),
    ("frobnicate", 2, "`robflat-bench --help`", "commands: completion, doctor, evaluate"),
    ("results shwo abc", 2, "did you mean `robflat-bench results show abc`?"),
    ("run --methods at --seed 2", 2, "did you mean `robflat-bench run --method at --seed 2`?"),
    ("run --methods=at", 2, "did you mean `robflat-bench run --method=at`?"),
    ("evaluate x.pt --epsilon 8/255", 2, "type `robflat-bench evaluate x.pt --set fixed.threat.epsilon=8/255`"),
    (
        "evaluate x.pt --eps=0.1 --attack pgd",
        2,
        "`robflat-bench evaluate x.pt --set fixed.threat.epsilon=0.1 --attack pgd`",
    ),
    ("evaluate x.pt --seed 3", 2, "type `robflat-bench evaluate x.pt --set fixed.seed=3`"),
    ("evaluate x.pt --gpu", 2, "type `robflat-bench evaluate x.pt --device cuda`"),
    ("evaluate x.pt --arch resnet18", 2, "type `robflat-bench evaluate x.pt --backbone resnet18`"),
    ("evaluate x.pt --normalize", 2, "see `robflat-bench evaluate --help`"),
    ("run --method at --epochs 3", 2, "type `robflat-bench run --method at --set recipe.epochs=3`"),
    ("run --method trades --beta 3", 2, "see `robflat-bench run --help`"),
    ("evaluate x.pt --mean 0.5 0.4 0.3 --std 1", 2, "type `robflat-bench evaluate x.pt --mean 0.5,0.4,0.3 --std 1`"),
    ("evaluate x.pt --model resnet18", 2, "it is a backbone; type --backbone resnet18"),
    ("evaluate x.pt --model net.Net", 2, "e.g. --model net:Net"),
    ("results ls extra", 2, "takes no 'extra'", "type `robflat-bench results ls`"),
    # Values
    ("run --method at --seed abc", 2, "'abc' is not a whole number", "`robflat-bench run --method at --seed 1`"),
    ("run --seed=abc --method at", 2, "`robflat-bench run --seed=1 --method at`"),
    ("run --method run --seed run", 2, "`robflat-bench run --method run --seed 1`"),
    ("run --method at --seed -1", 2, "-1 is not in the range", "`robflat-bench run --method at --seed 1`"),
    ("run --method at --device cdua", 2, "'cdua' is not one of", "`robflat-bench run --method at --device cuda`"),
    ("sweep paper-digits --seeds 0", 2, "`robflat-bench sweep paper-digits --seeds 1`"),
    ("list method", 2, "'method' is not one of", "`robflat-bench list methods`"),
    # Settings
    ("run --method at --set recipe.epochs 3", 2, "`robflat-bench run --method at --set recipe.epochs=3`"),
    ("run --method at --set 'recipe.epochs 3'", 2, "recipe.KEY=VALUE", "--set recipe.epochs=3"),
    ("run --method at --set epochs=3", 2, "recipe.KEY=VALUE", "--set recipe.epochs=3"),
    ("run --method at --set epoch=3", 2, "--set recipe.epochs=3"),
    ("run --method at --set nonsense", 2, "keys are epochs, batch_size, optimizer"),
    ("run --method at --set recipe.epoch=3", 2, "unknown key 'recipe.epoch'", "did you mean 'epochs'?"),
    ("run --method at --set recipe.zzzz=3", 2, "its keys are epochs, batch_size, optimizer"),
    # Names of components, and their parameters
    ("run --method AT", 2, "names are in lower case", "did you mean 'at'?"),
    ("run --method ''", 2, "e.g. 'trades(beta=6)'"),
    ("run --method pgd", 2, "it is an attack", "`robflat-bench evaluate RUN --attack pgd`"),
    ("run --method resnet18", 2, "it is a backbone", "`robflat-bench evaluate FILE --backbone resnet18`"),
    ("run --method at+average-case", 2, "it is a measure", "`robflat-bench evaluate RUN --measure average-case`"),
    ("run --method at --set fixed.backbone=trades", 2, "it is a method", "`robflat-bench run --method trades`"),
    ("sweep paper-digits --launcher awp", 2, "it is a modifier", "`robflat-bench run --method at+awp`"),
    ("run --method flatness", 2, "a family of measures", "average-case, worst-case"),
    ("info flatness", 2, "a family of measures", "average-case, worst-case"),
    ("info nothing", 2, "nothing is called 'nothing'", "`robflat-bench list`"),
    ("info trade", 2, "did you mean 'trades'?"),
    ("info method:digits-linf", 2, "no method is called 'digits-linf'; see"),
    ("info cifar10-mini@", 2, "unknown protocol", "type cifar10-mini for the version in force, or cifar10-mini@1.0"),
    ("info protocol:cifar10-mini@2.0", 2, "type cifar10-mini for the version in force, or cifar10-mini@1.0"),
    ("info cifar10-mni@1.0", 2, "did you mean 'cifar10-mini'?", "`robflat-bench list protocols`"),
    ("run --method at --protocol digits-linf@2.0", 2, "type digits-linf for the version in force"),
    ("run --method my-method", 2, "`robflat-bench list methods`", "your own method needs --plugin FILE.py"),
    ("run --method 'trades(6)'", 2, "a value needs its parameter's name", "'trades(beta=6)'", "parameters are beta"),
    ("run --method 'at+awp(0.01)'", 2, "'awp(gamma=0.01)'"),
    ("run --method 'trades(betta=6)'", 2, "did you mean 'beta'?"),
    ("run --method 'trades(qqqq=6)'", 2, "its keys are beta"),
    ("list measures 'x*'", 0, "no measures match 'x*'", "`robflat-bench list measures`"),
    # Files and places
    ("run --method at --plugin none.py", 2, "no such file"),
    ("run --method at --plugin broken.py", 4, "RuntimeError: not today (broken.py, line 3)", "plugin check broken.py"),
    ("list methods --plugin wrong.py", 4, "SyntaxError", "(wrong.py, line 2)", "plugin check wrong.py"),
    ("list methods --plugin rows.py", 4, "IndexError", "(rows.py, line 6)"),
    ("run --method at --protocol digit-linf", 2, "did you mean 'digits-linf'?"),
    ("run --method at --protocol nothing", 2, "`robflat-bench list protocols`"),
    ("run --method at --protocol none.toml", 2, "cannot be read", "give a TOML file"),
    ("run --method at --store broken.py", 2, "broken.py is not a folder", "--store DIR"),
    ("sweep paper-digits --store broken.py", 2, "broken.py is not a folder", "--store DIR"),
    ("run --method at --protocol cifar10-mini --data .", 2, "cifar-10-batches-py", "train-*.parquet", "--data DIR"),
    ("sweep mini-cifar10 --data .", 2, "cifar-10-batches-py", "--data DIR"),
    ("sweep nothing", 2, "unknown study 'nothing'", "paper-digits"),
    ("evaluate nothing.pt", 2, "nothing.pt"),
    ("evaluate nothing", 2, "is no run", "`robflat-bench results ls --store runs`"),
    ("evaluate 'timm(name=resnet18)' --measure flatness", 2, "a family of measures", "average-case, worst-case"),
    ("evaluate 'timm(name=resnet18)' --measure pgd", 2, "it is an attack", "`robflat-bench evaluate RUN --attack pgd`"),
    ("evaluate 'timm(name=resnet18)' --attack trades", 2, "it is a method", "`robflat-bench run --method trades`"),
    ("results show abc", 2, "is no run", "`robflat-bench results ls --store runs`"),
    ("results compare trades at", 2, "no finished run of 'trades'", "`robflat-bench run --method trades`"),
]
"""Command line, exit code, and words of the answer."""
FILES = {
    "broken.py": "import sys\n\nraise RuntimeError('not today')\n",
    "wrong.py": "x = 1\n1 +\n",
    "rows.py": "from robflat_bench.api import hookimpl\n\n\n@hookimpl\ndef robflat_bench_methods():\n    [][1]\n",
}
# One process for all of them, as in `test_light_imports`: the first that imports torch is named.
PROGRAM = """
import contextlib, io, json, os, shlex, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from robflat_bench.cli import main
answers = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["robflat-bench", *shlex.split(line)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    answers.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(answers))
"""


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_mistake_is_one_line_without_torch_that_ends_with_the_next_thing_to_type(child_environment, folder):
    environment = {**child_environment(), "HF_HUB_CACHE": str(folder / "hub")}
    asked = json.dumps([line for line, *_ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wrong = []
    for (line, code, *words), (found, out, err, torch) in zip(MISTAKES, json.loads(done.stdout), strict=True):
        plain = (found, out, len(err.splitlines()), torch) == (code, "", 1, False)
        if not plain or not err.startswith("robflat-bench: ") or not all(word in err for word in words):
            wrong.append((line, found, torch, out, err))
    assert not wrong


@pytest.mark.parametrize("line", ["run trades", "info nothing", "run --method pgd"])
def test_a_mistake_costs_less_than_a_second_of_the_processor(child_environment, tmp_path, line):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "robflat_bench", *shlex.split(line)],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 2, "a second on a quiet machine; a loaded one takes up to twice as long"


@pytest.fixture
def torchrun(monkeypatch):
    """`torchrun(rank)`: this process is one of two that torchrun has started."""

    def start(rank: int) -> None:
        found = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for name, value in found.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    "line", ["list methods", "evaluate --help", "sweep paper-digits --plan", "run --method at --plan"]
)
def test_torchrun_leaves_what_it_cannot_divide_to_its_first_process(command, torchrun, line):
    """The others end well: torchrun would end the first one, and print a traceback of its own, after a failure."""
    torchrun(1)
    other = command(*shlex.split(line))
    assert (other.code, other.out, other.err) == (0, "", "")
    torchrun(0)
    first = command(*shlex.split(line))
    assert first.code == 0
    assert first.out
    said = "torchrun divides a `run` only, so one process does this; without torchrun, type"
    assert first.err.splitlines()[0] == f"robflat-bench: {said} robflat-bench {line}"
    assert "TORCHELASTIC_RUN_ID" not in os.environ, "a run that it starts is not divided either"


@pytest.mark.parametrize("line", ["run trades", "run --method nothing", "sweep"])
def test_of_the_processes_of_torchrun_one_on_each_machine_answers_a_mistake(command, torchrun, line):
    torchrun(0)
    assert command(*shlex.split(line)).code == 2
    torchrun(1)
    done = command(*shlex.split(line))
    assert (done.code, done.out, done.err) == (2 if line.startswith("run") else 0, "", "")


def test_an_empty_list_stays_a_list_in_json(command):
    done = command("list", "measures", "x*", "--json")
    assert (done.code, done.document) == (0, [])
    assert "no measures match 'x*'" in done.err


def test_list_alone_counts_the_entries_of_every_kind(command):
    rows = command("list", "--json").document
    assert [row["kind"] for row in rows][:3] == ["methods", "modifiers", "attacks"]
    for row in rows:
        assert row["entries"] == len(command("list", row["kind"], "--json").document)
    assert "`robflat-bench list methods`" in command("list").out


@pytest.mark.parametrize("line", sorted({*EXAMPLES.values(), *USUAL_WORDS.values()}))
def test_every_line_that_an_answer_proposes_is_one_that_click_reads(line):
    words = shlex.split(line)
    command, context = cli, None
    while hasattr(command, "commands"):
        context = command.make_context(words[0], words, parent=context, resilient_parsing=True)
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
    command.make_context(name, words, parent=context)


def test_every_command_that_needs_something_has_an_example():
    def needy(command, path):
        for name, inner in getattr(command, "commands", {}).items():
            yield from needy(inner, f"{path} {name}".strip())
        if path and (hasattr(command, "commands") or any(param.required for param in command.params)):
            yield path

    assert set(needy(cli, "")) <= EXAMPLES.keys()


def test_a_broken_plugin_that_is_installed_stays_a_note(site, command):
    site.install("aaa-broken", {"aaa_broken.py": "raise RuntimeError('not today')"})
    done = command("list", "methods")
    assert done.code == 0
    assert "plugin aaa-broken 1.0 (aaa_broken) is broken: RuntimeError: not today;" in done.err
