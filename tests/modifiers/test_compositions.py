"""Methods with modifiers: grammar, allowed combinations, costs, and the order in which the parts act."""

from __future__ import annotations

import types

import pytest
import torch
from helpers.naive import COUNT, at, batch, inner, network, training
from hypothesis import given
from hypothesis import strategies as st

from robflat_bench.config.cost import formula, passes_per_image
from robflat_bench.core import EXCLUSIVE, Modifier, ModifierInfo, UsageError
from robflat_bench.methods import robflat_bench_methods
from robflat_bench.modifiers import robflat_bench_modifiers
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import compose
from robflat_bench.registry.plugins import Plugins, Provider
from robflat_bench.registry.registry import Registry, discover
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")

MODIFIERS = {info.name: info for info in robflat_bench_modifiers()}
METHODS = {info.name: info for info in robflat_bench_methods()}


# ---------------------------------------------------------------------------------------------------------
# Grammar
# ---------------------------------------------------------------------------------------------------------


def test_written_order_of_modifiers_does_not_matter(registry):
    one, other = compose(registry, "at+ema+awp(gamma=5e-3)"), compose(registry, " at + awp( gamma=0.005 )+ema")
    assert one.canonical == other.canonical
    assert one.brief == other.brief == "at+awp(gamma=0.005)+ema"


def test_canonical_text_parses_to_the_same_composition(registry):
    for name in MODIFIERS:
        composed = compose(registry, f"trades+{name}")
        assert compose(registry, composed.canonical) == composed


def test_plus_within_a_value_is_not_a_separator(registry):
    assert compose(registry, "trades(beta=6e+0)").canonical == "trades(beta=6.0)"
    with pytest.raises(UsageError, match="not a component"):
        compose(registry, "+awp")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("modifier", MODIFIERS)
def test_modifier_is_refused_only_if_the_method_claims_its_joint(registry, method, modifier):
    claimed = {*METHODS[method].claims} & {*MODIFIERS[modifier].joints}
    if claimed:
        with pytest.raises(UsageError, match=f"{method} has its own {claimed.pop()}, which {modifier} would"):
            compose(registry, f"{method}+{modifier}")
    else:
        assert compose(registry, f"{method}+{modifier}").method.name == method


@pytest.mark.parametrize("one", MODIFIERS)
@pytest.mark.parametrize("two", MODIFIERS)
def test_two_modifiers_are_refused_only_if_they_share_an_exclusive_joint(registry, one, two):
    if one == two:
        with pytest.raises(UsageError, match="given twice"):
            compose(registry, f"at+{one}+{two}")
        return
    shared = {*MODIFIERS[one].joints} & {*MODIFIERS[two].joints} & {*EXCLUSIVE}
    if shared:
        with pytest.raises(UsageError, match=f"both replace the {shared.pop()} of a training step"):
            compose(registry, f"at+{one}+{two}")
    else:
        assert len(compose(registry, f"at+{one}+{two}").modifiers) == 2


REFUSED = {
    "standard+pgd-tau",
    "fgsm-rs+ignore-incorrect",
    "n-fgsm+prevent-label-leaking",
    "free-at+pgd-tau",
    "gradalign+pgd-tau",
    "mma+ignore-incorrect",
    "gairat+prevent-label-leaking",
    "cons-at+cutmix",
    "cons-at+unlabeled",
    "self-adaptive+label-noise",
    "self-adaptive+label-smoothing",
    "self-adaptive+cutmix",
    "at+awp+sam",
    "at+rwp+asam",
    "at+entropy-sgd+random-wp",
    "at+pgd-tau+ignore-incorrect",
}
ALLOWED = {
    "trades+pgd-tau", "mart+ignore-incorrect", "hat+prevent-label-leaking", "free-at+awp", "free-at+entropy-sgd",
    "mma+cutmix", "gairat+label-noise", "cons-at+autoaugment+cutout", "self-adaptive+awp+ema", "at+ema+swa",
    "at+unlabeled+cutmix", "at+label-noise+label-smoothing", "at+weight-clipping+ema", "mlcat+rwp",
}  # fmt: skip


@pytest.mark.parametrize("text", sorted(REFUSED | ALLOWED))
def test_compositions_are_allowed_or_refused_as_listed(registry, text):
    if text in REFUSED:
        with pytest.raises(UsageError, match=r"its own|both replace"):
            compose(registry, text)
    else:
        compose(registry, text)


def test_helpers_of_one_name_must_be_one_network(registry):
    extended = Registry(discover().plugins)
    for name, helper in (("one", "standard"), ("two", "at")):
        info = ModifierInfo(name, "needs a helper", "here:Modifier", helpers={"teacher": helper})
        extended.add(info, registry.get("method", "at").provider)
    assert compose(extended, "at+one").helpers == {"teacher": "standard"}
    with pytest.raises(UsageError, match="need different networks as 'teacher': standard and at"):
        compose(extended, "at+one+two")


# Standard training has no adversary, and MMA none against what an untrained network misclassifies.
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("standard", "mma")])
@pytest.mark.parametrize("modifier", [name for name, info in MODIFIERS.items() if "backward" in info.joints])
def test_images_are_attacked_under_every_modifier_of_the_descent(registry, method, modifier):
    """Free AT moves its images in the backward pass, so x_adv differs from x at the second update at the latest. IKL
    begins with a radius of 0 unless it is told not to."""
    composed, model = compose(registry, f"{method.replace('ikl', 'ikl(ramp=0)')}+{modifier}"), network()
    composition = Composition(composed)
    composition.setup(training(model, helpers={name: network(5).eval() for name in composed.helpers}))
    distances: list[float] = []
    attack = composition.method.attack

    def watched(model, given, inner):
        x_adv = attack(model, given, inner)
        distances.append(float((x_adv.detach() - given.x).abs().max()))
        return x_adv

    composition.method.attack = watched
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.05)
    for update in range(2):
        composition.update(model, composition.prepare(at(batch(), update=update)), inner(2), optimizer)
    assert distances[1] > 0.01


@pytest.mark.parametrize("modifier", ["awp(steps=2)", "rwp(steps=3)", "sam", "asam", "random-wp", "entropy-sgd"])
def test_statistics_of_extra_heads_move_once_per_update(registry, modifier):
    composition, model = Composition(compose(registry, f"at+self-supervision+{modifier}")), network()
    composition.setup(training(model))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.05)
    composition.update(model, composition.prepare(batch()), inner(2), optimizer)
    (head,) = composition.parts().values()
    assert head[1].num_batches_tracked == 1


# ---------------------------------------------------------------------------------------------------------
# Order
# ---------------------------------------------------------------------------------------------------------


class Appends(Modifier):
    """Appends its name to `log`, which all instances share."""

    log: list[str] = []  # noqa: RUF012

    def augment(self, images, source):
        self.log.append(type(self).__name__)
        return images

    after_step = augment


class First(Appends):
    def after_step(self, model):
        self.log.append("First steps")


class Second(Appends):
    def after_step(self, model):
        self.log.append("Second steps")


@pytest.mark.parametrize("text", ["at+zz-first+aa-second", "at+aa-second+zz-first"])
def test_modifiers_of_a_joint_act_by_rank(monkeypatch, text):
    plugins: Plugins = discover().plugins
    registry = Registry(plugins)
    joints = ("augment", "after_step")
    module = types.SimpleNamespace(First=First, Second=Second)
    for name, factory, rank in (("zz-first", "First", 1), ("aa-second", "Second", 2)):
        info = ModifierInfo(name, "says its name", f"here:{factory}", joints=joints, rank=rank)
        registry.add(info, Provider("order.py", "file", "order", module))
    monkeypatch.setattr(Appends, "log", [])
    composition, model = Composition(compose(registry, text)), network()
    composition.augment(torch.zeros(1), torch.Generator())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    composition.update(model, composition.prepare(batch()), inner(1), optimizer)
    assert Appends.log == ["First", "Second", "First steps", "Second steps"]


# ---------------------------------------------------------------------------------------------------------
# Cost
# ---------------------------------------------------------------------------------------------------------


@given(t=st.integers(0, 50), a=st.integers(0, 9), b=st.integers(0, 9))
def test_formulas_are_integer_arithmetic(t, a, b):
    values = {"T": t, "a": a, "b": b}
    assert formula("T + 2", values) == t + 2
    assert formula("2 * (T + a) - b", values) == 2 * (t + a) - b
    assert formula("7", {}) == 7
    assert formula("(T + 24) // 25 + a", values) == -(-t // 25) + a


@pytest.mark.parametrize(
    "text", ["T ** 2", "__import__('os')", "T / 2", "x", "1.5", "T if 1 else 2", "-T", "f(T)", "T // 0", "7 // T"]
)
def test_formula_rejects_everything_but_integer_arithmetic(text):
    with pytest.raises(ValueError, match="not a formula"):
        formula(text, {"T": 3})


def test_passes_of_method_and_modifiers_add_up(registry):
    """AT: T+2 and T+1. AWP evaluates the loss once more per step; TRADES' loss is two passes each."""
    assert passes_per_image(compose(registry, "at"), 10) == (12, 11)
    assert passes_per_image(compose(registry, "trades"), 10) == (14, 12)
    assert passes_per_image(compose(registry, "at+awp"), 10) == (13, 12)
    assert passes_per_image(compose(registry, "trades+awp(steps=3)+ema"), 10) == (14 + 6, 12 + 6)


@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize("method", ["at", "trades"])
@pytest.mark.parametrize("steps", [1, 4])
def test_update_costs_the_declared_passes(registry, method, modifier, steps):
    composed, model = compose(registry, f"{method}+{modifier}"), network()
    composition = Composition(composed)
    spare = torch.full((9, 1, 8, 8), 7, dtype=torch.uint8)
    helpers = {name: network(5).eval().requires_grad_(False) for name in composed.helpers}
    composition.setup(training(model, spare=lambda: spare, helpers=helpers))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1)
    counter = PassCounter(model, *helpers.values())
    composition.update(model, composition.prepare(batch()), inner(steps), optimizer)
    counter.remove()
    forward, backward = passes_per_image(composed, steps)
    assert (counter.forward, counter.backward) == (forward * COUNT, backward * COUNT)
