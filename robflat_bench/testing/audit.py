"""Checks a plugin as a whole: its metadata, its hooks, the cost of its import; then the kit on each component.

`robflat-bench plugin check` runs it. A check that could not run is skipped with its reason and never counts as passed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from robflat_bench import api
from robflat_bench.config.protocol import load
from robflat_bench.core import PROJECT, RobflatError, UsageError
from robflat_bench.registry.plugins import Broken, Provider, normalized
from robflat_bench.registry.registry import Offer, Registry, discover
from robflat_bench.registry.validation import did_you_mean
from robflat_bench.testing.expectations import CheckFailure, Skipped
from robflat_bench.testing.runner import CheckResult, result_of, run_checks

HEAVY = ("torch", "torchvision", "timm", "pandas", "scipy", "sklearn", "pyarrow", "PIL", "matplotlib")
"""Modules that take long to import; listing a plugin's components needs none of them."""
SECONDS = 0.3
"""Time that importing a plugin's module may take beyond the api's import: every command pays it."""
TRIES = 3
MISFIT = "PluginValidationError"
"""pluggy's error for a hook, or an argument of a hook, that does not exist."""
OUTCOMES = ("passed", "skipped", "failed")


@dataclass(frozen=True)
class Audit:
    """What was found: plugin and version, whether any of it loaded, and the results in order."""

    plugin: str
    version: str
    loaded: bool
    results: tuple[CheckResult, ...]

    def count(self, outcome: str) -> int:
        """Number of checks with that outcome."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def verdict(self) -> str:
        """The counts in words."""
        return ", ".join(f"{self.count(outcome)} {outcome}" for outcome in OUTCOMES)

    def document(self) -> dict[str, Any]:
        """The JSON document of `plugin check --json`."""
        return {
            "plugin": self.plugin,
            "version": self.version,
            "api_version": api.API_VERSION,
            "results": [asdict(result) for result in self.results],
            **{outcome: self.count(outcome) for outcome in OUTCOMES},
        }


@dataclass(frozen=True)
class AuditedPlugin:
    """A plugin and what loaded of it.

    Parameters
    ----------
    name, version : str
        Of the distribution; of a single file, its name and "file".
    distribution : metadata.Distribution or None
        None for a single file.
    registry : Registry
        Holds all plugins, to find names that two of them offer.
    modules : tuple of str
        The modules of its entry points; empty for a single file.
    """

    name: str
    version: str
    distribution: metadata.Distribution | None
    registry: Registry
    modules: tuple[str, ...]

    @property
    def providers(self) -> list[Provider]:
        """Its entry points that loaded."""
        return [found for found in self.registry.plugins.providers.values() if found.distribution == self.name]

    @property
    def broken(self) -> list[Broken]:
        """Its entry points that did not load."""
        return [found for found in self.registry.plugins.broken if found.distribution == self.name]

    @property
    def offers(self) -> list[Offer]:
        """Its components."""
        return [offer for offer in self.registry.offers() if offer.provider.distribution == self.name]

    @property
    def refused(self) -> list[Broken]:
        """Its entry points that were imported but whose hooks or rows are not as specified."""
        loaded = {provider.entry_point for provider in self.providers}
        return [found for found in self.broken if found.entry_point in loaded or found.error.startswith(MISFIT)]


# ---------------------------------------------------------------------------------------------------------
# Checks of the plugin as a whole: raise CheckFailure or Skipped
# ---------------------------------------------------------------------------------------------------------


def check_metadata(plugin: AuditedPlugin) -> None:
    """It has a summary, and requires robflat-bench with an upper bound: a later version may break the plugin."""
    about = plugin.distribution
    if about is None:
        raise Skipped("a single file has no metadata")
    if not about.metadata["Summary"]:
        raise CheckFailure("the distribution has no summary: add `description` to pyproject.toml")
    wanted = [specifier for name, specifier in map(_requirement, about.requires or ()) if name == "robflat-bench"]
    if not wanted:
        raise CheckFailure("the distribution does not require robflat-bench: add it to `dependencies`")
    if not any(sign in specifier for specifier in wanted for sign in ("<", "==", "~=")):
        raise CheckFailure("its requirement of robflat-bench has no upper bound: write robflat-bench>=X,<Y")


def check_entry_points(plugin: AuditedPlugin) -> None:
    """Every entry point is a module that can be imported."""
    if errors := [found.error for found in plugin.broken if found not in plugin.refused]:
        raise CheckFailure("; ".join(errors))


def check_hooks(plugin: AuditedPlugin) -> None:
    """Its hooks and their arguments exist, none is deprecated, and the rows that they return describe components."""
    if plugin.refused:
        raise CheckFailure("; ".join(map(_reason, plugin.refused)))
    if not plugin.providers:
        raise Skipped("it could not be loaded")
    for provider in plugin.providers:
        for name, value in vars(provider.module).items():
            if name.startswith(f"{PROJECT}_") and callable(value) and not hasattr(value, f"{PROJECT}_impl"):
                raise CheckFailure(f"{name} is not decorated with @hookimpl, so nobody calls it")
    owner = f"plugin {plugin.name} {plugin.version}: "
    if old := [line.removeprefix(owner) for line in plugin.registry.plugins.deprecated if line.startswith(owner)]:
        raise CheckFailure("; ".join(old))


def check_names(plugin: AuditedPlugin) -> None:
    """It is the only plugin that offers its components and protocols, and offers each once. Its protocols are valid,
    each file is called after its content, and no earlier version equals the one in force."""
    registry = plugin.registry
    offered = {line: line.rpartition(" by ")[2].split(" and ") for line in registry.duplicates()}
    if clashes := [line for line, owners in offered.items() if plugin.name in owners]:
        raise CheckFailure("; ".join(clashes))
    for name in registry.offered_protocols(plugin.name):
        own = name.partition("@")[0]
        try:
            found = load(registry, name)
            if not registry.has_protocol(own):
                raise CheckFailure(f"{name}.toml is an earlier version of no protocol: call the file {own}.toml")
            if name != own and found.version == load(registry, own).version:
                both = f"{own}.toml and {name}.toml are both version {found.version}"
                raise CheckFailure(f"{both}: raise `version` in {own}.toml, or remove one of the files")
        except RobflatError as error:
            raise CheckFailure(str(error)) from None


def check_import(plugin: AuditedPlugin) -> None:
    """Importing the module of its entry point is fast and imports no heavy library: every command does it.

    Other commands refuse a plugin that imports torch; this one has torch already, so it checks everything else.
    """
    if not plugin.modules:
        raise Skipped("only commands that name a single file load it, so it may import anything")
    if not plugin.providers:
        raise Skipped("it could not be loaded")
    for module in plugin.modules:
        for _ in range(TRIES):
            cost = _import(module)
            if cost["heavy"]:
                heavy = ", ".join(cost["heavy"])
                raise CheckFailure(f"importing {module} imports {heavy}: import it in the code, or in `lazy_imports()`")
            if cost["seconds"] <= SECONDS:
                break
        else:
            raise CheckFailure(
                f"importing {module} takes {cost['seconds']:.1f} s more than the api; {SECONDS} s are fine"
            )


CHECKS: tuple[Callable[[AuditedPlugin], None], ...] = (
    check_entry_points,
    check_metadata,
    check_hooks,
    check_names,
    check_import,
)


# ---------------------------------------------------------------------------------------------------------
# The whole audit
# ---------------------------------------------------------------------------------------------------------


def find_plugin(name: str) -> AuditedPlugin:
    """Find a plugin among the installed distributions, or in a file `FILE.py`.

    Raises
    ------
    UsageError
        There is no such file or distribution, or the distribution is disabled by an environment variable.
    """
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise UsageError(f"{file}: no such file; give the path of a Python file, or the name of a distribution")
        return AuditedPlugin(file.name, "file", None, discover((file,)), ())
    if name.endswith(".toml"):
        plan = shlex.join(["robflat-bench", "run", "--method", "at", "--protocol", name, "--plan"])
        raise UsageError(f"{name} is no plugin; type `{plan}` to check a protocol")
    wanted = normalized(name)
    distributions = {
        normalized(point.dist.name): point.dist for point in metadata.entry_points(group=PROJECT) if point.dist
    }
    if wanted not in distributions:
        raise UsageError(
            f"no installed distribution '{wanted}' has an entry point in the group {PROJECT}"
            f"{did_you_mean(wanted, distributions)}; see `robflat-bench plugin list`"
        )
    registry, distribution = discover(), distributions[wanted]
    if wanted in registry.plugins.disabled:
        raise UsageError(
            f"{wanted} is switched off here; unset ROBFLAT_BENCH_PLUGINS and ROBFLAT_BENCH_DISABLE_PLUGINS to check it"
        )
    modules = tuple(point.module for point in distribution.entry_points if point.group == PROJECT)
    return AuditedPlugin(wanted, distribution.version, distribution, registry, modules)


def audit(plugin: AuditedPlugin, progress: Callable[[str], None]) -> Audit:
    """Run every check on the plugin, then the kit on each of its components.

    Parameters
    ----------
    plugin : AuditedPlugin
        From `find_plugin`.
    progress : callable
        Receives a line of text before each part.
    """
    progress(f"{plugin.name} {plugin.version}: metadata, hooks, import")
    results = [result_of(plugin.name, check.__name__, functools.partial(check, plugin)) for check in CHECKS]
    offers = plugin.offers
    for number, offer in enumerate(offers, 1):
        component = f"{offer.info.kind}:{offer.info.name}"
        progress(f"{component} ({number} of {len(offers)})")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # a component may print; stdout is the report's
                results += run_checks(plugin.registry, offer.info.kind, offer.info.name)
        except RobflatError as error:
            results.append(CheckResult(component, "run_checks", "failed", str(error)))
    if not offers:
        results.append(CheckResult(plugin.name, "check_components", "skipped", "it offers no component"))
    return Audit(plugin.name, plugin.version, bool(plugin.providers), tuple(results))


def _reason(found: Broken) -> str:
    """The error in full: pluggy names the hook in the first line and the fault in the lines below."""
    _, misfit, words = found.trace.rpartition(f"{MISFIT}: ")
    return " ".join(words.split()) if misfit else found.error


def _requirement(text: str) -> tuple[str, str]:
    """'robflat-bench[x]>=0.1,<0.2; marker' -> ('robflat-bench', '[x]>=0.1,<0.2')."""
    name, extras_and_specifier = re.match(r"\s*([A-Za-z0-9._-]+)(.*)", text.partition(";")[0]).groups()  # type: ignore[union-attr]
    return normalized(name), extras_and_specifier


_IMPORT = """
import importlib, json, sys, time
module, sys.path, heavy = json.loads(sys.argv[1])
import robflat_bench.api
before, began = set(sys.modules), time.perf_counter()
importlib.import_module(module)
seconds = time.perf_counter() - began
found = [name for name in heavy if name in sys.modules and name not in before]
print("\\n" + json.dumps({"seconds": seconds, "heavy": found}))
"""


def _import(module: str) -> dict[str, Any]:
    """The seconds that an import takes in a process of its own, and the HEAVY modules that it loads."""
    given = json.dumps([module, sys.path, HEAVY])
    done = subprocess.run([sys.executable, "-c", _IMPORT, given], capture_output=True, text=True)
    if done.returncode:
        raise CheckFailure(f"importing {module} alone fails: {(done.stderr.splitlines() or ['it ended'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
