"""The training loop with every method and modifier: schedules, optimizers, budgets, resuming, helpers, averages."""

from __future__ import annotations

import math
import signal
from dataclasses import replace

import pytest
import torch
from helpers.observers import StopsAt
from torch import nn

from robflat_bench.config.cost import passes_per_image, updates_per_batch
from robflat_bench.config.protocol import load
from robflat_bench.config.recipe import OPTIMIZERS, SCHEDULES, Recipe
from robflat_bench.core import Interrupted, MethodInfo, RunFailed, UsageError
from robflat_bench.evaluation.model import build_model
from robflat_bench.evaluation.session import Session
from robflat_bench.methods import robflat_bench_methods
from robflat_bench.modifiers import robflat_bench_modifiers
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry, discover
from robflat_bench.runs.run import PlannedRun, _train, execute
from robflat_bench.training import composition, loop
from robflat_bench.training.composition import Composition
from robflat_bench.training.schedule import build_optimizer, build_schedule, learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [info.name for info in robflat_bench_methods()]
MODIFIERS = {info.name: info for info in robflat_bench_modifiers()}
EVERYTHING = [*METHODS, *(f"at+{name}" for name in MODIFIERS)]
TOGETHER = ["trades+ema+swa(start=0.3)+label-noise+cutout+awp", "at+entropy-sgd(steps=4)+self-supervision+cutmix"]


# ---------------------------------------------------------------------------------------------------------
# Recipe
# ---------------------------------------------------------------------------------------------------------


def recipe(**changes: object) -> Recipe:
    given = {"epochs": 1, "batch_size": 1, "learning_rate": 0.4, "epsilon": 0.1, "attack_steps": 1, "attack_step": 0.1}
    return Recipe(**{**given, **changes})


STEPS = 60
RATES = {
    "constant": lambda k: 0.4,
    "piecewise(drops=[0.5, 0.75], factor=0.2)": lambda k: 0.4 * 0.2 ** ((k >= 30) + (k >= 45)),
    # torch places the peak at 0.3 of 61 steps, less one
    "one-cycle(rise=0.3)": lambda k: (
        0.016 + 0.384 * k / 17.3 if k < 17.3 else 0.4 - (0.4 - 1.6e-6) * (k - 17.3) / (60 - 17.3)
    ),
    "cyclic": lambda k: 0.4 * (1 - abs(k / 30 - 1)),
    "cyclic(cycles=3)": lambda k: 0.4 * (1 - abs((k % 20) / 10 - 1)),
    "cosine": lambda k: 0.2 * (1 + math.cos(math.pi * k / STEPS)),
    "cosine(final=0.1)": lambda k: 0.04 + 0.18 * (1 + math.cos(math.pi * k / STEPS)),
}


@pytest.mark.parametrize("schedule", RATES)
def test_schedules_follow_their_closed_form_and_replay_exactly(schedule):
    rates = []
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(recipe(), [parameter])
    made = build_schedule(recipe(schedule=schedule), optimizer, STEPS, 0)
    for _ in range(STEPS):
        rates.append(learning_rate(optimizer))
        optimizer.step()
        made.step()
    assert rates == pytest.approx([RATES[schedule](k) for k in range(STEPS)], rel=1e-9, abs=1e-12)
    for done in (1, 17, 45):
        again = build_optimizer(recipe(), [parameter])
        build_schedule(recipe(schedule=schedule), again, STEPS, done)
        assert learning_rate(again) == rates[done]


def test_every_schedule_and_optimizer_has_a_reference_here():
    assert {name.partition("(")[0] for name in RATES} == SCHEDULES.keys()
    assert OPTIMIZERS.keys() == UPDATES.keys()


def sgd(w, gradients):
    """Nesterov momentum 0.9, decay added to the gradient."""
    velocity = 0.0
    for g in gradients:
        g = g + 0.01 * w
        velocity = 0.9 * velocity + g
        w = w - 0.4 * (g + 0.9 * velocity)
    return w


def adam(w, gradients, decoupled=False, beta2=0.999):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        if decoupled:
            w = w * (1 - 0.4 * 0.01)
        else:
            g = g + 0.01 * w
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        w = w - 0.4 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - beta2**t)) + 1e-8)
    return w


UPDATES = {
    "sgd": sgd,
    "adam": adam,
    "adamw": lambda w, gradients: adam(w, gradients, decoupled=True),
    "muon": lambda w, gradients: adam(w, gradients, decoupled=True, beta2=0.95),  # matrices: test_muon
}


@pytest.mark.parametrize("name", UPDATES)
def test_optimizers_follow_their_recursion(name):
    gradients = [0.3, -0.7, 1.1]
    parameter = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = build_optimizer(recipe(optimizer=name, weight_decay=0.01), [parameter])
    for g in gradients:
        parameter.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    assert parameter.item() == pytest.approx(UPDATES[name](0.5, gradients), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(registry, tiny, tmp_path):
    """`bench("recipe.epochs=3")`: ready to run under the tiny protocol with these settings."""

    def make(*settings: str, store: str = "store") -> Session:
        return Session(registry, load(registry, str(tiny), settings), None, Store(tmp_path / store), "cpu")

    return make


def run(session: Session, method: str) -> PlannedRun:
    return PlannedRun(session, compose(session.registry, method), 1)


def trained(session: Session, method: str) -> tuple[loop.State, dict[str, str]]:
    """The final state of training, and the digests of the weights it wrote."""
    made = run(session, method)
    state = _train(made)
    return state, {name: digest(read_weights(made.folder.weights(name))) for name in ("best", "last")}


def test_bfloat16_training_has_a_similar_loss_and_keeps_float32_weights(bench, monkeypatch):
    """bfloat16 has 8 bits of mantissa: while weights hardly move, the loss agrees to a few per cent, and not to 1e-5.
    Interrupted runs resume bit for bit, and every loss is computed in float32."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    seen = []
    original = composition.weighted_mean
    monkeypatch.setattr(
        composition, "weighted_mean", lambda values, weight: seen.append(values.dtype) or original(values, weight)
    )
    slowly = ("recipe.epochs=2", "recipe.learning_rate=1e-5")
    settings = (*slowly, "fixed.training_precision='bfloat16'")
    full, reduced, stopped = bench(*slowly), bench(*settings), bench(*settings, store="stopped")
    assert full.protocol.hash != reduced.protocol.hash
    (exact, _), (rounded, weights) = trained(full, "trades+awp"), trained(reduced, "trades+awp")
    assert set(seen) == {torch.float32}
    losses = [state.history[0].train_loss for state in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != pytest.approx(losses[0], rel=1e-5)
    kept = read_weights(run(reduced, "trades+awp").folder.weights("last"))
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32, torch.int64}
    with pytest.raises(KeyboardInterrupt):
        trained(replace(stopped, observer=StopsAt(4)), "trades+awp")
    assert trained(stopped, "trades+awp")[1] == weights
    with pytest.raises(UsageError, match="needs precision float32, not float64"):
        bench("fixed.precision='float64'", "fixed.training_precision='bfloat16'")


def test_initial_weights_and_every_nth_epoch_are_kept(bench):
    here = replace(bench("recipe.epochs=5"), keep_every=2)
    _, weights = trained(here, "at")
    plain = bench("recipe.epochs=5", store="plain")
    assert trained(plain, "at")[1] == weights, "keeping changes no number"
    folder, other = run(here, "at").folder, run(plain, "at").folder
    assert folder.kept() == {"epoch-0001": 1, "epoch-0003": 3}
    assert other.kept() == {}
    begun = digest(read_weights(folder.weights("initial")))
    assert begun == digest(read_weights(other.weights("initial"))) == digest(build_model(here, 1).state_dict())
    shorter = bench("recipe.epochs=2", "recipe.schedule=constant", store="shorter")
    longer = replace(bench("recipe.epochs=5", "recipe.schedule=constant", store="longer"), keep_every=2)
    kept = [trained(session, "at") and run(session, "at").folder for session in (shorter, longer)]
    assert digest(read_weights(kept[0].weights("last"))) == digest(read_weights(kept[1].weights("epoch-0001")))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_update_that_makes_a_weight_not_finite_ends_the_run_there(bench, monkeypatch, value):
    """The loss of the update is finite; without the check, the run goes on with the broken network."""
    update = Composition.update

    def breaks(self, model, batch, *rest):
        loss = update(self, model, batch, *rest)
        if batch.moment.epoch == 1 and batch.moment.update == 2:
            with torch.no_grad():
                next(model.parameters()).view(-1)[-1] = value
        return loss

    monkeypatch.setattr(Composition, "update", breaks)
    with pytest.raises(RunFailed, match="makes weights NaN or infinite at epoch 1, step 2") as caught:
        trained(bench(), "at")
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_initial_file_does_not_block_resuming(bench, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    here = bench()
    with pytest.raises(KeyboardInterrupt):
        trained(replace(here, observer=StopsAt(4)), "at")
    initial = run(here, "at").folder.weights("initial")
    whole = initial.read_bytes()
    for damaged in (whole[:100], b"", None):
        initial.unlink() if damaged is None else initial.write_bytes(damaged)
        trained(here, "at")
        assert initial.read_bytes() == whole
    assert execute(run(here, "at")).results


@pytest.mark.parametrize("method", [*EVERYTHING, *TOGETHER])
def test_interrupted_run_ends_with_the_same_weights(bench, monkeypatch, method):
    """Interrupted in the first and in the last epoch: everything that a method remembers is saved."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    here = bench("recipe.epochs=3", "recipe.attack_steps=2")
    state, weights = trained(here, method)
    total = 3 * 3 * updates_per_batch(compose(here.registry, method))
    interrupted = bench("recipe.epochs=3", "recipe.attack_steps=2", store="interrupted")
    for step in (2, total - 1):
        with pytest.raises(KeyboardInterrupt):
            trained(replace(interrupted, observer=StopsAt(step)), method)
    again, resumed = trained(interrupted, method)
    assert resumed == weights
    assert [row.train_loss for row in again.history] == [row.train_loss for row in state.history]
    assert again.best == state.best


def test_a_signal_does_not_wait_for_a_long_check(bench, monkeypatch):
    """The state is saved before a check that may take long: the run leaves within it, and resumes bit for bit."""
    method, check, left = "at+swa", loop.heldout_check, [signal.SIGINT]
    whole, weights = trained(bench(), method)

    def interrupted(inputs):
        if left:
            signal.raise_signal(left.pop())
        return check(inputs)

    monkeypatch.setattr(loop, "heldout_check", interrupted)
    with pytest.raises(Interrupted) as caught:
        trained(bench(store="stopped"), method)
    assert "interrupted" in [frame.name for frame in caught.traceback]
    state, resumed = trained(bench(store="stopped"), method)
    assert resumed == weights
    assert (state.forward, state.backward, state.best) == (whole.forward, whole.backward, whole.best)


ONCE = {
    "at+swa": 120,  # statistics are estimated anew at the end of either epoch: half of training is the start
    "at+meat": 60,  # at the end of the second
    "at+unlabeled": 1797 - 110,  # every spare image is labelled
}


@pytest.mark.parametrize("method", EVERYTHING)
def test_run_costs_the_declared_passes(bench, method):
    """60 images, 2 epochs."""
    here = bench("recipe.attack_steps=3")
    composed = compose(here.registry, method)
    state, _ = trained(here, method)
    forward, backward = passes_per_image(composed, 3)
    helpers = [trained(bench("recipe.attack_steps=3", store="helpers"), text)[0] for text in composed.helpers.values()]
    updates = 60 * 2 * updates_per_batch(composed)
    once = ONCE.get(method, 0)
    made = state.forward - once - sum(helper.forward for helper in helpers)
    most = composed.method.info.attack.at_most or composed.method.info.loss.at_most
    assert made <= forward * updates if most else made == forward * updates
    assert state.backward == backward * updates + sum(helper.backward for helper in helpers)


@pytest.mark.parametrize("method", ["fgsm-rs", "at+ema+awp"])
def test_record_has_the_true_budget(bench, method):
    here = bench("recipe.attack_steps=3")
    record = execute(run(here, method))
    forward, backward = passes_per_image(compose(here.registry, method), 3)
    assert (record.budget.forward, record.budget.backward) == (forward * 120, backward * 120)
    assert not record.extra_data
    assert record.results.keys() == {"best", "last"}


# ---------------------------------------------------------------------------------------------------------
# Helpers and other images
# ---------------------------------------------------------------------------------------------------------


def test_a_helper_is_trained_once_and_counted(bench):
    here = bench()
    helped, helper = run(here, "hat"), run(here, "standard")
    assert helped.spec.helpers == {"standard": helper.spec.key}
    record = execute(helped)
    folder = helper.folder
    assert (folder.checkpoints / "last.safetensors").is_file()
    assert not folder.record_file.exists(), "it is trained, not evaluated"
    alone = execute(helper)
    forward, backward = passes_per_image(compose(here.registry, "hat"), 2)
    assert record.budget.forward == forward * 120 + alone.budget.forward
    assert record.budget.backward == backward * 120 + alone.budget.backward
    weights = (folder.checkpoints / "last.safetensors").read_bytes()
    execute(run(here, "hat(gamma=0.1)"))
    assert (folder.checkpoints / "last.safetensors").read_bytes() == weights


def test_run_key_depends_on_the_helper(bench):
    one, other = bench(), bench("recipe.activation=silu")
    specs = [run(session, "hat").spec for session in (one, other)]
    assert specs[0].helpers != specs[1].helpers
    assert specs[0].key != specs[0].model_copy(update={"helpers": specs[1].helpers}).key


def test_run_key_and_record_depend_on_extra_images(bench):
    here = bench()
    made = run(here, "at+unlabeled(ratio=0.5)")
    spec = made.spec
    assert spec.extra_data == here.splits.ref.spare != ""
    assert run(here, "at").spec.extra_data == ""
    assert spec.key != spec.model_copy(update={"extra_data": "0" * 64}).key
    assert execute(made).extra_data


def test_unlabeled_is_refused_before_training_if_no_image_is_spare(bench):
    here = bench()
    empty = here.splits.ref.model_copy(update={"spare": ""})
    with pytest.raises(UsageError, match="uses every image of its training pool"):
        assert run(replace(here, data=replace(here.splits, ref=empty)), "at+unlabeled").spec


def test_method_that_is_its_own_helper_is_refused(registry, bench):
    extended = Registry(discover().plugins)
    info = MethodInfo("narcissus", "learns from itself", "here:Method", helpers={"idol": "narcissus"})
    extended.add(info, registry.get("method", "at").provider)
    with pytest.raises(UsageError, match="narcissus would have to be trained before itself"):
        assert run(replace(bench(), registry=extended), "narcissus").spec


def test_no_split_uses_spare_images(bench):
    splits = bench().splits
    used = [set(pool.index.tolist()) for pool in splits.pools.values()]
    spare = set(splits.spare.index.tolist())
    assert len(spare) == 1797 - 110
    assert all(spare.isdisjoint(indices) for indices in used)


# ---------------------------------------------------------------------------------------------------------
# What is evaluated
# ---------------------------------------------------------------------------------------------------------


def test_ema_of_decay_zero_is_the_network_itself(bench):
    plain, weights = trained(bench(), "at")
    averaged, same = trained(bench(), "at+ema(decay=0, warmup=false)")
    assert same == weights
    assert averaged.best == plain.best


def test_best_and_last_are_both_averaged_weights(bench, monkeypatch):
    """The averaged weights are checked, kept and reported; training continues with the network's own."""
    plain, weights = trained(bench(), "at")
    averaged, slow = trained(bench(), "at+ema(decay=0.9, warmup=false)")
    assert [row.train_loss for row in averaged.history] == [row.train_loss for row in plain.history]
    assert [row.heldout_robust_loss for row in averaged.history] != [row.heldout_robust_loss for row in plain.history]
    assert slow["last"] != weights["last"]
    evaluated = []
    original = Composition.evaluated

    def recording(self, model, moment):
        found = original(self, model, moment)
        evaluated.append((digest(found), digest(model.state_dict())))
        return found

    monkeypatch.setattr(Composition, "evaluated", recording)
    again, kept = trained(bench(store="again"), "at+ema(decay=0.9, warmup=false)")
    chosen, own = zip(*evaluated, strict=True)
    assert kept == {"best": chosen[again.best.epoch], "last": chosen[-1]}
    assert {*chosen}.isdisjoint(own)


def test_every_weight_decay_trains_another_network(bench):
    """The released grid trained one value under three names."""
    left = [trained(bench(f"recipe.weight_decay={value}"), "at")[1]["last"] for value in (0, 1e-3, 1e-2)]
    assert len(set(left)) == 3


@pytest.mark.parametrize(
    "setting",
    [
        "recipe.optimizer=adam",
        "recipe.optimizer=adamw",
        "recipe.schedule=cyclic",
        "recipe.schedule=cosine",
        "recipe.learning_rate=0.01",
        "recipe.batch_size=30",
        "recipe.epsilon=0.1",
        "recipe.attack_steps=1",
        "recipe.attack_bn=train",
        "recipe.activation=silu",
    ],
)
def test_every_setting_of_the_recipe_trains_another_network_and_names_the_row(bench, setting):
    here = bench(setting)
    assert trained(here, "at")[1]["last"] != trained(bench(), "at")[1]["last"]
    assert run(here, "at").spec.label.startswith(f"at [{setting.removeprefix('recipe.')}")
