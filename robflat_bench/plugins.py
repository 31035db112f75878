"""Guarded discovery of plugins: built-ins first, then the entry points of installed distributions.

One broken plugin never breaks the program: it becomes a `Broken` entry with its traceback, and the rest works.
What the plugins offer is collected by `registry`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pluggy

from robflat_bench import __version__, hookspecs
from robflat_bench.base import PROJECT, UsageError

ROOMS = ("data", "backbones", "attacks", "methods", "modifiers", "measures", "launchers")
BUILT_INS = tuple(f"robflat_bench.{room}" for room in ROOMS)


@dataclass(frozen=True)
class Provider:
    """Who offers a component: distribution, version, entry point, and the module that was loaded."""

    distribution: str
    version: str
    entry_point: str
    module: ModuleType | None = field(default=None, repr=False, compare=False)

    @property
    def built_in(self) -> bool:
        return self.distribution == "robflat-bench"

    def source_hash(self, factory: str = "") -> str:
        """SHA-256 over the Python files, by path, of the plugin's top-level package (or its single file), and of
        the one where `factory` ("package.module:Class") lies, if that is another one and not ours."""
        if self.module is None or self.module.__file__ is None:
            return ""
        if self.version == "file":
            roots = [Path(self.module.__file__)]
        else:
            own, other = (name.partition(":")[0].split(".")[0] for name in (self.module.__name__, factory))
            roots = [*_roots(own), *(_roots(other) if other not in ("", own, PROJECT) else [])]
        digest = hashlib.sha256()
        for root in roots:
            for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()


def _roots(name: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module; it is not imported for that."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or filter(None, [spec.origin])]


@dataclass(frozen=True)
class Broken:
    """A plugin that did not load: one line for stderr, the whole traceback for whoever asks for it."""

    distribution: str
    version: str
    entry_point: str
    error: str
    trace: str

    def __str__(self) -> str:
        return f"plugin {self.distribution} {self.version} ({self.entry_point}) is broken: {self.error}"


@dataclass
class Plugins:
    """The plugin manager, who provides each registered plugin, what is broken and what is switched off."""

    manager: pluggy.PluginManager
    providers: dict[ModuleType, Provider] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)

    def register(self, module: ModuleType, provider: Provider) -> None:
        """Add one plugin; a hook it misspells, or whose arguments do not exist, makes it unusable."""
        try:
            self.manager.register(module, name=f"{provider.distribution}:{provider.entry_point}")
            self.manager.check_pending()
        except Exception:
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            raise
        self.providers[module] = provider


def normalized(distribution: str) -> str:
    """A distribution's name as packaging tools compare it: lower case, runs of -_. as one dash."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _names(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {normalized(name.strip()) for name in value.split(",") if name.strip()}


@contextlib.contextmanager
def _guard(plugins: Plugins, distribution: str, version: str, entry_point: str) -> Iterator[None]:
    """Nothing a plugin does while loading reaches stdout, and no exception of it leaves this block."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (Exception, SystemExit) as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        plugins.broken.append(Broken(distribution, version, entry_point, line, traceback.format_exc()))


def built_in() -> Plugins:
    """The built-ins alone, whatever is installed."""
    plugins = Plugins(pluggy.PluginManager(PROJECT))
    plugins.manager.add_hookspecs(hookspecs)
    for name in BUILT_INS:
        module = importlib.import_module(name)
        plugins.register(module, Provider("robflat-bench", __version__, name.removeprefix("robflat_bench."), module))
    return plugins


def load(files: tuple[Path, ...] = ()) -> Plugins:
    """Built-ins, then installed plugins that the environment admits, then one-file plugins (`--plugin FILE.py`).

    `ROBFLAT_BENCH_PLUGINS=a,b` admits only these distributions (empty: none), `ROBFLAT_BENCH_DISABLE_PLUGINS=c`
    leaves some out; neither touches built-ins.
    """
    plugins = built_in()
    only, without = _names("ROBFLAT_BENCH_PLUGINS"), _names("ROBFLAT_BENCH_DISABLE_PLUGINS") or set()
    for point in sorted(metadata.entry_points(group=PROJECT), key=lambda point: (_distribution(point), point.name)):
        distribution, version = _distribution(point), point.dist.version if point.dist else ""
        if distribution in without or (only is not None and distribution not in only):
            plugins.disabled.append(distribution)
            continue
        with _guard(plugins, distribution, version, point.name):
            loaded = point.load()
            if not isinstance(loaded, ModuleType):
                raise TypeError(f"the entry point must name a module, not {loaded!r}")
            plugins.register(loaded, Provider(distribution, version, point.name, loaded))

    for file in files:
        if not file.is_file():
            raise UsageError(f"--plugin {file}: no such file")
        spec = importlib.util.spec_from_file_location(f"robflat_bench_file_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise UsageError(f"--plugin {file}: not a Python file")
        with _guard(plugins, file.name, "file", file.stem):
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # annotations of dataclasses and parameters are looked up there
            spec.loader.exec_module(module)
            plugins.register(module, Provider(file.name, "file", file.stem, module))
    return plugins


def _distribution(point: metadata.EntryPoint) -> str:
    return normalized(point.dist.name) if point.dist else "unknown"
