"""RobustBench's models and their published numbers, for robflat-bench: the hooks, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from robflat_bench.api import BackboneInfo, Params, hookimpl

if TYPE_CHECKING:
    import rich_click as click

CLASSES = {"cifar10": 10, "cifar100": 100}
"""Dataset of the models that can be built -> number of classes."""

MODELS = "ROBFLAT_BENCH_MODELS"
"""Environment variable with the folder of weights, which RobustBench's `load_model` calls `model_dir`."""


class RobustBenchParams(Params):
    name: str = Field(description="Name of the model, as RobustBench spells it.")
    dataset: Literal["cifar10", "cifar100"] = Field(default="cifar10", description="Dataset that it was trained on.")
    threat: Literal["Linf", "L2", "corruptions"] = Field(
        default="Linf", description="Threat model that it was trained against."
    )
    weights: str = Field(
        default="published",
        description='"published": DATASET/THREAT/NAME.pt or .safetensors below `models`. "random": untrained, always '
        "the same. Otherwise: a .pt or .safetensors file.",
    )
    models: str | None = Field(
        default=None, description="Folder of published weights; by default $ROBFLAT_BENCH_MODELS, else ./models."
    )


@hookimpl
def robflat_bench_backbones() -> list[BackboneInfo]:
    return [
        BackboneInfo(
            "robustbench",
            "any CIFAR model of RobustBench with its weights; keeps its own activation",
            "robflat_robustbench.zoo:robustbench_model",
            RobustBenchParams,
            "Croce et al.: RobustBench: a standardized adversarial robustness benchmark. NeurIPS 2021, "
            "arXiv 2010.09670",
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
