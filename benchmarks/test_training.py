"""One training step with a PGD attack, ours against textbook loops: AT, and TRADES in two textbook idioms.

`textbook` takes `loss.backward()` in its attack, `released` the images' gradient alone, as TRADES' released code does;
both compute the clean prediction anew in each attack step. They keep the last iterate; ours keeps the best, for one
forward pass more, and is compared with both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import rivals
import torch
from limit import Limit
from race import Board, clock, race, replay
from subject import EPSILON, SHAPE, SMOOTH, STEP, Settings, bfloat16, examples, network, no_bfloat16
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.core import Batch, Examples, Training
from robflat_bench.core.randomness import generator, normal_like, uniform_like
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import discover
from robflat_bench.training.composition import Composition

START = {"at": "uniform", "trades": "normal"}
RADIUS = {"at": EPSILON, "trades": 1e-3}
NOISE = {"at": uniform_like, "trades": normal_like}
ATTACK = {"at": rivals.at_attack, "trades": rivals.trades_attack}
LOSS = {"at": rivals.at_loss, "trades": rivals.trades_loss}
IDIOMS: dict[tuple[str, str], dict[str, Any]] = {
    ("at", "textbook"): {},
    ("trades", "textbook"): {},
    ("trades", "released"): {"backward": False},
}
# Forward passes, backward passes to the images, and to the weights, of ours at T attack steps.
PASSES: dict[str, Callable[[int], dict[str, int]]] = {
    "at": lambda steps: {"forward": steps + 2, "inputs": steps, "outer": 1},
    "trades": lambda steps: {"forward": steps + 4, "inputs": steps, "outer": 2},
}


def optimizer_of(model: nn.Module, rate: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)


class Given(TrainingAttack):
    """These images, whatever the loss."""

    def __init__(self, x_adv: Tensor) -> None:
        super().__init__(epsilon=EPSILON, step=STEP, steps=1, start="zero", bn="eval", source=generator())
        self.x_adv = x_adv

    def __call__(self, model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        return self.x_adv


@dataclass
class Ours:
    """A method on a network of its own; each call is one step."""

    method: str
    model: nn.Module
    here: Examples
    steps: int
    reduced: bool = False
    last: bool = False
    """Keep the last iterate, as textbooks do."""

    def __post_init__(self) -> None:
        x, y = self.here.x, self.here.y
        target = nn.functional.one_hot(y, SHAPE.classes).to(x)
        self.batch = Batch(self.here.index, x, y, target, torch.ones(len(y), dtype=x.dtype))
        self.composition = Composition(compose(discover(), self.method))
        self.composition.setup(
            Training(self.model, SHAPE, len(y), EPSILON, {}, lambda: iter([]), lambda: torch.zeros(0))
        )
        self.optimizer = optimizer_of(self.model)

    def __call__(self, step: int = 0, inner: TrainingAttack | None = None) -> None:
        start: Any = START[self.method]
        inner = inner or TrainingAttack(
            epsilon=EPSILON, step=STEP, steps=self.steps, start=start, bn="eval", source=generator("start", step)
        )
        if self.last:
            inner = inner.until(lambda: lambda logits: torch.ones(len(logits), dtype=torch.bool))
        with bfloat16(self.model) if self.reduced else nullcontext():
            self.composition.update(self.model, self.batch, inner, self.optimizer)


@dataclass
class Textbook:
    """The same in public idiom."""

    method: str
    model: nn.Module
    here: Examples
    steps: int
    how: dict[str, Any]

    def __post_init__(self) -> None:
        self.optimizer = optimizer_of(self.model)

    def attack(self, step: int) -> Tensor:
        x = self.here.x
        start = RADIUS[self.method] * NOISE[self.method](x, generator("start", step))
        budget = {"epsilon": EPSILON, "step": STEP, "steps": self.steps}
        return ATTACK[self.method](self.model, x, self.here.y, start, **budget, **self.how)

    def descend(self, x_adv: Tensor) -> None:
        rivals.descend(LOSS[self.method], self.model, self.optimizer, self.here.x, self.here.y, x_adv)

    def __call__(self, step: int = 0) -> None:
        self.descend(self.attack(step))


def states(a: nn.Module, b: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    other = b.state_dict()
    return ((tensor, other[name]) for name, tensor in a.state_dict().items() if tensor.is_floating_point())


@pytest.mark.parametrize("kept", ["last", "best"])
@pytest.mark.parametrize(("method", "idiom"), IDIOMS)
def test_twenty_steps_of_ours_are_those_of(method: str, idiom: str, kept: str, board: Board) -> None:
    """In float64, on a small network, with the iterate that the textbook keeps and with the one that we keep."""
    here = examples(4, 8, torch.float64)
    mine = Ours(method, network(4, ours=True, dtype=torch.float64), here, 3, last=kept == "last")
    how = {**IDIOMS[method, idiom], "best": kept == "best"}
    theirs = Textbook(method, network(4, ours=False, dtype=torch.float64), here, 3, how)
    for step in range(20):
        mine(step)
        theirs(step)
    apart = max(float((a - b).abs().max()) for a, b in states(mine.model, theirs.model))
    moved = max(float((a - b).abs().max()) for a, b in states(mine.model, network(4, ours=True, dtype=torch.float64)))
    board.check(
        f"{method} {idiom} float64, {kept}", "weights and statistics after 20 steps, largest difference", apart, 1e-10
    )
    board.check(f"{method} {idiom} float64, {kept}", "moved by, largest", moved)


@pytest.fixture(scope="module")
def here(settings: Settings) -> Examples:
    return examples(settings.width, settings.batch)


@pytest.fixture(scope="module")
def races(settings: Settings, here: Examples) -> Callable[[str], dict[str, Any]]:
    """Method -> times of all in turns."""
    known: dict[str, dict[str, Any]] = {}

    def times(method: str) -> dict[str, Any]:
        if method not in known:
            width, steps = settings.width, settings.steps
            work: dict[str, Callable[[], object]] = {"ours-fp32": Ours(method, network(width, ours=True), here, steps)}
            limits = {"limit-fp32": Limit(network(width, ours=True), here.x)}
            if not no_bfloat16():
                work["ours-bf16"] = Ours(method, network(width, ours=True), here, steps, reduced=True)
                limits["limit-bf16"] = Limit(network(width, ours=True), here.x, torch.bfloat16)
            for (of, idiom), how in IDIOMS.items():
                if of == method:
                    work[idiom] = Textbook(method, network(width, ours=False), here, steps, how)
            known[method] = race({**work, **limits}, settings.rounds) | limits
        return known[method]

    return times


def one_step(
    method: str, idiom: str, settings: Settings, here: Examples, activation: str, *, reduced: bool = False
) -> dict[str, float]:
    """Relative differences after one step from identical weights and images: of a tensor at most, of all moves."""

    def net(*, ours: bool) -> nn.Module:
        return network(settings.width, ours=ours, activation=activation)

    theirs = Textbook(method, net(ours=False), here, settings.steps, IDIOMS[method, idiom])
    x_adv = theirs.attack(0)
    theirs.descend(x_adv)
    mine = Ours(method, net(ours=True), here, settings.steps, reduced=reduced)
    begun = copy.deepcopy(mine.model)
    mine(inner=Given(x_adv))
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    each = [float(norm(a - b) / norm(b).clamp(min=1e-12)) for a, b in states(mine.model, theirs.model)]
    networks = [list(network.parameters()) for network in (mine.model, theirs.model, begun.requires_grad_(False))]
    pairs = [(a.detach(), b.detach(), c) for a, b, c in zip(*networks, strict=True)]
    apart = torch.stack([norm(a - b) for a, b, _ in pairs]).square().sum().sqrt()
    moved = torch.stack([norm(b - c) for _, b, c in pairs]).square().sum().sqrt()
    return {"tensors": max(each), "update": float(apart / moved)}


def _versus(method: str, idiom: str) -> Callable[..., None]:
    @pytest.mark.benchmark(timer=clock, group=f"{method} step vs {idiom}")
    @pytest.mark.parametrize("who", ["ours-fp32", "ours-bf16", idiom])
    def test(who, settings, board, here, races, benchmark) -> None:  # type: ignore[no-untyped-def]
        if who == "ours-bf16" and (reason := no_bfloat16()):
            pytest.skip(reason)
        name = f"{method} step vs {idiom} [{who}]"
        if who.startswith("ours"):
            reduced = who == "ours-bf16"
            for activation in (SMOOTH, "relu"):
                bound = 1e-4 if activation == SMOOTH and not reduced else None
                differences = one_step(method, idiom, settings, here, activation, reduced=reduced)
                for what, value in differences.items():
                    board.check(name, f"one step, {activation}, {what}, relative", value, bound)
        times = races(method)
        if who.startswith("ours"):
            limit = times[who.replace("ours", "limit")].seconds(**PASSES[method](settings.steps))
            benchmark.extra_info.update(board.ratio(name, times[who], times[idiom], limit))
        replay(benchmark, times[who])

    return test


test_at_step_ours_vs_textbook = _versus("at", "textbook")
test_trades_step_ours_vs_textbook = _versus("trades", "textbook")
test_trades_step_ours_vs_released = _versus("trades", "released")
