"""What tests share: no installed plugin, the command line in this process, fake distributions, a tiny protocol."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import robflat_bench
from robflat_bench.testing.tiny import tiny_protocol

settings.register_profile("robflat-bench", deadline=None)
settings.load_profile("robflat-bench")

REPOSITORY = Path(robflat_bench.__file__).parent.parent

TINY = tiny_protocol(
    epochs=2,
    train=20,
    more="""
[[fixed.attacks]]
attack = "fgsm"
test = 20
checkpoints = ["last"]

[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30

[[fixed.measures]]
measure = "worst-case(xi=0.03, steps=2, restarts=1)"
test = 30
checkpoints = ["last"]
""",
)


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
    import naive
    import torch

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


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The one line a bad input is answered with; nothing else was written."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("robflat-bench: ")
        return line


def run_here(*arguments: object) -> Done:
    """`robflat-bench ARGUMENTS` in this process, which keeps its thread count."""
    from robflat_bench.cli import main

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    sys.argv = ["robflat-bench", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, out.getvalue(), err.getvalue())


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


@dataclass(frozen=True)
class Finished:
    """A finished `run --method at` under the tiny protocol: its store, its folder and what the command wrote."""

    store: Path
    folder: Path
    done: Done

    @property
    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "record.json").read_text())
        return document

    @property
    def key(self) -> str:
        return self.folder.name.rpartition("-")[2]


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
        """Write the files and a dist-info whose entry points are `points` (name -> module), by default the one of
        `module`, by default the first file's."""
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
        """The next import reads the files again, as a new process would."""
        importlib.invalidate_caches()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]
        for cache in self.folder.rglob("__pycache__"):
            shutil.rmtree(cache)

    def imported(self, name: str) -> bool:
        return name in sys.modules


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
