"""What tests share: no installed plugin, the command line in this process, fake distributions, a tiny protocol."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import REPOSITORY, TINY, Done, Finished, run_here
from helpers.distributions import Site
from hypothesis import settings

os.environ.pop("COLUMNS", None)  # the workers of pytest-xdist have it
os.environ["ROBFLAT_BENCH_JOBS"] = "1"  # tests of workers ask for them; elsewhere they would only take cores

settings.register_profile("robflat-bench", deadline=None)
settings.load_profile("robflat-bench")

# ---------------------------------------------------------------------------------------------------------
# Surroundings
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Numerics on one intra-op thread, as the laptop protocols compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def adversarially_trained():
    """`naive.adversarially_trained`, once; look, do not touch."""
    import torch
    from helpers import naive

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = naive.adversarially_trained()
    torch.set_num_threads(threads)
    return model


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts even where the shell started the tests with SIGINT ignored, as it does in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """No plugin but the built-in ones, no network, no data folder: whatever this machine has installed. The same global
    random state, whatever ran before (tests are dealt out to processes anew each time)."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    monkeypatch.setenv("ROBFLAT_BENCH_PLUGINS", "")
    monkeypatch.delenv("ROBFLAT_BENCH_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("ROBFLAT_BENCH_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def registry():
    """The built-in components."""
    from robflat_bench.registry.registry import discover

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        return discover()


# ---------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def command() -> Callable[..., Done]:
    """`command("list", "methods")` -> Done."""
    return run_here


@pytest.fixture(scope="session")
def child_environment() -> Callable[..., dict[str, str]]:
    """Environment of a child process: this package and `folders` importable, no plugin unless named."""

    def environment(*folders: Path, plugins: str = "") -> dict[str, str]:
        path = os.pathsep.join(map(str, [*folders, REPOSITORY]))
        return {**os.environ, "PYTHONPATH": path, "ROBFLAT_BENCH_PLUGINS": plugins, "HF_HUB_OFFLINE": "1"}

    return environment


# ---------------------------------------------------------------------------------------------------------
# A tiny run
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A protocol file under which a run takes about a second."""
    path = tmp_path_factory.mktemp("protocol") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Finished:
    """Look, do not touch: `finished_copy` is for that."""
    store = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        done = run_here("run", "--method", "at", "--protocol", tiny, "--store", store)
    assert done.code == 0, done.err
    (folder,) = store.glob("tiny/at/seed-1-*")
    return Finished(store, folder, done)


@pytest.fixture
def finished_copy(finished, tmp_path) -> Finished:
    """The same run in a store of the test's own."""
    store = tmp_path / "store"
    shutil.copytree(finished.store, store)
    return Finished(store, store / finished.folder.relative_to(finished.store), finished.done)


# ---------------------------------------------------------------------------------------------------------
# Fake plugin distributions
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_site(tmp_path, monkeypatch) -> Iterator[Callable[[str], Site]]:
    """`make_site("a")`: an empty folder for distributions, in front of sys.path until the test ends."""
    made: list[Site] = []

    def make(name: str = "site") -> Site:
        made.append(Site(tmp_path / name, monkeypatch))
        return made[-1]

    yield make
    for site in made:
        site.forget()


@pytest.fixture
def site(make_site) -> Site:
    return make_site()
