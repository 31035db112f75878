"""Kind and name -> component: everything that the plugins offer, its code imported on first use."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NoReturn, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from robflat_bench.core import Info, Kind, PluginError, RobflatError, UsageError, contained, infos, one_line
from robflat_bench.registry.plugins import Plugins, Provider, load_plugins
from robflat_bench.registry.validation import did_you_mean

KINDS: tuple[Kind, ...] = get_args(Kind)
USES: dict[Kind, str] = {
    "method": "run --method {name}",
    "modifier": "run --method at+{name}",
    "attack": "evaluate RUN --attack {name}",
    "measure": "evaluate RUN --measure {name}",
    "backbone": "evaluate FILE --backbone {name}",
    "dataset": "info dataset:{name}",
    "launcher": "sweep paper-digits --launcher {name}",
}
"""Kind -> the command that takes a component of it."""
_NAME = r"[a-z0-9][a-z0-9-]*"
AnyInfo = TypeVar("AnyInfo", bound=Info, covariant=True, default=Info)


@dataclass(frozen=True)
class Offer(Generic[AnyInfo]):
    """A component as a plugin offers it: its catalogue row, and the plugin that provides it."""

    info: AnyInfo
    provider: Provider

    def load(self) -> Any:
        """Import the class or function that the row names; PluginError with the traceback where that fails."""

        def failed(error: BaseException) -> NoReturn:
            raise PluginError(f"{self} cannot be loaded: {one_line(error)}\n{traceback.format_exc()}") from error

        module, _, attribute = self.info.factory.partition(":")
        with contained(failed):
            return getattr(self._file or importlib.import_module(module), attribute)
        raise AssertionError("`failed` raises")

    @property
    def code(self) -> tuple[str, str]:
        """The names of the module and of the class or function that the row names."""
        module, _, attribute = self.info.factory.partition(":")
        return (self._file.__name__ if self._file else module), attribute

    @property
    def _file(self) -> ModuleType | None:
        """The module of a one-file plugin, where all its factories are looked up."""
        return self.provider.module if self.provider.version == "file" else None

    def __str__(self) -> str:
        return f"{self.info.kind} '{self.info.name}' of {self.provider}"

    @property
    def provenance(self) -> dict[str, str]:
        """Distribution, version and, unless it is built in, the SHA-256 of the plugin's source files."""
        source = "" if self.provider.built_in else self.provider.source_hash(self.info.factory)
        return {"distribution": self.provider.distribution, "version": self.provider.version, "source": source}


class Registry:
    """Every component and protocol that plugins offer.

    A name that two plugins offer raises an error when it is used, until one of the distributions is disabled; all other
    names work.

    Parameters
    ----------
    plugins : Plugins
        The loaded plugins. Each is asked for its rows once, here.
    """

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self._offers: dict[Kind, dict[str, list[Offer]]] = {kind: {} for kind in KINDS}
        for kind in KINDS:
            for provider, rows in plugins.rows(f"robflat_bench_{kind}s", functools.partial(_check_row, kind)):
                for info in rows:
                    self.add(info, provider)
        self._protocols: dict[str, list[tuple[Traversable, Provider]]] = {}
        for provider, files in plugins.rows("robflat_bench_protocols", _check_protocol):
            for file in files:
                self._protocols.setdefault(file.name.removesuffix(".toml"), []).append((file, provider))

    def add(self, info: Info, provider: Provider) -> None:
        """Add a component."""
        self._offers[info.kind].setdefault(info.name, []).append(Offer(info, provider))

    def names(self, kind: Kind, pattern: str = "*") -> list[str]:
        """Names of a kind that match a shell pattern, sorted."""
        return sorted(fnmatch.filter(self._offers[kind], pattern))

    def get(self, kind: Kind, name: str) -> Offer[Any]:
        """The component of that name.

        Raises
        ------
        UsageError
            No plugin offers the name; the message suggests the nearest one.
        PluginError
            Two plugins offer it, or a plugin that did not load may offer it.
        """
        offers = self._offers[kind].get(name, [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            raise _twice(kind, name, [offer.provider for offer in offers])
        raise self.unknown(kind, name, self._offers[kind])

    def unknown(self, what: str, name: str, known: Iterable[str]) -> RobflatError:
        """The error for a name that nobody offers; PluginError while a plugin is broken, for it may offer the name."""
        message = f"unknown {what} '{name}'"
        if self.plugins.broken:
            traces = "\n".join(f"{broken}\n{broken.trace}" for broken in self.plugins.broken)
            hint = did_you_mean(name, known)
            return PluginError(f"{message}{hint}; it may belong to a plugin that is broken:\n{traces}")
        if hint := self._kind(name) or self.family(name) or self._versions(name):
            return UsageError(message + hint)
        files = f"; your own {what} needs --plugin FILE.py" if what in KINDS else ""
        return UsageError(f"{message}{did_you_mean(name, known)}; see `robflat-bench list {what}s`{files}")

    def _kind(self, name: str) -> str:
        """`: it is an attack; type ...` for a name of another kind."""
        kind = next((kind for kind in KINDS if name in self._offers[kind]), None)
        if kind is None:
            return ""
        article = "an" if kind == "attack" else "a"
        return f": it is {article} {kind}; type `robflat-bench {USES[kind].format(name=name)}`"

    def family(self, name: str) -> str:
        """`: it is a family of measures, ...` for a family's name; else the empty string."""
        members = [offer.info.name for offer in self.offers("measure") if name in offer.info.factory.split(".")[:-1]]
        return f": it is a family of measures; name one: {', '.join(members)}" if members else ""

    def _versions(self, name: str) -> str:
        """`; type NAME for the version in force, or NAME@1.0` for NAME@VERSION of a protocol with other versions."""
        own, at, _ = name.partition("@")
        known = sorted(each for each in self._protocols if at and each.partition("@")[0] == own)
        told = [f"{own} for the version in force" if each == own else each for each in known]
        return f"; type {', or '.join(told)}" if told else ""

    def parameters(self, kind: Kind, name: str) -> list[str]:
        """The names of a component's parameters; none where nobody offers it."""
        offers = self._offers[kind].get(name, [])
        return [*offers[0].info.params.model_fields] if offers else []

    def offers(self, *kinds: Kind) -> list[Offer]:
        """Every component of these kinds (default: of all), by name; names that two plugins offer occur twice."""
        return [
            offer for kind in kinds or KINDS for _, offers in sorted(self._offers[kind].items()) for offer in offers
        ]

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols that come with the package and its plugins, without earlier versions."""
        return sorted(name for name in self._protocols if "@" not in name)

    def has_protocol(self, name: str) -> bool:
        """Whether a protocol has this name, or an earlier version of one this NAME@VERSION."""
        return name in self._protocols

    def protocol(self, name: str) -> tuple[str, Provider]:
        """The TOML text of a protocol that it has, and the plugin it comes from; PluginError where two offer it."""
        ((file, provider), *others) = self._protocols[name]
        if others:
            raise _twice("protocol", name, [provider, *(other for _, other in others)])
        return file.read_text("utf-8"), provider

    def offered_protocols(self, distribution: str) -> list[str]:
        """Names of the protocols that a plugin offers, with earlier versions, sorted."""
        return sorted(
            name for name, files in self._protocols.items() for _, who in files if who.distribution == distribution
        )

    def protocol_file(self, name: str) -> Traversable:
        """The TOML file of a protocol that it has."""
        return self._protocols[name][0][0]

    def admit_protocol(self, name: str, file: Path | Traversable) -> None:
        """Let a file stand for the protocol of that name in this process, before every plugin's."""
        self._protocols[name] = [(file, Provider(file.name, "file", file.name.removesuffix(".toml")))]

    def duplicates(self) -> list[str]:
        """One line for each name that more than one plugin offers."""
        offered: dict[str, list[Provider]] = {}
        for offer in self.offers():
            offered.setdefault(f"{offer.info.kind} '{offer.info.name}'", []).append(offer.provider)
        for name, files in sorted(self._protocols.items()):
            offered[f"protocol '{name}'"] = [provider for _, provider in files]
        return [
            f"{name} is offered by {' and '.join(provider.distribution for provider in providers)}"
            for name, providers in offered.items()
            if len(providers) > 1
        ]


def _twice(kind: str, name: str, providers: Sequence[Provider]) -> PluginError:
    return PluginError(
        f"{kind} '{name}' is offered twice, by {' and '.join(map(str, providers))}; disable one: "
        f"ROBFLAT_BENCH_DISABLE_PLUGINS={providers[-1].distribution}"
    )


def _check_protocol(file: Any) -> None:
    if not re.fullmatch(rf"{_NAME}(@[0-9]+\.[0-9]+)?\.toml", getattr(file, "name", "")) or not file.is_file():
        files = "NAME.toml or NAME@VERSION.toml"
        raise TypeError(f"robflat_bench_protocols must return files called {files}, got {file!r}")


@functools.cache
def _row(kind: Kind) -> tuple[type[Info], TypeAdapter[Info]]:
    """The class of a kind's rows, and its validator: a dataclass alone does not check types."""
    row: type[Info] = getattr(infos, f"{kind.capitalize()}Info")
    return row, TypeAdapter(row)


def _check_row(kind: Kind, info: object) -> None:
    row, validator = _row(kind)
    if not isinstance(info, row):
        raise TypeError(f"robflat_bench_{kind}s must return {row.__name__} rows, got {info!r}")
    try:
        validator.validate_python(info)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TypeError(f"{kind} {info.name!r}: '{where}' = {first['input']!r:.100}: {first['msg']}") from None
    if not re.fullmatch(_NAME, info.name) or info.factory.count(":") != 1:
        raise ValueError(f"{kind} {info.name!r}: names are [a-z0-9-], factories 'module:attribute'")


def discover(files: tuple[Path, ...] = ()) -> Registry:
    """Load the installed plugins and the one-file plugins `files`, and collect what they offer."""
    return Registry(load_plugins(files))
