"""Name -> component: what every plugin offers, found by kind and name, loaded when first used."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import importlib
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from robflat_bench.core import Info, Kind, PluginError, RobflatError, UsageError, infos
from robflat_bench.registry.plugins import Plugins, Provider, load

KINDS: tuple[Kind, ...] = get_args(Kind)
_NAME = r"[a-z0-9][a-z0-9-]*"


@dataclass(frozen=True)
class Offer:
    """One component as one plugin offers it."""

    info: Info
    provider: Provider

    def load(self) -> Any:
        """The class or function behind the row; PluginError with the traceback if its import fails."""
        module, _, attribute = self.info.factory.partition(":")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                if self.provider.version == "file" and self.provider.module is not None:
                    return getattr(self.provider.module, attribute)
                return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.info.kind} '{self.info.name}' of {self.provider} "
                f"cannot be loaded: {type(error).__name__}: {error}\n"
                f"{traceback.format_exc()}"
            ) from error

    @property
    def provenance(self) -> dict[str, str]:
        """Whose it is: distribution, version and, of a stranger's, the SHA-256 of what is behind it."""
        source = "" if self.provider.built_in else self.provider.source_hash(self.info.factory)
        return {"distribution": self.provider.distribution, "version": self.provider.version, "source": source}


class Registry:
    """All offers by kind and name, and all protocols. A name offered twice is unusable until one distribution is
    disabled."""

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
        """One more offer."""
        self._offers[info.kind].setdefault(info.name, []).append(Offer(info, provider))

    def names(self, kind: Kind, pattern: str = "*") -> list[str]:
        """Names of a kind that match a shell pattern, sorted."""
        return sorted(fnmatch.filter(self._offers[kind], pattern))

    def get(self, kind: Kind, name: str) -> Offer:
        """The one offer of that name; UsageError with a did-you-mean, PluginError for a duplicate or where
        the name may belong to a plugin that did not load."""
        offers = self._offers[kind].get(name, [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            raise _twice(kind, name, [offer.provider for offer in offers])
        raise self.unknown(kind, name, self._offers[kind])

    def unknown(self, what: str, name: str, known: Iterable[str]) -> RobflatError:
        """What is wrong with a name that nobody offers, with a did-you-mean; while a plugin is broken it may be its."""
        message = f"unknown {what} '{name}'" + did_you_mean(name, known)
        if self.plugins.broken:
            traces = "\n".join(f"{broken}\n{broken.trace}" for broken in self.plugins.broken)
            return PluginError(f"{message}; it may belong to a plugin that is broken:\n{traces}")
        return UsageError(f"{message}; see `robflat-bench list {what}s`")

    def offers(self, kind: Kind) -> list[Offer]:
        """Every offer of a kind, duplicates included, by name."""
        return [offer for _, offers in sorted(self._offers[kind].items()) for offer in offers]

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols that come with the package and its plugins."""
        return sorted(self._protocols)

    def protocol(self, name: str) -> tuple[str, Provider]:
        """The TOML text of one of `protocols`, and whose it is; PluginError where two offer the name."""
        ((file, provider), *others) = self._protocols[name]
        if others:
            raise _twice("protocol", name, [provider, *(other for _, other in others)])
        return file.read_text("utf-8"), provider

    def admit_protocol(self, name: str, file: Path) -> None:
        """The file is the protocol of that name for this session, whoever else offers it."""
        self._protocols[name] = [(file, Provider(file.name, "file", file.stem))]

    def duplicates(self) -> list[str]:
        """One line for each name that more than one plugin offers."""
        offered: list[tuple[str, str, list[Provider]]] = [
            (kind, name, [offer.provider for offer in offers])
            for kind in KINDS
            for name, offers in sorted(self._offers[kind].items())
        ]
        offered += [("protocol", name, [who for _, who in files]) for name, files in sorted(self._protocols.items())]
        return [
            f"{kind} '{name}' is offered by " + " and ".join(provider.distribution for provider in providers)
            for kind, name, providers in offered
            if len(providers) > 1
        ]


def _twice(kind: str, name: str, providers: Sequence[Provider]) -> PluginError:
    return PluginError(
        f"{kind} '{name}' is offered twice, by {' and '.join(map(str, providers))}; disable one: "
        f"ROBFLAT_BENCH_DISABLE_PLUGINS={providers[-1].distribution}"
    )


def _check_protocol(file: Any) -> None:
    if not re.fullmatch(rf"{_NAME}\.toml", getattr(file, "name", "")) or not file.is_file():
        raise TypeError(f"robflat_bench_protocols must return files called NAME.toml, got {file!r}")


@functools.cache
def _row(kind: Kind) -> tuple[type[Info], type[BaseModel]]:
    """The class of a kind's rows, and its annotations as a model: a dataclass alone checks none of its fields."""
    row: type[Info] = getattr(infos, f"{kind.capitalize()}Info")
    types = get_type_hints(row)
    annotated: dict[str, Any] = {field.name: (types[field.name], ...) for field in fields(row)}
    strict = ConfigDict(strict=True, revalidate_instances="always")
    return row, create_model(row.__name__, __config__=strict, **annotated)


def _check_row(kind: Kind, info: object) -> None:
    row, annotated = _row(kind)
    if not isinstance(info, row):
        raise TypeError(f"robflat_bench_{kind}s must return {row.__name__} rows, got {info!r}")
    try:
        annotated.model_validate(vars(info))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise TypeError(f"{kind} {info.name!r}: '{where}' = {first['input']!r:.100}: {first['msg']}") from None
    if not re.fullmatch(_NAME, info.name) or info.factory.count(":") != 1:
        raise ValueError(f"{kind} {info.name!r}: names are [a-z0-9-], factories 'module:attribute'")


def did_you_mean(name: str, known: Any) -> str:
    """`; did you mean 'trades'?` or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def discover(files: tuple[Path, ...] = ()) -> Registry:
    """The registry of this process: plugins loaded, offers collected."""
    return Registry(load(files))
