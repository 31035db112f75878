"""Machine, versions and code that made a record. Records keep them, `doctor` shows them; keys never contain them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robflat_bench import __version__
from robflat_bench.numerics.capacity import cores

if TYPE_CHECKING:
    from robflat_bench.evaluation.session import Session
    from robflat_bench.registry.components import Component

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "timm",
    "pyautoattack",
    "safetensors",
    "pluggy",
    "pydantic",
)


def describe() -> dict[str, Any]:
    """Interpreter, machine and versions of libraries; imports none of these libraries."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def torch_environment(device: str) -> dict[str, Any]:
    """Device, threads and CPU kernels of torch in this process."""
    import torch

    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def of(session: Session, processes: int = 1) -> dict[str, Any]:
    """A record's environment: this machine, torch, how networks were compiled (None: not), the plugins' facts, and the
    processes that trained where they are several."""
    return {
        **describe(),
        **({"processes": processes} if processes > 1 else {}),
        **torch_environment(session.device),
        "compiled": session.compile.report() if session.compile else None,
        "plugins": session.registry.plugins.environment(),
    }


def provenance(used: Iterable[Component]) -> dict[str, Any]:
    """The code that made a record: version and SHA-256 over this package's Python files, and each component's."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    components = {f"{part.info.kind}:{part.name}": part.offer.provenance for part in used}
    return {
        "robflat_bench": __version__,
        "source": digest.hexdigest(),
        "host": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8],
        "components": dict(sorted(components.items())),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
        return platform.machine()
    return platform.processor() or platform.machine()
