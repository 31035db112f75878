"""Name -> component: what every plugin offers, found by kind and name, loaded when first used."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import importlib
import io
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from robflat_bench.base import Info, Kind, PluginError, UsageError
from robflat_bench.plugins import Broken, Plugins, Provider, load

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
            with contextlib.redirect_stdout(io.StringIO()):
                if self.provider.version == "file" and self.provider.module is not None:
                    return getattr(self.provider.module, attribute)
                return getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.info.kind} '{self.info.name}' of {self.provider.distribution} "
                f"{self.provider.version} cannot be loaded: {type(error).__name__}: {error}\n"
                f"{traceback.format_exc()}"
            ) from error


class Registry:
    """All offers by kind and name. A name offered twice is unusable until one distribution is disabled."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self._offers: dict[Kind, dict[str, list[Offer]]] = {kind: {} for kind in KINDS}
        for kind in KINDS:
            caller = getattr(plugins.manager.hook, f"robflat_bench_{kind}s")
            for implementation in caller.get_hookimpls():
                provider = plugins.providers[implementation.plugin]
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        rows = list(implementation.function())
                        for info in rows:
                            _check_row(info, kind)
                except (Exception, SystemExit) as error:
                    plugins.broken.append(
                        Broken(
                            provider.distribution,
                            provider.version,
                            provider.entry_point,
                            f"{type(error).__name__}: {error}".splitlines()[0],
                            traceback.format_exc(),
                        )
                    )
                    continue
                for info in rows:
                    self.add(info, provider)

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
            both = " and ".join(f"{offer.provider.distribution} {offer.provider.version}" for offer in offers)
            raise PluginError(
                f"{kind} '{name}' is offered twice, by {both}; disable one: "
                f"ROBFLAT_BENCH_DISABLE_PLUGINS={offers[-1].provider.distribution}"
            )
        message = f"unknown {kind} '{name}'" + did_you_mean(name, self._offers[kind])
        if self.plugins.broken:
            traces = "\n".join(f"{broken}\n{broken.trace}" for broken in self.plugins.broken)
            raise PluginError(f"{message}; it may belong to a plugin that is broken:\n{traces}")
        raise UsageError(f"{message}; see `robflat-bench list {kind}s`")

    def offers(self, kind: Kind) -> list[Offer]:
        """Every offer of a kind, duplicates included, by name."""
        return [offer for _, offers in sorted(self._offers[kind].items()) for offer in offers]

    def duplicates(self) -> list[str]:
        """One line for each name that more than one plugin offers."""
        return [
            f"{kind} '{name}' is offered by " + " and ".join(offer.provider.distribution for offer in offers)
            for kind in KINDS
            for name, offers in sorted(self._offers[kind].items())
            if len(offers) > 1
        ]


def _check_row(info: object, kind: Kind) -> None:
    if not isinstance(info, Info) or info.kind != kind:
        raise TypeError(f"robflat_bench_{kind}s must return {kind.capitalize()}Info rows, got {info!r}")
    if not re.fullmatch(_NAME, info.name) or info.factory.count(":") != 1:
        raise ValueError(f"{kind} {info.name!r}: names are [a-z0-9-], factories 'module:attribute'")


def did_you_mean(name: str, known: Any) -> str:
    """`; did you mean 'trades'?` or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def discover(files: tuple[Path, ...] = ()) -> Registry:
    """The registry of this process: plugins loaded, offers collected."""
    return Registry(load(files))
