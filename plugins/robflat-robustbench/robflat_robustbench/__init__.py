"""RobustBench's models by name, and the numbers it publishes of them, for robflat-bench. Rows only, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Literal

from robflat_bench.api import BackboneInfo, Params, hookimpl

if TYPE_CHECKING:
    import rich_click as click

CLASSES = {"cifar10": 10, "cifar100": 100}
"""Data sets whose models can be built, and their classes."""

MODELS = "ROBFLAT_BENCH_MODELS"
"""Environment variable: the folder that RobustBench's `load_model` calls `model_dir`."""


class RobustBenchParams(Params):
    """name, dataset, threat: the model as RobustBench names it, and what it was trained on and against.

    weights: "published" = those under `models`, by default $ROBFLAT_BENCH_MODELS or ./models, at
    DATASET/THREAT/NAME.pt or .safetensors; "random" = untrained, always the same; otherwise a .pt or .safetensors
    file.
    """

    name: str
    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    threat: Literal["Linf", "L2", "corruptions"] = "Linf"
    weights: str = "published"
    models: str | None = None


@hookimpl
def robflat_bench_backbones() -> list[BackboneInfo]:
    return [
        BackboneInfo(
            "robustbench",
            "any CIFAR model of RobustBench with its weights; keeps its own activation",
            "robflat_robustbench.zoo:robustbench_model",
            RobustBenchParams,
            "Croce et al.: RobustBench: a standardized adversarial robustness benchmark. NeurIPS 2021",
            "RobustBench {name}",
            {"name": "Wong2020Fast", "weights": "random"},
            pretrained=True,
        )
    ]


@hookimpl
def robflat_bench_protocols() -> list[Traversable]:
    return [resources.files("robflat_robustbench") / "protocols" / "robustbench-linf.toml"]


@hookimpl
def robflat_bench_commands() -> list[click.Command]:
    from robflat_robustbench.commands import robustbench

    return [robustbench]


@hookimpl
def robflat_bench_environment() -> Mapping[str, str]:
    return {"robustbench": metadata.version("robustbench")}


@hookimpl
def robflat_bench_validate_record(record: Mapping[str, Any]) -> list[str]:
    from robflat_robustbench.published import problems

    return problems(record)
