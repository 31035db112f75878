"""The options that say how a MODEL is read, for every command that reads one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import rich_click as click

_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--model",
        "network",
        metavar="FILE.py:NAME",
        help="Class or function that makes the network of a weights file: net.py:Net or package.module:factory.",
    ),
    click.option(
        "--model-args", "arguments", multiple=True, metavar="NAME=VALUE", help="Argument of --model; repeatable."
    ),
    click.option(
        "--backbone",
        help="Backbone of a weights file, e.g. 'resnet18(width=64)' or 'timm(name=resnet18)' [default: the "
        "protocol's where it fits, else what its names show].",
    ),
    click.option(
        "--mean",
        metavar="R,G,B",
        help="Means of the channels, images being in [0,1]: (x - mean) / std goes into the network of a weights file "
        "[default: x itself].",
    ),
    click.option("--std", metavar="R,G,B", help="Standard deviations of the channels; goes with --mean."),
    click.option(
        "--classes",
        type=click.IntRange(min=2),
        help="Number of logits of a weights file [default: the data's classes].",
    ),
    click.option(
        "--checkpoint",
        default="last",
        show_default=True,
        help="Checkpoint of a run: best, last, initial or epoch-N.",
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command receives them as one argument, `options: ModelOptions`."""

    @functools.wraps(command)
    def packed(
        *args: Any,
        network: str | None,
        arguments: tuple[str, ...],
        backbone: str | None,
        mean: str | None,
        std: str | None,
        classes: int | None,
        checkpoint: str,
        **others: Any,
    ) -> Any:
        from robflat_bench.evaluation import options

        chosen = options.ModelOptions(
            backbone=backbone,
            network=network,
            arguments=options.named_values(arguments),
            mean=options.channel_values(mean, "--mean") if mean else (),
            std=options.channel_values(std, "--std") if std else (),
            classes=classes,
            checkpoint=checkpoint,
        )
        return command(*args, options=chosen, **others)

    return functools.reduce(lambda made, option: option(made), reversed(_OPTIONS), packed)
