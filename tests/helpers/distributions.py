"""Fake plugin distributions: folders with a dist-info, in front of sys.path."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest


class Site:
    """A folder of installed distributions on sys.path; `ROBFLAT_BENCH_PLUGINS` admits these and no others."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self.admitted: list[str] = []
        folder.mkdir(parents=True)
        patch.syspath_prepend(str(folder))

    def install(
        self,
        distribution: str,
        files: dict[str, str],
        version: str = "1.0",
        module: str = "",
        points: dict[str, str] | None = None,
    ) -> None:
        """Write files and a dist-info.

        Its entry points are `points` (name -> module); by default one for `module`, which defaults to the first file's.
        """
        module = module or next(iter(files)).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        points = points or {module.partition(":")[0]: module}
        about = f"{distribution.replace('-', '_')}-{version}.dist-info"
        files = files | {
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
            f"{about}/entry_points.txt": "\n".join(["[robflat_bench]", *map(" = ".join, points.items()), ""]),
        }
        files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in files)
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.admitted.append(distribution)
        self.patch.setenv("ROBFLAT_BENCH_PLUGINS", ",".join(self.admitted))
        self.forget()

    def forget(self) -> None:
        """Let the next import read the files again, as a new process would."""
        importlib.invalidate_caches()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]
        for cache in self.folder.rglob("__pycache__"):
            shutil.rmtree(cache)

    def imported(self, name: str) -> bool:
        return name in sys.modules
