"""PGD on the l-inf ball, from the images themselves: ours against torchattacks, foolbox and a textbook loop.

Ours returns each example's best iterate and its loss, for one forward pass more than a rival, which returns the last
one. Equality is of every iterate, as the network meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from limit import Limit
from race import Board, clock, race, replay
from rivals import Attack, foolbox_pgd, textbook_pgd, torchattacks_pgd
from subject import EPSILON, SMOOTH, STEP, Settings, bfloat16, examples, network, no_bfloat16
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Threat

RIVALS: dict[str, Callable[[float, float, int], Attack]] = {
    "torchattacks": torchattacks_pgd,
    "torchattacks-channels-last": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "textbook": textbook_pgd,
}
NEAR = EPSILON / 256
"""A radius at which random weights leave some images standing, so that flags can differ; at EPSILON none is left."""
SMALL = 4
"""Width of the network on which float64 is compared."""
FACTOR, FLOOR = 4, 1e-5
"""In float32 the mean loss may be off by FACTOR standard errors, or by FLOOR: a rival differs from itself at each image
by a random amount once its network is laid out another way (channels last or not), and the mean of that many random
amounts lies beyond four standard errors once in 16,000 runs; a hundred roundings are 1e-5."""


def ours(model: nn.Module, here: Examples, steps: int, epsilon: float = EPSILON) -> Tensor:
    return PGD(PGDParams(steps=steps, step=epsilon / 4, init="zero"), Threat(epsilon)).maximise(model, here, 0).x


def ours_bfloat16(model: nn.Module, here: Examples, steps: int) -> Tensor:
    with bfloat16(model):
        return ours(model, here, steps)


def network_of(
    name: str, width: int, dtype: torch.dtype = torch.float32, activation: str = "relu", relaid: bool = False
) -> nn.Module:
    """relaid: channels last where the rival's is not, and the other way round."""
    return network(width, ours=name.endswith("channels-last") != relaid, dtype=dtype, activation=activation)


@contextmanager
def watched(model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The images that this network meets, and the gradients that reach them, whoever attacks it."""
    met: list[Tensor] = []
    gradients: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        met.append(inputs[0].detach().clone())
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: gradients.append(gradient.detach().clone()))

    handle = model.register_forward_pre_hook(note)
    try:
        yield met, gradients
    finally:
        handle.remove()


@cache
def followed(
    name: str,
    width: int,
    here: Examples,
    steps: int,
    activation: str = "relu",
    epsilon: float = EPSILON,
    relaid: bool = False,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Iterates 0..steps, the gradient at the first (up to a factor), and the images returned."""
    if name == "ours":
        model = network(width, ours=True, dtype=here.x.dtype, activation=activation)
        ours(model, here[:1], 1)  # looks once at how the network is built
        with watched(model) as (met, gradients):
            found = ours(model, here, steps, epsilon)
        return met[: steps + 1], gradients[0], found
    model = network_of(name, width, here.x.dtype, activation, relaid)
    with watched(model) as (met, gradients):
        found = RIVALS[name](epsilon, epsilon / 4, steps)(model, here.x, here.y)
    return [*met[:steps], found], gradients[0], found


def losses_of(model: nn.Module, here: Examples, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and whether misclassified, per example."""
    with torch.no_grad():
        logits = model(x)
    return F.cross_entropy(logits, here.y, reduction="none"), logits.argmax(1) != here.y


def best_of(model: nn.Module, here: Examples, iterates: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Per example the highest loss of all iterates, and whether it is misclassified there."""
    losses, errors = zip(*(losses_of(model, here, x) for x in iterates), strict=True)
    best = torch.stack(losses).max(0)
    return best.values, torch.stack(errors).gather(0, best.indices[None])[0]


def off(loss: Tensor, best: Tensor) -> float:
    """How far the mean of these losses is from that of `best`, relative to it."""
    return abs(float(loss.mean() / best.mean()) - 1)


def allowed(best: Tensor, again: Tensor) -> float:
    """The most that `off` may be; best, again: the losses [B] that a rival finds in each of both layouts."""
    error = (again - best).square().mean().sqrt() / (len(best) ** 0.5 * best.mean())
    return max(FACTOR * float(error), FLOOR)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / ||b|| of each row, whatever factor the rows of b have."""
    a, b = (part.flatten(1) / part.flatten(1).norm(dim=1, keepdim=True) for part in (a, b))
    return (a - b).norm(dim=1)


@pytest.mark.parametrize("rival", RIVALS)
def test_pgd_iterates_of_ours_are_those_of(rival: str, settings: Settings, board: Board) -> None:
    """In float64."""
    here = examples(SMALL, 8, torch.float64)
    mine, _, found = followed("ours", SMALL, here, settings.steps)
    theirs, _, _ = followed(rival, SMALL, here, settings.steps)
    farthest = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    board.check(f"pgd {rival} float64", f"largest difference in {settings.steps} steps", farthest, 1e-10)
    losses = torch.stack([losses_of(network(SMALL, ours=False, dtype=torch.float64), here, x)[0] for x in mine])
    kept = losses_of(network(SMALL, ours=False, dtype=torch.float64), here, found)[0]
    board.check(f"pgd {rival} float64", "best loss - that returned", float((losses.amax(0) - kept).abs().max()), 1e-10)


def test_an_attack_with_half_the_step_is_beyond_what_is_allowed(settings: Settings, here: Examples) -> None:
    """The bound of the mean loss can fail."""
    plain = network(settings.width, ours=False)
    best, again = (
        best_of(plain, here, followed("textbook", settings.width, here, settings.steps, relaid=relaid)[0])[0]
        for relaid in (False, True)
    )
    weaker = textbook_pgd(EPSILON, STEP / 2, settings.steps)(plain, here.x, here.y)
    assert off(losses_of(plain, here, weaker)[0], best) > allowed(best, again)


@pytest.fixture(scope="module")
def here(settings: Settings) -> Examples:
    return examples(settings.width, settings.batch)


@pytest.fixture(scope="module")
def times(settings: Settings, here: Examples) -> dict[str, Any]:
    """Of all in turns; "limit" and "limit-bf16" are limits."""
    model = network(settings.width, ours=True)
    work: dict[str, Callable[[], object]] = {"ours-fp32": partial(ours, model, here, settings.steps)}
    limits = {"limit-fp32": Limit(model, here.x)}
    if not no_bfloat16():
        work["ours-bf16"] = partial(ours_bfloat16, model, here, settings.steps)
        limits["limit-bf16"] = Limit(model, here.x, torch.bfloat16)
    for name, build in RIVALS.items():
        try:
            attack = build(EPSILON, STEP, settings.steps)
        except pytest.skip.Exception:
            continue
        work[name] = partial(attack, network_of(name, settings.width), here.x, here.y)
    return race({**work, **limits}, settings.rounds) | limits


def _versus(rival: str) -> Callable[..., None]:
    @pytest.mark.benchmark(timer=clock, group=f"pgd vs {rival}")
    @pytest.mark.parametrize("who", ["ours-fp32", "ours-bf16", rival])
    def test(who, settings, board, here, benchmark, request) -> None:  # type: ignore[no-untyped-def]
        if who == "ours-bf16" and (reason := no_bfloat16()):
            pytest.skip(reason)
        name, plain = f"pgd vs {rival} [{who}]", network(settings.width, ours=False)
        theirs, gradient, _ = followed(rival, settings.width, here, settings.steps)
        best, error = best_of(plain, here, theirs)
        if who == "ours-fp32":
            _, first, found = followed("ours", settings.width, here, settings.steps)
            board.check(name, "first gradient, relative, median example", float(apart(first, gradient).median()), 1e-4)
            board.check(name, "first gradient, relative, whole batch", float(apart(first[None], gradient[None])))
            smooth = [followed(of, settings.width, here, 1, SMOOTH)[1][None] for of in ("ours", rival)]
            board.check(name, "first gradient, relative, whole batch, SiLU", float(apart(*smooth)), 1e-4)
            loss, wrong = losses_of(plain, here, found)
            relaid, _, _ = followed(rival, settings.width, here, settings.steps, relaid=True)
            again, _ = best_of(plain, here, relaid)
            board.check(name, "mean loss of the rival in both layouts, relative", off(again, best))
            board.check(name, "mean loss, relative", off(loss, best), allowed(best, again))
            board.check(name, "flags that differ, fraction", float((wrong != error).double().mean()), 0.01)
            board.check(name, "misclassified, fraction", float(wrong.double().mean()))
            (_, _, found), (theirs, _, _) = (
                followed(of, settings.width, here, settings.steps, "relu", NEAR) for of in ("ours", rival)
            )
            wrong, (_, error) = losses_of(plain, here, found)[1], best_of(plain, here, theirs)
            board.check(name, "flags that differ, fraction, near", float((wrong != error).double().mean()), 0.01)
            board.check(name, "misclassified, fraction, near", float(wrong.double().mean()))
        elif who == "ours-bf16":
            loss, wrong = losses_of(
                plain, here, ours_bfloat16(network(settings.width, ours=True), here, settings.steps)
            )
            board.check(name, "mean loss over the rival's", float(loss.mean() / best.mean()))
            board.check(name, "misclassified, fraction", float(wrong.double().mean()))
        times = request.getfixturevalue("times")
        if who.startswith("ours"):
            limit = times[who.replace("ours", "limit")].seconds(forward=settings.steps + 1, inputs=settings.steps)
            benchmark.extra_info.update(board.ratio(name, times[who], times[rival], limit))
        replay(benchmark, times[who])

    return test


test_pgd_ours_vs_torchattacks = _versus("torchattacks")
test_pgd_ours_vs_torchattacks_channels_last = _versus("torchattacks-channels-last")
test_pgd_ours_vs_foolbox = _versus("foolbox")
test_pgd_ours_vs_textbook = _versus("textbook")
