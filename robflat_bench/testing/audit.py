"""Checks a plugin as a whole: what its distribution says, its hooks, what importing it costs, then the kit on each
component. `robflat-bench plugin check`.

A check that could not run is skipped with its reason and never counts as passed.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from robflat_bench import api
from robflat_bench.core import PROJECT, RobflatError, UsageError
from robflat_bench.registry.plugins import Broken, Provider, normalized
from robflat_bench.registry.registry import KINDS, Offer, Registry, did_you_mean, discover
from robflat_bench.testing import CheckResult, run_checks

HEAVY = ("torch", "torchvision", "timm", "pandas", "scipy", "sklearn", "pyarrow", "PIL", "matplotlib")
"""What no process should import to list a plugin's components."""
SECONDS = 0.3
"""What importing a plugin's module may take, on top of the api: every command pays it."""
TRIES = 3
MISFIT = "PluginValidationError"
"""What pluggy raises for a hook that does not exist, or not with these arguments."""


@dataclass(frozen=True)
class Audit:
    """What was found: plugin and version, whether any of it loaded, and the results in order."""

    plugin: str
    version: str
    loaded: bool
    results: tuple[CheckResult, ...]

    def count(self, outcome: str) -> int:
        return sum(result.outcome == outcome for result in self.results)

    @property
    def verdict(self) -> str:
        return ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("passed", "skipped", "failed"))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "plugin": self.plugin,
            "version": self.version,
            "api_version": api.API_VERSION,
            "results": [asdict(result) for result in self.results],
            **{outcome: self.count(outcome) for outcome in ("passed", "skipped", "failed")},
        }


@dataclass(frozen=True)
class Subject:
    """A plugin as it was found: its distribution (None: a single file), what loaded of it and what did not."""

    name: str
    version: str
    distribution: metadata.Distribution | None
    registry: Registry
    modules: tuple[str, ...]
    """Of its entry points; of a single file, none."""

    @property
    def providers(self) -> list[Provider]:
        return [found for found in self.registry.plugins.providers.values() if found.distribution == self.name]

    @property
    def broken(self) -> list[Broken]:
        return [found for found in self.registry.plugins.broken if found.distribution == self.name]

    @property
    def offers(self) -> list[Offer]:
        every = (offer for kind in KINDS for offer in self.registry.offers(kind))
        return [offer for offer in every if offer.provider.distribution == self.name]


class _Problem(Exception):
    """What is wrong, in a line."""


class _Skip(Exception):
    """Why a check does not apply."""


# ---------------------------------------------------------------------------------------------------------
# Checks of the plugin as a whole: raise _Problem or _Skip
# ---------------------------------------------------------------------------------------------------------


def check_metadata(subject: Subject) -> None:
    """A summary, and a requirement of the core that ends before the next version that may break the plugin."""
    about = _distribution(subject)
    if not about.metadata["Summary"]:
        raise _Problem("the distribution has no summary: add `description` to pyproject.toml")
    wanted = [specifier for name, specifier in map(_requirement, about.requires or ()) if name == "robflat-bench"]
    if not wanted:
        raise _Problem("the distribution does not require robflat-bench: add it to `dependencies`")
    if not any(sign in specifier for specifier in wanted for sign in ("<", "==", "~=")):
        raise _Problem("its requirement of robflat-bench has no upper bound: write robflat-bench>=X,<Y")


def check_entry_points(subject: Subject) -> None:
    """Every entry point is a module that can be imported."""
    if errors := [found.error for found in subject.broken if found not in _refused(subject)]:
        raise _Problem("; ".join(errors))


def check_hooks(subject: Subject) -> None:
    """Every hook is one that exists, with arguments that exist and that no later version takes away, and gives rows
    that describe a component."""
    if reasons := [_reason(found) for found in _refused(subject)]:
        raise _Problem("; ".join(reasons))
    if not subject.providers:
        raise _Skip("it could not be loaded")
    for provider in subject.providers:
        assert provider.module is not None
        for name, value in vars(provider.module).items():
            if name.startswith(f"{PROJECT}_") and callable(value) and not hasattr(value, f"{PROJECT}_impl"):
                raise _Problem(f"{name} is not decorated with @hookimpl, so nobody calls it")
    owner = f"plugin {subject.name} {subject.version}: "
    if old := [line.removeprefix(owner) for line in subject.registry.plugins.deprecated if line.startswith(owner)]:
        raise _Problem("; ".join(old))


def check_names(subject: Subject) -> None:
    """No other plugin, and not this one twice, offers a component or protocol of the same name."""
    offered = {line: line.rpartition(" by ")[2].split(" and ") for line in subject.registry.duplicates()}
    if clashes := [line for line, owners in offered.items() if subject.name in owners]:
        raise _Problem("; ".join(clashes))


def check_import(subject: Subject) -> None:
    """Importing the entry point's module is cheap, for every command does it, and brings nothing heavy along.

    (A plugin that imports torch is refused by other commands; this one has torch already, so all else is checked.)"""
    if not subject.modules:
        raise _Skip("a single file is description and code in one; only commands that name it load it")
    if not subject.providers:
        raise _Skip("it could not be loaded")
    for module in subject.modules:
        for _ in range(TRIES):
            cost = _import(module)
            if cost["heavy"]:
                raise _Problem(f"importing {module} imports {', '.join(cost['heavy'])}: keep rows apart from code")
            if cost["seconds"] <= SECONDS:
                break
        else:
            raise _Problem(f"importing {module} takes {cost['seconds']:.1f} s beyond the api's; {SECONDS} s are fine")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_entry_points,
    check_metadata,
    check_hooks,
    check_names,
    check_import,
)


# ---------------------------------------------------------------------------------------------------------
# All of it
# ---------------------------------------------------------------------------------------------------------


def find(name: str) -> Subject:
    """The plugin of that name among the installed distributions, or in the file of that name, FILE.py."""
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise UsageError(f"{file}: no such file")
        return Subject(file.name, "file", None, discover((file,)), ())
    wanted = normalized(name)
    points = [point for point in metadata.entry_points(group=PROJECT) if point.dist]
    found = [point for point in points if normalized(point.dist.name) == wanted]  # type: ignore[union-attr]
    if not found:
        known = {normalized(point.dist.name) for point in points}  # type: ignore[union-attr]
        raise UsageError(
            f"no installed distribution '{wanted}' has an entry point in the group {PROJECT}"
            f"{did_you_mean(wanted, known)}; see `robflat-bench plugin list`"
        )
    registry = discover()
    if wanted in registry.plugins.disabled:
        raise UsageError(
            f"{wanted} is switched off here; unset ROBFLAT_BENCH_PLUGINS and ROBFLAT_BENCH_DISABLE_PLUGINS to check it"
        )
    distribution = found[0].dist
    assert distribution is not None
    return Subject(wanted, distribution.version, distribution, registry, tuple(point.module for point in found))


def audit(subject: Subject, progress: Callable[[str], None]) -> Audit:
    """Every check on the plugin, then the kit on each of its components; progress hears what comes next."""
    progress(f"{subject.name} {subject.version}: metadata, hooks, import")
    results = [_checked(check, subject) for check in CHECKS]
    offers = subject.offers
    for number, offer in enumerate(offers, 1):
        progress(f"{offer.info.kind}:{offer.info.name} ({number} of {len(offers)})")
        results += _kit(subject, offer)
    if not offers:
        results.append(CheckResult(subject.name, "check_components", "skipped", "it offers no component"))
    return Audit(subject.name, subject.version, bool(subject.providers), tuple(results))


def _checked(check: Callable[[Subject], None], subject: Subject) -> CheckResult:
    try:
        check(subject)
    except _Skip as skip:
        return CheckResult(subject.name, check.__name__, "skipped", str(skip))
    except _Problem as problem:
        return CheckResult(subject.name, check.__name__, "failed", str(problem))
    return CheckResult(subject.name, check.__name__, "passed")


def _kit(subject: Subject, offer: Offer) -> Iterable[CheckResult]:
    title = f"{offer.info.kind}:{offer.info.name}"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a component may print; stdout is the report's
            return run_checks(subject.registry, offer.info.kind, offer.info.name)
    except RobflatError as error:
        return [CheckResult(title, "run_checks", "failed", str(error))]


def _distribution(subject: Subject) -> metadata.Distribution:
    if subject.distribution is None:
        raise _Skip("a single file has no metadata")
    return subject.distribution


def _refused(subject: Subject) -> Iterator[Broken]:
    """What was imported, but whose hooks are not as specified or did not give rows."""
    loaded = {provider.entry_point for provider in subject.providers}
    return (found for found in subject.broken if found.entry_point in loaded or found.error.startswith(MISFIT))


def _reason(found: Broken) -> str:
    """All of a misfit's error: its first line says which hook it is, the others what is wrong with it."""
    _, misfit, words = found.trace.rpartition(f"{MISFIT}: ")
    return " ".join(words.split()) if misfit else found.error


def _requirement(text: str) -> tuple[str, str]:
    """'robflat-bench[x]>=0.1,<0.2; marker' -> ('robflat-bench', '>=0.1,<0.2')."""
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
    """Seconds, and what of HEAVY came along, in a process of its own."""
    given = json.dumps([module, sys.path, HEAVY])
    done = subprocess.run([sys.executable, "-c", _IMPORT, given], capture_output=True, text=True)
    if done.returncode:
        raise _Problem(f"importing {module} alone fails: {(done.stderr.splitlines() or ['it ended'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
