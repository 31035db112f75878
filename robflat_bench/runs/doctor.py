"""Checks of this machine: libraries, device, plugins, data and store. `robflat-bench doctor` shows them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from robflat_bench.core import UsageError, contained, one_line
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.runs import environment


def check_machine(registry: Registry, store: Path, data: str | None) -> dict[str, Any]:
    """Describe this machine and test whether a run would work on it.

    Returns
    -------
    dict
        JSON document: `environment`, `plugins`, `data` (where each data set was found, or why not), `store` (folder,
        and size and free space of its disk in bytes) and `problems`.
    """
    machine = environment.describe() | {"plugins": registry.plugins.environment()}
    problems = [*map(str, registry.plugins.broken), *registry.duplicates(), *registry.plugins.deprecated]
    try:
        import torch

        machine |= environment.torch_environment("cuda" if torch.cuda.is_available() else "cpu")
    except ImportError as error:
        problems.append(f"torch cannot be imported: {error}")
    found = {name: _copies(registry, name, data) for name in registry.names("dataset")}
    place: dict[str, Any] = {"folder": str(store)}
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
        disk = shutil.disk_usage(store)
        place |= {"disk_bytes": disk.total, "free_bytes": disk.free}
    except OSError as error:
        problems.append(f"the store {store} cannot be written: {error.strerror}; choose another with --store")
    plugins = {
        f"{item.distribution}:{item.entry_point}": {"version": item.version, "source": item.source_hash()}
        for item in registry.plugins.providers.values()
    }
    return {"environment": machine, "plugins": plugins, "data": found, "store": place, "problems": problems}


def _copies(registry: Registry, name: str, data: str | None) -> list[str]:
    """Where a dataset was found, or why not; whatever its code raises is a reason."""
    found: list[str] = []
    with contained(lambda error: found.append(f"none: {error if isinstance(error, UsageError) else one_line(error)}")):
        sources = resolve(registry, "dataset", name).build().sources(data, download=False)
        found += [load().origin for load in sources]
    return found
