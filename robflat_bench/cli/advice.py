"""The answer to a command line that click refuses: one line, whose end is the next line to type."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from typing import Any

import rich_click as click

from robflat_bench.front.kinds import KINDS

PROGRAM = "robflat-bench"
EXAMPLES = {
    "run": "run --method trades",
    "sweep": "sweep paper-digits --plan",
    "evaluate": "evaluate RUN --measure average-case",
    "experiment": "experiment landscape RUN",
    "landscape": "landscape RUN",
    "list": "list methods",
    "info": "info trades",
    "completion": "completion bash",
    "results": "results ls",
    "results show": "results show RUN",
    "results compare": "results compare trades at",
    "results push": "results push RUN hf://OWNER/NAME",
    "leaderboard": "leaderboard show",
    "leaderboard submit": "leaderboard submit RUN",
    "leaderboard verify": "leaderboard verify RUN",
    "plugin": "plugin list",
    "plugin new": "plugin new robflat-my-at",
    "plugin check": "plugin check FILE.py",
}
"""Command -> an example of it, in which RUN is a key of `results ls`."""
USUAL_WORDS = {
    **dict.fromkeys(("train", "fit", "start", "resume", "bench", "benchmark"), EXAMPLES["run"]),
    **dict.fromkeys(("measure", "eval", "test", "score"), EXAMPLES["evaluate"]),
    **dict.fromkeys(("attack", "pgd", "autoattack"), "evaluate RUN --attack pgd"),
    **dict.fromkeys(("show", "ls", "runs", "export", "prune"), EXAMPLES["results"]),
    **dict.fromkeys(("compare", "diff"), EXAMPLES["results compare"]),
    **dict.fromkeys(("board", "rank", "ranking", "submit", "serve"), EXAMPLES["leaderboard"]),
    **dict.fromkeys(("describe", "explain"), EXAMPLES["info"]),
    **dict.fromkeys(("components", "search"), EXAMPLES["list"]),
    **{kind: f"list {kind}" for kind in KINDS},
    **dict.fromkeys(("study", "grid"), EXAMPLES["sweep"]),
    **dict.fromkeys(("plugins", "check", "install"), EXAMPLES["plugin"]),
    **dict.fromkeys(("plot", "surface"), EXAMPLES["landscape"]),
}
"""A word that other programs use -> the line that does it here."""

USUAL_OPTIONS = {
    **dict.fromkeys(("--epsilon", "--eps"), ("--set", "fixed.threat.epsilon={}")),
    "--seed": ("--set", "fixed.seed={}"),
    **dict.fromkeys(("--epochs", "--n-epochs"), ("--set", "recipe.epochs={}")),
    **dict.fromkeys(("--batch-size", "--bs"), ("--set", "recipe.batch_size={}")),
    **dict.fromkeys(("--lr", "--learning-rate"), ("--set", "recipe.learning_rate={}")),
    **dict.fromkeys(("--gpu", "--cuda"), ("--device", "cuda")),
    "--cpu": ("--device", "cpu"),
    **dict.fromkeys(("--arch", "--architecture"), ("--backbone", "{}")),
    **dict.fromkeys(("--n-examples", "--num-examples", "--limit"), ("--examples", "{}")),
}
"""An option that other programs have -> the words that do it here, with its value at {}."""


def answer(error: click.ClickException, words: Sequence[str]) -> str:
    """What is wrong with a command line, and the next line to type.

    Parameters
    ----------
    error : ClickException
        Why click refused it.
    words : sequence of str
        The command line, without the program.
    """
    context = getattr(error, "ctx", None)
    if context is None:
        path = next((path for count in (2, 1) if (path := " ".join(words[:count])) in EXAMPLES), "")
        message = error.format_message()
        return f"{message.rstrip('.')}; {_example(path)}" if isinstance(error, click.UsageError) else message
    path = context.command_path.removeprefix(PROGRAM).strip()
    rest = words[len(path.split()) :]
    if (word := getattr(error, "command_name", None)) is not None:
        return _unknown_command(context, path, word, words)
    if isinstance(error, click.NoSuchOption):
        known = [flag for param in context.command.get_params(context) for flag in param.opts if flag.startswith("--")]
        return f"{context.command_path} has no option '{error.option_name}'" + _option(
            path, error.option_name, known, words
        )
    if isinstance(error, click.MissingParameter):
        return _missing(context, path, error.param, rest)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_value(context, path, error, words, rest)
    if isinstance(context.command, click.Group) and not rest:
        return f"{path} needs a command: {', '.join(context.command.list_commands(context))}; {_example(path)}"
    extra = _parsed(context, rest)[1]
    return _extra(path, extra[0], words) if extra else f"{error.format_message().rstrip('.')}; {_example(path)}"


def _unknown_command(context: click.Context, path: str, word: str, words: Sequence[str]) -> str:
    group = context.command
    assert isinstance(group, click.Group)
    known = group.list_commands(context)
    problem = f"'{f'{path} {word}'.strip()}' is not a command"
    if not path and word in USUAL_WORDS:
        return f"{problem}; type e.g. {_line(USUAL_WORDS[word].split())}{_keys(USUAL_WORDS[word])}"
    return problem + _instead(path, word, known, words) + f" (commands: {', '.join(known)})"


def _missing(context: click.Context, path: str, param: click.Parameter | None, rest: Sequence[str]) -> str:
    if param is None:
        return f"{path} lacks a value; {_example(path)}"
    if not isinstance(param, click.Option):
        return f"{path} needs {param.make_metavar(context)}; {_example(path)}"
    flag = param.opts[0]
    if alone := _parsed(context, rest)[1]:
        typed = [*rest[: (at := list(rest).index(alone[0]))], flag, *rest[at:]]
        return f"'{alone[0]}' stands alone, and {path} needs {flag}; type {_line([*path.split(), *typed])}"
    return f"{path} needs {flag}; {_example(path)}"


def _bad_value(
    context: click.Context, path: str, error: click.BadParameter, words: Sequence[str], rest: Sequence[str]
) -> str:
    from robflat_bench.registry.validation import nearest

    param = error.param
    assert param is not None
    assert param.name is not None
    flag = param.opts[0] if isinstance(param, click.Option) else path
    reason = error.message.rstrip(".").replace("a valid integer range", "a whole number")
    value = _parsed(context, rest)[0].get(param.name)
    default = param.get_default(context)
    if isinstance(param.type, click.Choice):
        better: Any = nearest(str(value), param.type.choices)
    else:
        better = default if isinstance(default, int) else getattr(param.type, "min", None)
    if better in ("", None) or not isinstance(value, str):
        return f"{flag}: {reason}; {_example(path)}"
    start = next((at for at, word in enumerate(words) if word.partition("=")[0] == flag), len(path.split()))
    return f"{flag}: {reason}; type {_line(_replaced(words, value, str(better), start))}"


def _extra(path: str, extra: str, words: Sequence[str]) -> str:
    at = list(words).index(extra)
    if words[at - 2 : at - 1] == ["--set"]:
        typed = [*words[: at - 1], f"{words[at - 1]}={extra}", *words[at + 1 :]]
        return f"--set needs KEY=VALUE, as one word; type {_line(typed)}"
    if words[at - 2 : at - 1] in (["--mean"], ["--std"]):
        values = list(itertools.takewhile(lambda word: not word.startswith("-"), words[at - 1 :]))
        typed = [*words[: at - 1], ",".join(values), *words[at - 1 + len(values) :]]
        return f"{words[at - 2]} needs its numbers as one word; type {_line(typed)}"
    shorter, told = _line([*words[:at], *words[at + 1 :]]), _line([*path.split(), "--help"])
    return f"{path} takes no '{extra}'; type {shorter}, or see {told}"


def _instead(path: str, word: str, known: Sequence[str], words: Sequence[str]) -> str:
    """The command line with the nearest known word, or the help where none is near."""
    from robflat_bench.registry.validation import nearest

    if near := nearest(word, known):
        return f"; did you mean {_line(_replaced(words, word, near))}?"
    return f"; see {_line([*path.split(), '--help'])}"


def _option(path: str, option: str, known: Sequence[str], words: Sequence[str]) -> str:
    """The command line with the option that is meant; dashes, which all options share, make none nearer."""
    from robflat_bench.registry.validation import nearest

    here = USUAL_OPTIONS.get(option, ())
    if not here or here[0] not in known:
        near = nearest(option.lstrip("-"), [flag.lstrip("-") for flag in known])
        return _instead(path, option, [f"--{near}"] if near else [], words)
    at = next(at for at, word in enumerate(words) if word.partition("=")[0] == option)
    value, end = words[at].partition("=")[2], at + 1
    if not value and "{}" in here[1]:
        value, end = next(iter(words[end:]), "VALUE"), end + 1
    return f"; type {_line([*words[:at], here[0], here[1].format(value), *words[end:]])}"


def _parsed(context: click.Context, rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What stands behind the options and arguments of a command, unconverted, and what is left over."""
    values, left, _ = context.command.make_parser(context).parse_args(args=list(rest))
    return values, left


def _replaced(words: Sequence[str], old: str, new: str, start: int = 0) -> list[str]:
    """The words with one of them, or its half before or behind `=`, replaced: the first from `start` on."""

    def changed(word: str) -> str:
        return "=".join(new if half == old else half for half in word.split("=", 1))

    at = next((at for at in range(start, len(words)) if changed(words[at]) != words[at]), len(words))
    return [*words[:at], *map(changed, words[at : at + 1]), *words[at + 1 :]]


def _example(path: str) -> str:
    example = EXAMPLES.get(path, f"{path} --help".strip())
    return f"type e.g. {_line(example.split())}{_keys(example)}"


def _keys(example: str) -> str:
    return " (RUN: a key of `robflat-bench results ls`)" if "RUN" in example.split() else ""


def _line(words: Sequence[str]) -> str:
    return f"`{shlex.join([PROGRAM, *words])}`"
