"""The only module that a plugin imports. It is typed, and importing it does not import torch.

    from robflat_bench.api import Method, MethodInfo, Params, hookimpl

Rows, base classes and parameters come from `core`. The tools that need torch (attack engine, loss oracle, weight space,
random numbers keyed by content) are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robflat_bench.core import (
    Attack,
    AttackInfo,
    BackboneInfo,
    Batch,
    Dataset,
    DatasetInfo,
    Examples,
    Exit,
    ImageShape,
    InnerAttack,
    Job,
    Journal,
    Launcher,
    LauncherInfo,
    LeaderboardColumn,
    Loss,
    Measure,
    MeasureInfo,
    Measurement,
    Method,
    MethodInfo,
    Modifier,
    ModifierInfo,
    Moment,
    NoValue,
    Number,
    Params,
    Passes,
    PluginError,
    Pool,
    Resources,
    RunView,
    Source,
    Threat,
    ThreatNorm,
    Training,
    UsageError,
    Workspace,
    catalogue_rows,
    hookimpl,
    lazy_imports,
)

if TYPE_CHECKING:
    from robflat_bench.attacks.climbers import project
    from robflat_bench.attacks.engine import (
        ascend,
        attacked,
        cross_entropy,
        divergence_from,
        frozen_statistics,
        margin,
    )
    from robflat_bench.attacks.norms import NORMS, climbed
    from robflat_bench.backbones.parts import Normalized, activation_class, construction
    from robflat_bench.core.batching import in_batches
    from robflat_bench.core.randomness import generator, per_example_uniform, uniform_like
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.shared import OracleParams, WeightSpaceParams
    from robflat_bench.methods.losses import divergence, soft_cross_entropy
    from robflat_bench.numerics.weight_space import Ball, WeightSpace
    from robflat_bench.registry.grammar import parse

API_VERSION = "1.5"
"""major.minor of this module and of the hooks. A minor version adds names, hooks and arguments; implementations may
leave arguments out. A major version removes what was deprecated, with a warning at each use, for at least one minor
version."""

_LAZY = (
    "robflat_bench.registry.components",
    "robflat_bench.core.randomness",
    "robflat_bench.core.batching",
    "robflat_bench.attacks.norms",
    "robflat_bench.attacks.climbers",
    "robflat_bench.attacks.engine",
    "robflat_bench.backbones.parts",
    "robflat_bench.methods.losses",
    "robflat_bench.numerics.weight_space",
    "robflat_bench.measures.oracle",
    "robflat_bench.measures.shared",
)
"""The modules behind the imports above that wait until one of their names is used; only the first needs no torch."""

__all__ = [
    "API_VERSION",
    "NORMS",
    "Attack",
    "AttackInfo",
    "BackboneInfo",
    "Ball",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Examples",
    "Exit",
    "ImageShape",
    "InnerAttack",
    "Job",
    "Journal",
    "Launcher",
    "LauncherInfo",
    "LeaderboardColumn",
    "Loss",
    "Measure",
    "MeasureInfo",
    "Measurement",
    "Method",
    "MethodInfo",
    "Modifier",
    "ModifierInfo",
    "Moment",
    "NoValue",
    "Normalized",
    "Number",
    "Oracle",
    "OracleParams",
    "Params",
    "Passes",
    "PluginError",
    "Pool",
    "Resources",
    "RunView",
    "Source",
    "Threat",
    "ThreatNorm",
    "Training",
    "UsageError",
    "WeightSpace",
    "WeightSpaceParams",
    "Workspace",
    "activation_class",
    "ascend",
    "attacked",
    "catalogue_rows",
    "climbed",
    "construction",
    "cross_entropy",
    "divergence",
    "divergence_from",
    "frozen_statistics",
    "generator",
    "hookimpl",
    "in_batches",
    "lazy_imports",
    "margin",
    "parse",
    "per_example_uniform",
    "project",
    "soft_cross_entropy",
    "uniform_like",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(importlib.import_module, _LAZY):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
