"""Minimum-norm attacks are held to the closed form of a linear classifier; what misses it is not offered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robflat_attacks.adapters import Advlib, advlib
from robflat_attacks.tables import ADVLIB, FOOLBOX
from robflat_bench.api import NORMS, Examples, Threat
from robflat_bench.registry.components import resolve

# What foolbox 3.3.4 imports, SciPy means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
TABLES = {"foolbox": FOOLBOX, "advlib": ADVLIB}
MISSING = [
    ("foolbox", "L2FMNAttack", "l2"),
    ("advlib", "fmn", "l2"),
    ("advlib", "tr", "l2"),
]
MINIMAL = [
    ("foolbox", "LInfFMNAttack", "linf"),
    ("foolbox", "LinfDeepFoolAttack", "linf"),
    ("foolbox", "L2DeepFoolAttack", "l2"),
    ("foolbox", "DDNAttack", "l2"),
    ("foolbox", "L1FMNAttack", "l1"),
    *(("advlib", name, norm) for name, entry in ADVLIB.items() for norm in entry.norms),
]


def least(w: torch.Tensor, room: torch.Tensor, margin: float, norm: str) -> float:
    """The least norm of a step that lowers a margin by `margin`. w: how much each pixel lowers it [D], at least 0.
    room: how far each pixel can move that way [D]."""
    if norm == "l1":  # the pixels that lower it most go first, to their end
        order = w.argsort(descending=True)
        w, room = w[order], room[order]
        gained = torch.cat([torch.zeros(1).double(), (w * room).cumsum(0)])
        k = int((gained[1:] < margin).sum())
        return float(room[:k].sum() + (margin - gained[k]) / w[k])
    shape = w if norm == "l2" else torch.ones_like(w)  # every pixel moves by `reach` times this, or to its end
    low, high = 0.0, 1e6
    for _ in range(100):
        reach = (low + high) / 2
        low, high = (reach, high) if (w * (reach * shape).clamp(max=room)).sum() < margin else (low, reach)
    return float(NORMS[norm].size((high * shape).clamp(max=room)[None]))


def near_planes(spread: float, classes: int = 2) -> tuple[nn.Module, Examples]:
    """A linear classifier and 24 images of 3x8x8, 0.15 to 1.5 (l2) from the nearest other class, within `spread` of
    grey: where that is 0.3, the box is far, where it is 1, it binds."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()
        x = 0.5 + spread * (torch.rand(1000, 3, 8, 8) - 0.5)
        towards = model[1].weight[torch.randint(classes, (1000,))].sign().reshape(-1, 3, 8, 8)
        x = (x + 0.3 * spread * torch.rand(1000, 1, 1, 1) * towards).clamp(0, 1)
        y = model(x).argmax(1)
    distance = torch.tensor([minimum(model, *pair, "l2") for pair in zip(x[:200], y, strict=False)])
    chosen = ((distance > 0.15) & (distance < 1.5)).nonzero()[:24, 0]
    return model, Examples(x[chosen], y[chosen], chosen)


def minimum(model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> float:
    """The least norm of a step inside the box that takes an image [C,H,W] of class y to another class."""
    with torch.no_grad():
        logits, weight, x = model(x[None])[0].double(), model[1].weight.double(), x.flatten().double()
    away = [(logits[y] - logits[k], weight[k] - weight[y]) for k in range(len(logits)) if k != y]
    return min(least(w.abs(), torch.where(w > 0, 1 - x, x), float(margin), norm) for margin, w in away)


def near_the_minimum(model: nn.Module, examples: Examples, x_adv: torch.Tensor, norm: str) -> float:
    """The share of images that are broken by at most 1.1 times the least step; none is broken by less than that."""
    with torch.no_grad():
        broken = model(x_adv).argmax(1) != examples.y
    needed = torch.tensor([minimum(model, x, y, norm) for x, y in zip(examples.x, examples.y, strict=True)])
    ratio = NORMS[norm].size(x_adv - examples.x) / needed
    assert (ratio[broken] > 0.999).all()
    return float((broken & (ratio <= 1.1)).double().mean())


@pytest.mark.parametrize(("spread", "share"), [(0.3, 1.0), (1.0, 0.9)], ids=["inside", "box"])
@pytest.mark.parametrize(("library", "name", "norm"), MINIMAL)
def test_a_minimum_norm_attack_finds_the_minimum(registry, library, name, norm, spread, share):
    """Within a tenth, for every image inside the box, and for nine of ten where the box binds."""
    model, examples = near_planes(spread)
    steps = ", steps=100" if name == "fmn" else ""
    chosen = resolve(registry, "attack", f"{library}(name={name}{steps})").build(Threat(100.0, norm))
    x_adv = chosen.perturb(model, examples, 0)
    assert len(examples.x) == 24
    assert near_the_minimum(model, examples, x_adv, norm) >= share


@pytest.mark.parametrize(("library", "name", "norm"), MISSING)
def test_what_misses_the_minimum_is_not_offered(library, name, norm):
    """foolbox 3.3.4 never projects the step of its FMN under l2; that of adv-lib 0.2.8 stalls at the box, and its tr
    takes a hundred steps of at most 0.001."""
    import foolbox

    model, examples = near_planes(1.0)
    if library == "foolbox":
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, x_adv, _ = getattr(foolbox.attacks, name)()(wrapped, examples.x, examples.y, epsilons=100.0)
    else:
        steps = {"fmn": {"norm": Advlib.norms[norm], "steps": 100}, "tr": {"p": Advlib.norms[norm]}}[name]
        x_adv = getattr(advlib(), name)(model, examples.x, examples.y, **steps)
    assert near_the_minimum(model, examples, x_adv.detach(), norm) < 0.9
    assert norm not in getattr(TABLES[library].get(name), "norms", ())


@pytest.mark.parametrize(
    ("text", "close"),
    [
        ("advlib(name=ddn)", False),
        ("foolbox(name=DDNAttack)", False),
        ("advlib(name=sdf)", True),
        ("advlib(name=fab)", True),
        ("foolbox(name=L2DeepFoolAttack)", True),
    ],
)
def test_ddn_stays_above_the_minimum_of_ten_classes_of_nearly_equal_logits(registry, text, close):
    """The gradient of the cross-entropy points between the classes; the others look at the nearest one."""
    model, examples = near_planes(0.3, classes=10)
    x_adv = resolve(registry, "attack", text).build(Threat(100.0, "l2")).perturb(model, examples, 0)
    assert near_the_minimum(model, examples, x_adv, "l2") == (1.0 if close else 0.0)
