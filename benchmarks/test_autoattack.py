"""AutoAttack: our adapter against `pyautoattack` called directly, same seed and batch, on two networks.

Flags are compared on digits, where a small adversarially trained network leaves examples standing after each stage;
times on ResNet-18. Budgets are a small part of AutoAttack's own, for both alike: what a pass costs does not depend on
how many there are. `fast` folds the network, which rounds differently: its flags may differ; each that does is named.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyautoattack
import pytest
import rivals
import torch
from race import Board, clock, race, replay
from subject import EPSILON, Settings, examples, network
from torch import Tensor, nn

from robflat_bench.attacks.autoattack import VERSIONS, AutoAttack, AutoAttackParams
from robflat_bench.backbones.parts import initialize
from robflat_bench.core import Examples, ImageShape, Threat, Workspace
from robflat_bench.core.randomness import generator, uniform_like
from robflat_bench.data.digits import load_digits
from robflat_bench.evaluation.model import layout
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover

DIGITS = ImageShape(1, 8, 10, (0.3,), (0.4,))
SEED = 0
PATHS = {"plain": {"fast": False}, "fast": {"fast": True}}
Original = pyautoattack.AutoAttack


@pytest.fixture(scope="module")
def stages(settings: Settings) -> Any:
    """Both sides meet the original with a small budget, whose stages are timed: stage -> seconds since cleared."""
    spent: dict[str, float] = defaultdict(float)

    class Brief(Original):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            count = settings.aa_iterations
            for apgd in (self.apgd, self.apgd_targeted):
                apgd.n_iter = apgd.n_iter_orig = count
                apgd.n_iter_2, apgd.n_iter_min = max(int(0.22 * count), 1), max(int(0.06 * count), 1)
                apgd.size_decr = max(int(0.03 * count), 1)
            self.fab.n_iter, self.square.n_queries = count, settings.aa_queries
            self.apgd_targeted.n_target_classes = self.fab.n_target_classes = settings.aa_targets
            self.logger = logging.getLogger("robflat_bench.autoattack")
            attacks = {"apgd-ce": self.apgd, "apgd-t": self.apgd_targeted, "fab-t": self.fab, "square": self.square}
            for stage, attack in attacks.items():
                attack.perturb = partial(self._timed, stage, attack.perturb)

        def _timed(self, stage: str, perturb: Callable[..., Tensor], *args: Any) -> Tensor:
            began = time.perf_counter()
            found = perturb(*args)
            spent[stage] += time.perf_counter() - began
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyautoattack, "AutoAttack", Brief)
        yield spent


def ours(model: nn.Module, here: Examples, version: str, path: str, epsilon: float, batch: int) -> Tensor:
    params = AutoAttackParams(version=version, batch=batch, seed=SEED, **PATHS[path])
    return AutoAttack(params, Threat(epsilon)).run(model, here, Workspace())


def direct(model: nn.Module, here: Examples, version: str, epsilon: float, batch: int) -> Tensor:
    """As its documentation says."""
    with torch.random.fork_rng():
        suite = pyautoattack.AutoAttack(model, norm="Linf", eps=epsilon, seed=SEED, device="cpu")
        suite.attacks_to_run = list(VERSIONS[version])
        x_adv, _ = suite.run_standard_evaluation(here.x, here.y, batch_size=batch)
    return x_adv


def broken(model: nn.Module, here: Examples, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != here.y


# ---------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------


@lru_cache
def digits(count: int) -> tuple[nn.Module, Examples]:
    """A small network after some steps of adversarial training, and digits that it did not see."""
    pool = load_digits().pools["train"]
    x = torch.from_numpy(pool.x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    y = torch.from_numpy(pool.y.astype(np.int64))
    model = resolve(discover(), "backbone", "resnet8(width=8)").build(DIGITS, "relu")
    initialize(model, generator("benchmark digits"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        rows = count + torch.randint(len(y) - count, (64,), generator=generator("rows", step))
        start = 0.1 * uniform_like(x[rows], generator("start", step))
        x_adv = rivals.at_attack(model, x[rows], y[rows], start, epsilon=0.1, step=0.05, steps=3)
        rivals.descend(rivals.at_loss, model, optimizer, x[rows], y[rows], x_adv)
    return model.eval(), Examples(x[:count], y[:count], torch.arange(count))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("version", VERSIONS)
def test_autoattack_flags(version: str, path: str, settings: Settings, board: Board, stages: Any) -> None:
    """Identical on the plain path; on the fast path at most one in 200, each named."""
    model, here = digits(settings.aa_examples)
    model = model.to(memory_format=torch.contiguous_format)  # as called directly: another layout rounds differently
    mine = broken(model, here, ours(model, here, version, path, 0.1, 250))
    theirs = broken(model, here, direct(model, here, version, 0.1, 250))
    differing = (mine != theirs).nonzero()[:, 0].tolist()
    name = f"autoattack {version}, {path}, {len(here)} digits"
    if differing:
        board.table(f"flags that differ: {name}", [{"index": i, "ours": bool(mine[i])} for i in differing])
    board.check(name, "broken, fraction", float(theirs.double().mean()))
    board.check(name, "flags that differ, fraction", len(differing) / len(here), 0.005 if path == "fast" else 0)


# ---------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def races(settings: Settings, stages: Any) -> Callable[[str], dict[str, list[float]]]:
    """version -> times, of the whole and of each stage ("ours-plain apgd-t")."""
    known: dict[str, dict[str, list[float]]] = {}

    def times(version: str) -> dict[str, list[float]]:
        if version not in known:
            here = examples(settings.width, settings.batch)
            rival, model = network(settings.width, ours=False), network(settings.width, ours=True)
            assert layout(model) is torch.channels_last
            work: dict[str, Callable[[], object]] = {
                f"ours-{path}": partial(ours, model, here, version, path, STANDING, settings.batch) for path in PATHS
            }
            work["pyautoattack"] = partial(direct, rival, here, version, STANDING, settings.batch)
            parts: dict[str, list[float]] = defaultdict(list)

            def noted(name: str, run: Callable[[], object]) -> None:
                stages.clear()
                run()
                for stage in VERSIONS[version]:
                    parts[f"{name} {stage}"].append(stages[stage])

            whole = race({name: partial(noted, name, run) for name, run in work.items()}, settings.rounds)
            known[version] = whole | {name: values[1:] for name, values in parts.items()}  # without the warm-up
        return known[version]

    return times


STANDING = EPSILON / 256
"""Radius of the timed runs: small enough that random weights leave examples standing for every stage."""


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("who", ["ours-plain", "ours-fast", "pyautoattack"])
def test_autoattack_ours_vs_pyautoattack(
    who: str, version: str, board: Board, races: Callable[[str], dict[str, list[float]]], benchmark: Any
) -> None:
    times = races(version)
    if who != "pyautoattack":
        name = f"autoattack {version} vs pyautoattack [{who}]"
        benchmark.extra_info.update(board.ratio(name, times[who], times["pyautoattack"]))
        for stage in VERSIONS[version]:
            mine, theirs = times[f"{who} {stage}"], times[f"pyautoattack {stage}"]
            if min(*mine, *theirs) > 0:  # else nothing was left standing for this stage
                board.ratio(f"{name}: {stage}", mine, theirs)
    replay(benchmark, times[who])
