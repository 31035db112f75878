"""Discovery of plugins and calls of their hooks, both guarded: built-ins first, then installed distributions.

A plugin that raises becomes a `Broken` entry with its traceback, and everything else works. `registry` collects the
components that plugins offer; `runs.observers` calls their observers.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from robflat_bench import __version__
from robflat_bench.core import PROJECT, UsageError, contained, one_line
from robflat_bench.registry import hookspecs
from robflat_bench.registry.files import MAX_BYTES, files_below, hashed, load_file, source_files

ROOMS = ("data", "backbones", "attacks", "methods", "modifiers", "measures", "launchers", "config.protocols")
BUILT_INS = tuple(f"robflat_bench.{room}" for room in ROOMS)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Provider:
    """A loaded entry point of a plugin.

    Parameters
    ----------
    distribution, version : str
        Of the installed package; "file" is the version of a one-file plugin, whose distribution is the file's name.
    entry_point : str
        Its name.
    module : ModuleType or None
        The module that it names, once loaded.
    """

    distribution: str
    version: str
    entry_point: str
    module: ModuleType | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def built_in(self) -> bool:
        """Whether it is part of robflat-bench."""
        return self.distribution == "robflat-bench"

    def source_hash(self, factory: str = "") -> str:
        """SHA-256 over the files of the plugin, sorted by path, except those that are `IGNORED`.

        These are the plugin's top-level package, and the top-level package of `factory` ("package.module:Class") where
        that is a different one and not robflat_bench. Data files count, for they too may change numbers. Of a one-file
        plugin, these are the file and the `neighbours` that it imports.
        """
        if self.module is None or self.module.__file__ is None:
            return ""
        return hashed(self._files(self.module.__name__, factory, Path(self.module.__file__)))

    def _files(self, module: str, factory: str, file: Path) -> Iterator[tuple[str, Path]]:
        """The plugin's files, each with its path in the plugin; a single file's is `.`."""
        if self.version == "file":
            yield from source_files(file)
            return
        own, other = (name.partition(":")[0].split(".")[0] for name in (module, factory))
        for root in [*_roots(own), *(_roots(other) if other not in ("", own, PROJECT) else [])]:
            for path in files_below(root) if root.is_dir() else [root]:
                yield path.relative_to(root).as_posix(), path


def _roots(name: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or filter(None, [spec.origin])]


@dataclass(frozen=True)
class Broken:
    """A plugin that did not load: its error in one line, and the traceback."""

    distribution: str
    version: str
    entry_point: str
    error: str
    trace: str

    def __str__(self) -> str:
        return f"plugin {self.distribution} {self.version} ({self.entry_point}) is broken: {self.error}"


@dataclass
class Plugins:
    """The plugins of this process.

    Parameters
    ----------
    manager : pluggy.PluginManager
        Knows the hooks and the registered modules.
    providers : dict of ModuleType to Provider
        The plugin behind each registered module.
    broken : list of Broken
        Plugins that did not load.
    disabled : list of str
        Distributions that environment variables switch off.
    deprecated : list of str
        A line for each use of a hook or an argument that will be removed.
    """

    manager: pluggy.PluginManager
    providers: dict[ModuleType, Provider] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    deprecated: list[str] = field(default_factory=list)

    def register(self, module: ModuleType, provider: Provider) -> None:
        """Add a plugin; raises, and leaves it out, where a hook or an argument of a hook does not exist."""
        if module in self.providers:  # first: a failure below unregisters the module, which belongs to the other plugin
            raise ValueError(f"module {module.__name__} is already the plugin {self.providers[module]}")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self.manager.register(module, name=f"{provider.distribution}:{provider.entry_point}")
            self.manager.check_pending()
            for hook in self.manager.get_hookcallers(module) or ():
                if any(found.plugin is module and found.wrapper for found in hook.get_hookimpls()):
                    raise TypeError(f"{hook.name} is a wrapper, which never wraps: implementations are called alone")
        except BaseException:
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            raise
        self.providers[module] = provider
        self.deprecated += [f"plugin {provider}: {warning.message}" for warning in said]

    @contextlib.contextmanager
    def guard(self, provider: Provider) -> Iterator[None]:
        """In this block, send what the plugin prints to stderr, and record what it raises as `Broken`."""

        def failed(error: BaseException) -> None:
            names = provider.distribution, provider.version, provider.entry_point
            self.broken.append(Broken(*names, one_line(error) + _line(error, provider), traceback.format_exc()))

        with contained(failed):
            yield

    def callers(self, hook: str) -> list[tuple[Provider, Callable[..., Any]]]:
        """Each plugin that implements a hook, with a function that calls its implementation alone, with keywords."""
        modules = [implementation.plugin for implementation in getattr(self.manager.hook, hook).get_hookimpls()]

        def alone(module: ModuleType) -> Callable[..., Any]:
            caller = self.manager.subset_hook_caller(hook, [other for other in modules if other is not module])
            return lambda **arguments: next(iter(caller(**arguments)), None)

        return [(provider, alone(module)) for module, provider in self.providers.items() if module in modules]

    def rows(self, hook: str, check: Callable[[Any], None], **arguments: Any) -> list[tuple[Provider, list[Any]]]:
        """The answers to a hook that returns a list, by plugin; a plugin becomes broken if it or `check` raises."""
        answers = []
        for provider, call in self.callers(hook):
            with self.guard(provider), _without_torch(provider):
                rows = list(call(**arguments))
                for row in rows:
                    check(row)
                answers.append((provider, rows))
        return answers

    def environment(self) -> dict[str, dict[str, str]]:
        """Distribution -> the facts that it reports of this machine, or {"error": ...} where its hook raises."""

        def read(facts: Mapping[str, Any] | None) -> dict[str, str]:
            return {str(name): str(value) for name, value in (facts or {}).items()}

        found: dict[str, dict[str, str]] = {}
        for provider, answer in self._answers("robflat_bench_environment", read, lambda error: {"error": error}):
            found.setdefault(provider.distribution, {}).update(answer)
        return found

    def problems(self, record: Mapping[str, Any]) -> list[str]:
        """The problems that plugins find in a record, its JSON document; a hook that raises is a problem too."""

        def read(problems: Sequence[str] | None) -> list[str]:
            return [str(problem) for problem in problems or ()]

        def failed(error: str) -> list[str]:
            return [f"could not check this record: {error}"]

        answers = self._answers("robflat_bench_validate_record", read, failed, record=record)
        return [f"{provider}: {problem}" for provider, problems in answers for problem in problems]

    def _answers(
        self, hook: str, read: Callable[[Any], Answer], failed: Callable[[str], Answer], **arguments: Any
    ) -> Iterator[tuple[Provider, Answer]]:
        """The answer of each plugin, converted by `read`, or `failed(error)` where it raises.

        Each plugin receives its own copy of the arguments.
        """
        answers: list[Answer] = []
        for provider, call in self.callers(hook):
            with contained(lambda error: answers.append(failed(one_line(error)))):
                answers.append(read(call(**copy.deepcopy(arguments))))
            yield provider, answers.pop()


def _line(error: BaseException, provider: Provider) -> str:
    """The line of a one-file plugin at which it failed."""
    if provider.version != "file":
        return ""
    lines = [
        at.lineno for at in traceback.extract_tb(error.__traceback__) if Path(at.filename).name == provider.distribution
    ]
    return f" ({provider.distribution}, line {lines[-1]})" if lines else ""


def normalized(distribution: str) -> str:
    """A distribution's name as packaging tools compare it: lower case, each run of -_. as one dash."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _names(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {normalized(name.strip()) for name in value.split(",") if name.strip()}


class _WithoutTorch(importlib.abc.MetaPathFinder):
    """Refuses the first import of torch: it would cost every command seconds, `list` and `--help` too."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch":
            raise ImportError(
                "a plugin must not import torch when it is loaded, because every command would wait for it; "
                "import torch under `with lazy_imports():`, or in a module that only the factory names"
            )


@contextlib.contextmanager
def _without_torch(provider: Provider) -> Iterator[None]:
    """While an installed plugin is loaded or asked for its rows; a one-file plugin, which one command names, may."""
    finders = [] if provider.version == "file" else [_WithoutTorch()]
    sys.meta_path[:0] = finders
    try:
        yield
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]


def _trace(outcome: Any, hook: str, implementations: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    """Write one line to stderr for each implementation that was called."""
    raised = outcome.exception
    for implementation in implementations:
        ended = f"raised {type(raised).__name__}: {raised}" if raised else "done"
        given = ", ".join(implementation.argnames)
        sys.stderr.write(f"robflat-bench: hook {hook}({given}) of {implementation.plugin_name}: {ended}\n")


def built_in() -> Plugins:
    """The built-in plugins alone, whatever is installed."""
    plugins = Plugins(pluggy.PluginManager(PROJECT))
    plugins.manager.add_hookspecs(hookspecs)
    for name in BUILT_INS:
        module = importlib.import_module(name)
        plugins.register(module, Provider("robflat-bench", __version__, name.rpartition(".")[2], module))
    return plugins


def load_plugins(files: tuple[Path, ...] = ()) -> Plugins:
    """Load the built-ins, then the installed plugins, then one-file plugins.

    Parameters
    ----------
    files : tuple of Path
        One-file plugins, from `--plugin FILE.py`.

    Raises
    ------
    UsageError
        A file does not exist or is not a Python file. A plugin that raises is recorded as broken instead.

    Notes
    -----
    Environment variables: `ROBFLAT_BENCH_PLUGINS=a,b` loads only these distributions (empty: none);
    `ROBFLAT_BENCH_DISABLE_PLUGINS=c` leaves some out; `ROBFLAT_BENCH_TRACE_HOOKS=1` writes every call of a hook to
    stderr. Built-ins are always loaded.
    """
    plugins = built_in()
    if os.environ.get("ROBFLAT_BENCH_TRACE_HOOKS", "0") != "0":
        plugins.manager.add_hookcall_monitoring(lambda *_: None, _trace)
    only, without = _names("ROBFLAT_BENCH_PLUGINS"), _names("ROBFLAT_BENCH_DISABLE_PLUGINS") or set()
    for point in sorted(metadata.entry_points(group=PROJECT), key=lambda point: (_distribution(point), point.name)):
        provider = Provider(_distribution(point), point.dist.version if point.dist else "", point.name)
        if provider.distribution in without or (only is not None and provider.distribution not in only):
            plugins.disabled.append(provider.distribution)
            continue
        with plugins.guard(provider), _without_torch(provider):
            loaded = point.load()
            if not isinstance(loaded, ModuleType):
                raise TypeError(f"the entry point must name a module, not {loaded!r}")
            plugins.register(loaded, replace(provider, module=loaded))
    for file in files:
        if not file.is_file():
            raise UsageError(f"--plugin {file}: no such file; give the path of a Python file")
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"--plugin {file}: larger than {MAX_BYTES} bytes; a plugin of one file is smaller")
        if file.suffix != ".py":
            raise UsageError(f"--plugin {file}: not a Python file; its name must end in .py")
        provider = Provider(file.name, "file", file.stem)
        with plugins.guard(provider):
            module = load_file(file)
            plugins.register(module, replace(provider, module=module))
    return plugins


def _distribution(point: metadata.EntryPoint) -> str:
    return normalized(point.dist.name) if point.dist else "unknown"
