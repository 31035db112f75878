"""JSON documents on protocols and studies, for `list` and `info`."""

from __future__ import annotations

from typing import Any

from robflat_bench import __version__
from robflat_bench.config.protocol import load
from robflat_bench.config.study import load_study
from robflat_bench.registry.registry import Registry


def describe_protocol(registry: Registry, name: str) -> dict[str, Any]:
    """One protocol; its parameters are those of the recipe."""
    protocol = load(registry, name)
    fixed = protocol.fixed
    return {
        "name": protocol.name,
        "kind": "protocol",
        "summary": protocol.summary,
        "provider": str(registry.protocol(name)[1]),
        "version": protocol.version,
        "hash": protocol.hash,
        "dataset": fixed.data.dataset,
        "backbone": fixed.backbone,
        "epsilon": f"{fixed.threat.epsilon:.6g} ({fixed.threat.norm})",
        "attacks": "; ".join(f"{row.attack} on {row.test} test, {row.train} train" for row in fixed.attacks),
        "measures": "; ".join(f"{row.measure} on {row.test} test" for row in fixed.measures),
        "parameters": [
            {
                "name": f"recipe.{key}",
                "type": type(value).__name__,
                "default": value,
                "range": "",
                "description": type(protocol.recipe).model_fields[key].description or "",
            }
            for key, value in protocol.recipe.model_dump(mode="json").items()
        ],
    }


def describe_study(name: str) -> dict[str, Any]:
    """One study that this package ships."""
    study = load_study(name)
    return {
        "name": name,
        "kind": "study",
        "summary": study.summary,
        "provider": f"robflat-bench {__version__}",
        "version": study.version,
        "protocol": study.protocol,
        "groups": "; ".join(f"{group.title}: {group.count}" for group in study.groups),
        "parameters": [],
    }
