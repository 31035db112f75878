"""Threats of protocols: bounds in each norm, and components that are refused before any work."""

from __future__ import annotations

import json

import pytest
from helpers.commands import REPOSITORY, TINY, tiny_protocol

from robflat_bench.config.protocol import load
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.config.threat import EVERY_NORM, norms_of
from robflat_bench.core import ENGINE_NORMS, UsageError
from robflat_bench.registry.components import compose, resolve

DATA = DatasetRef(name="digits", checksum="0" * 64, spare="1" * 64, canonical=True, origin="a test")
OLD = """
from robflat_bench.api import Attack, AttackInfo, Measure, MeasureInfo, Method, MethodInfo, hookimpl

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("old-attack", "written before norms", "old_plugin:OldAttack")]

@hookimpl
def robflat_bench_measures():
    rows = [MeasureInfo("old-measure", "written before norms", "old_plugin:OldMeasure", couplings=("clean",))]
    return rows + [MeasureInfo("old-weights", "reads weights alone", "old_plugin:OldMeasure")]

@hookimpl
def robflat_bench_methods():
    rows = [MethodInfo("old-method", "its own steps", "old_plugin:OldMethod", claims=("attack",))]
    return rows + [MethodInfo("old-inner", "the training attack", "old_plugin:OldMethod")]
"""


@pytest.fixture
def l2(tmp_path):
    path = tmp_path / "tiny-l2.toml"
    path.write_text(TINY.replace("[fixed.threat]", '[fixed.threat]\nnorm = "l2"'))
    return str(path)


@pytest.fixture
def with_old(tmp_path):
    from robflat_bench.registry.registry import discover

    file = tmp_path / "old_plugin.py"
    file.write_text(OLD)
    return discover((file,))


def refused(registry, name, *settings: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(registry, name, settings)
    return str(caught.value)


def test_committed_boards_keep_their_hashes(registry):
    boards = json.loads((REPOSITORY / "leaderboard" / "board.json").read_text())["boards"]
    named = [(board["protocol"], board["version"], board["hash"]) for board in boards]
    found = {(one.name, one.version): one.hash for one in (load(registry, name) for name in registry.protocols)}
    assert named
    assert all(found[name, version] == known for name, version, known in named if (name, version) in found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("fixed.threat.epsilon=2.0",), "'fixed.threat.epsilon' = 2.0: pixels are in [0,1], so at most 1 under linf"),
        (("recipe.epsilon=8",), "'recipe.epsilon' = 8.0: pixels are in [0,1], so at most 1 under linf: 8/255, not 8"),
        (("recipe.attack_step=2",), "'recipe.attack_step' = 2.0: pixels are in [0,1]"),
        (("fixed.threat.norm=l3",), "'fixed.threat.norm' = 'l3'"),
        (("fixed.threat.norm=l1",), "attack pgd(steps=2) is defined under linf, l2, but the threat's norm is l1"),
    ],
)
def test_radii_and_norms_that_cannot_be_are_refused(registry, tiny, settings, says):
    assert says in refused(registry, str(tiny), *settings)


def test_l2_radii_may_exceed_one(registry, l2):
    found = load(registry, l2, ("fixed.threat.epsilon=3.0", "recipe.epsilon=3.0", "recipe.attack_step=1.5"))
    assert (found.fixed.threat.epsilon, found.fixed.threat.norm, found.recipe.attack_step) == (3.0, "l2", 1.5)


def test_components_of_an_old_plugin_are_refused_under_l2_before_any_work(with_old, l2, tiny):
    setting = "fixed.selection.attack=old-attack()"
    assert "attack old-attack is defined under linf, but the threat's norm is l2" in refused(with_old, l2, setting)
    load(with_old, str(tiny), (setting,))
    protocol = load(with_old, l2)
    with pytest.raises(UsageError, match="method old-method is defined under linf, but the threat's norm is l2"):
        make_spec(with_old, protocol, compose(with_old, "old-method"), DATA, 1)
    make_spec(with_old, protocol, compose(with_old, "old-inner"), DATA, 1)
    make_spec(with_old, load(with_old, str(tiny)), compose(with_old, "old-method"), DATA, 1)
    assert norms_of(resolve(with_old, "measure", "old-measure")) == ("linf",)
    assert norms_of(resolve(with_old, "measure", "old-weights")) == EVERY_NORM


def test_a_measure_of_an_old_plugin_is_refused_by_protocol_and_by_evaluate(with_old, l2):
    from robflat_bench.evaluation.plan import choose_plan

    protocol = load(with_old, l2)
    with pytest.raises(UsageError, match="measure old-measure is defined under linf, but the threat's norm is l2"):
        choose_plan(with_old, protocol.fixed, "last", (), ("old-measure",))
    with pytest.raises(UsageError, match="attack old-attack is defined under linf"):
        choose_plan(with_old, protocol.fixed, "last", ("old-attack",), ())


METHODS = {
    **dict.fromkeys(("at", "trades", "mart", "fgsm-rs", "n-fgsm", "free-at", "gradalign", "standard"), ENGINE_NORMS),
    **dict.fromkeys(("cons-at", "gairat", "hat", "mlcat", "score", "self-adaptive", "alp"), ENGINE_NORMS),
    **dict.fromkeys(("at+pgd-tau", "at+ignore-incorrect", "at+prevent-label-leaking", "at+awp+ema"), ENGINE_NORMS),
    "mma": ("linf",),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_under_the_norms_in_which_their_attack_is_defined(registry, l2, method):
    protocol, composed = load(registry, l2), compose(registry, method)
    if "l2" in METHODS[method]:
        make_spec(registry, protocol, composed, DATA, 1)
    else:
        with pytest.raises(UsageError, match=r"defined under linf, but the threat's norm is l2; choose another method"):
            make_spec(registry, protocol, composed, DATA, 1)


def test_an_l1_protocol_loads_with_autoattack_and_trains_nothing(registry, tmp_path):
    path = tmp_path / "tiny-l1.toml"
    attack = "autoattack(version=apgd)"
    text = tiny_protocol(epochs=1, train=0).replace("[fixed.threat]", '[fixed.threat]\nnorm = "l1"')
    path.write_text(text.replace("pgd(steps=2)", attack).replace("fgsm", attack))
    protocol = load(registry, str(path))
    with pytest.raises(UsageError, match="method at is defined under linf, l2, but the threat's norm is l1"):
        make_spec(registry, protocol, compose(registry, "at"), DATA, 1)


def test_the_released_start_of_a_worst_case_is_defined_under_linf_alone(registry):
    released = resolve(registry, "measure", "worst-case(start=released, keep=last)")
    assert norms_of(released) == ("linf",)
    assert norms_of(resolve(registry, "measure", "worst-case")) == ENGINE_NORMS


def test_a_key_of_an_l2_run_differs_from_that_of_linf(registry, tiny, l2):
    one, two = (make_spec(registry, load(registry, str(name)), compose(registry, "at"), DATA, 1) for name in (tiny, l2))
    assert one.key != two.key
