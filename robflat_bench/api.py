"""The one module a plugin imports. Small, typed, and cheap: nothing here imports torch until it is used.

    from robflat_bench.api import Method, MethodInfo, Params, hookimpl

Descriptions and base classes come from `base`; the helpers below them (attack engine, loss oracle, weight space,
random numbers keyed by content) are loaded when first named.
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
    Number,
    Params,
    Passes,
    PluginError,
    Pool,
    Resources,
    RunView,
    Source,
    Threat,
    Training,
    UsageError,
    Workspace,
    hookimpl,
)

if TYPE_CHECKING:
    from robflat_bench.attacks.engine import (
        ascend,
        attacked,
        cross_entropy,
        divergence_from,
        frozen_statistics,
        margin,
        project,
    )
    from robflat_bench.backbones.parts import Normalized, activation_class, construction
    from robflat_bench.core.batching import in_batches
    from robflat_bench.core.randomness import generator, per_example_uniform, uniform_like
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.shared import OracleParams
    from robflat_bench.methods.losses import divergence, soft_cross_entropy
    from robflat_bench.numerics.weight_space import WeightSpace
    from robflat_bench.registry.components import parse

API_VERSION = "1.0"
"""major.minor of this module and of the hooks. A minor version adds names, hooks and arguments (implementations may
take fewer); a major one removes what was deprecated, with a warning at every use, for at least one minor version."""

_LAZY = {
    "ascend": "robflat_bench.attacks.engine",
    "attacked": "robflat_bench.attacks.engine",
    "cross_entropy": "robflat_bench.attacks.engine",
    "divergence_from": "robflat_bench.attacks.engine",
    "frozen_statistics": "robflat_bench.attacks.engine",
    "margin": "robflat_bench.attacks.engine",
    "project": "robflat_bench.attacks.engine",
    "Normalized": "robflat_bench.backbones.parts",
    "activation_class": "robflat_bench.backbones.parts",
    "construction": "robflat_bench.backbones.parts",
    "in_batches": "robflat_bench.core.batching",
    "parse": "robflat_bench.registry.components",
    "Oracle": "robflat_bench.measures.oracle",
    "OracleParams": "robflat_bench.measures.shared",
    "WeightSpace": "robflat_bench.numerics.weight_space",
    "divergence": "robflat_bench.methods.losses",
    "soft_cross_entropy": "robflat_bench.methods.losses",
    "generator": "robflat_bench.core.randomness",
    "per_example_uniform": "robflat_bench.core.randomness",
    "uniform_like": "robflat_bench.core.randomness",
}

__all__ = [
    "API_VERSION",
    "Attack",
    "AttackInfo",
    "BackboneInfo",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Examples",
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
    "Training",
    "UsageError",
    "WeightSpace",
    "Workspace",
    "activation_class",
    "ascend",
    "attacked",
    "construction",
    "cross_entropy",
    "divergence",
    "divergence_from",
    "frozen_statistics",
    "generator",
    "hookimpl",
    "in_batches",
    "margin",
    "parse",
    "per_example_uniform",
    "project",
    "soft_cross_entropy",
    "uniform_like",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
