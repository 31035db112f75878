"""What a call needs before it works: the registry, the protocol, the data, a store, a device and an observer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robflat_bench.core import Observer, PluginError, UsageError
from robflat_bench.front.text import note

if TYPE_CHECKING:
    from robflat_bench.config.protocol import Protocol
    from robflat_bench.data.splits import Splits
    from robflat_bench.evaluation.session import Session
    from robflat_bench.registry.plugins import Plugins
    from robflat_bench.registry.registry import Registry

Normalization = tuple[Any, Any]
"""Mean and standard deviation of images in [0,1]: a number for each channel, or one for all."""


def several(given: Any) -> tuple[Any, ...]:
    """A tuple of what was given; one text or path is a tuple of one."""
    return (given,) if isinstance(given, str | Path) else tuple(given)


def statistics(normalize: Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, empty without any; UsageError where these are no such pair."""
    import numpy as np

    if normalize is None:
        return (), ()
    try:
        mean, std = (tuple(map(float, np.ravel(np.asarray(part)))) for part in normalize)
    except (TypeError, ValueError, RuntimeError):
        usual = "((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))"
        raise UsageError(f"normalize={normalize!r:.100} is no pair (mean, std); give CIFAR-10's as {usual}") from None
    return mean, std


def open_registry(plugins: Sequence[str | Path] = ()) -> Registry:
    """The registry with the one-file plugins `plugins`; every broken installed plugin is a line on stderr.

    Raises
    ------
    PluginError
        One of `plugins` is broken: what the user named must work.
    """
    from robflat_bench.registry.registry import discover

    found = discover(tuple(map(Path, several(plugins))))
    for broken in found.plugins.broken:
        if broken.version == "file":
            raise PluginError(f"{broken}; mend it, then type `robflat-bench plugin check {broken.distribution}`")
    note_broken(found.plugins)
    return found


def note_broken(plugins: Plugins) -> None:
    """One line on stderr for every broken plugin."""
    for broken in plugins.broken:
        note(f"{broken}; `robflat-bench plugin list` shows all")


def open_session(
    registry: Registry,
    protocol: str | Protocol = "digits-linf",
    settings: Sequence[str] | Mapping[str, Any] = (),
    data: str | Path | Splits | None = None,
    store: str | Path = "runs",
    device: str = "auto",
    compile: bool = False,
    keep_every: int = 0,
    observer: Observer | None = None,
    trains: str = "",
    jobs: int | None = 1,
) -> Session:
    """A session under a protocol; mistakes in its name and settings are reported before torch is imported.

    Parameters
    ----------
    protocol : str or Protocol
        Name or TOML file of a protocol, or one that is loaded, which `settings` do not change.
    settings : sequence of str, or mapping
        As after `--set`: ("recipe.epochs=3",) or {"recipe.epochs": 3}.
    data : str, Path, Splits or None
        Folder of the data sets, None for the usual places, or the examples themselves (`data.own.own_splits`).
    trains : str
        What it trains, for the observer; "" if nothing. Then the store and the protocol's data are looked for before
        torch is imported.
    jobs : int or None
        Processes that evaluate; None: the number in ROBFLAT_BENCH_JOBS, else as in `workers.processes`.
    """
    from robflat_bench.config.protocol import load

    chosen = load(registry, protocol, written(settings)) if isinstance(protocol, str) else protocol
    jobs = _jobs(jobs, compile)
    if trains:
        require_places(registry, chosen, Path(store), data)
        if observer:
            observer.begins(f"{trains}, under {chosen.name} {chosen.version}; device {device}, store {store}")

    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.numerics.compilation import Compilation
    from robflat_bench.records.store import Store

    place, observer = choose_device(device), observer or Observer()
    compilation = Compilation(place, observer.note) if compile else None
    return Session(
        registry,
        chosen,
        str(data) if isinstance(data, Path) else data,
        Store(Path(store)),
        place,
        observer,
        keep_every,
        compilation,
        jobs,
    )


def _jobs(given: Any, compile: bool) -> int | None:
    """The number of processes that is asked for, here or by the environment; UsageError where it is none."""
    name, value = ("jobs", given) if given is not None else ("ROBFLAT_BENCH_JOBS", os.environ.get("ROBFLAT_BENCH_JOBS"))
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,3}", str(value)):
        raise UsageError(f"{name}={value!r:.50} is no number of processes; give 1 or more")
    if compile and given and int(value) > 1:
        raise UsageError(f"--jobs {value}: one process evaluates compiled networks; leave out --jobs or --compile")
    return 1 if compile else int(value)


def require_places(registry: Registry, protocol: Protocol, store: Path, data: Any) -> None:
    """Find, before torch is imported, that a store cannot be made or that a protocol's dataset is nowhere.

    A store that exists may be read-only, for its finished runs are only shown. No image is read.

    Raises
    ------
    UsageError
        What is wrong with the place, and the option that names another.
    """
    from robflat_bench.registry.components import resolve
    from robflat_bench.registry.faults import faults

    place = next(place for place in (store, *store.absolute().parents) if place.exists())
    if not place.is_dir():
        raise UsageError(f"cannot write {store}: {place} is not a folder; choose another folder with --store DIR")
    if place != store and not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {store}: {place} is read-only; choose another folder with --store DIR")
    if data is None or isinstance(data, str | Path):
        with faults(registry):
            dataset = resolve(registry, "dataset", protocol.fixed.data.dataset).build()
            dataset.sources(None if data is None else str(data))


def written(settings: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as after `--set`."""
    if not isinstance(settings, Mapping):
        return several(settings)
    return tuple(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items())


def chosen_observer(progress: bool) -> AbstractContextManager[Observer]:
    """The observer of a call, as a context: bars and lines, or nothing."""
    if not progress:
        return nullcontext(Observer())
    from robflat_bench.front.progress import Progress

    return Progress()
