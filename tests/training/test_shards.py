"""Batches in shards: one loss of the whole batch, and the same weights from any number of processes."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import naive
from helpers.commands import promised
from helpers.networks import with_networks
from torch.nn import functional as F

from robflat_bench.config.protocol import load
from robflat_bench.config.spec import make_spec
from robflat_bench.core import Interrupted, Moment, UsageError
from robflat_bench.core.batching import cuts
from robflat_bench.core.randomness import generator
from robflat_bench.evaluation.model import build_model
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.weights import read_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose, resolve
from robflat_bench.runs.run import PlannedRun, _train
from robflat_bench.testing.fixtures import built_ins
from robflat_bench.testing.trial_training import RECIPE, trained
from robflat_bench.training.processes import Processes
from robflat_bench.training.shards import _average

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = ("fixed.precision=float64", "recipe.attack_start=zero")
"""No random draws, and rounding far below what is compared."""


@pytest.fixture
def planned(tiny, tmp_path):
    """`planned("at", "recipe.shards=2")`: a run of three batches of twenty digits in each epoch."""
    registry = with_networks()

    def make(method: str, *settings: str) -> PlannedRun:
        session = Session(registry, load(registry, str(tiny), settings), None, Store(tmp_path), "cpu")
        return PlannedRun(session, compose(registry, method), 1)

    return make


def last_weights(run: PlannedRun) -> dict[str, torch.Tensor]:
    _train(run)
    return read_weights(run.folder.weights("last"))


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=within, msg=name)


# ---------------------------------------------------------------------------------------------------------
# What is computed
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["at", "mart+label-smoothing", "at+awp", "at+sam+ema", "at+rwp(steps=2)"])
def test_without_batch_normalisation_three_uneven_shards_train_as_one_batch(planned, method):
    whole, cut = (
        last_weights(planned(method, "fixed.backbone=attention", f"recipe.shards={shards}", *EXACT))
        for shards in (1, 3)
    )
    assert_close(whole, cut, 1e-9)


def test_each_shard_is_normalised_alone(planned):
    run = planned("at", "fixed.backbone=residual", "recipe.shards=3", "recipe.epochs=2", *EXACT)
    assert_close(naive_training(run, 3), last_weights(run), 1e-9)


def naive_training(run: PlannedRun, count: int) -> dict[str, torch.Tensor]:
    """AT of two epochs on shards, each with a copy of the network; torch's SGD moves the weights."""
    session, recipe = run.session, run.spec.recipe
    model, examples = build_model(session, run.seed), session.examples("train")
    decay, rate = recipe.weight_decay, recipe.learning_rate
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay)
    for epoch in range(2):
        order = torch.randperm(60, generator=generator(run.seed, "order", epoch))
        for batch in order.split(20):
            copies, optimizer.param_groups[0]["lr"] = [], rate
            for rows in batch.tensor_split(count):
                x, y = examples.x[rows], examples.y[rows]
                objective = naive_cross_entropy(y)
                _, x_adv = naive.pgd(model, x, x, objective, recipe.attack_steps, recipe.epsilon, recipe.attack_step)
                twin = copy.deepcopy(model).train()
                (F.cross_entropy(twin(x_adv), y, reduction="sum") / len(batch)).backward()
                copies.append((len(rows) / len(batch), twin))
            optimizer.zero_grad()
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = sum(list(twin.parameters())[number].grad for _, twin in copies)
            for name, buffer in model.named_buffers():
                share = [fraction * twin.get_buffer(name) for fraction, twin in copies]
                buffer.copy_(sum(share) if buffer.is_floating_point() else copies[0][1].get_buffer(name))
            optimizer.step()
    return model.state_dict()


def naive_cross_entropy(y: torch.Tensor):
    return lambda i, logits: -logits.log_softmax(0)[y[i]]


def test_numbers_on_which_shards_agree_stay_bit_for_bit():
    rows = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 6.0]])
    assert _average(rows, [1 / 3, 1 / 3, 1 / 3]).tolist() == [rows[0, 0].item(), pytest.approx(3.0)]


def test_image_passes_are_those_of_whole_batches():
    at = resolve(built_ins(), "method", "at")
    whole, cut = (trained(at, recipe=RECIPE.model_copy(update={"shards": n})).state for n in (1, 2))
    assert (cut.forward, cut.backward) == (whole.forward, whole.backward)


def test_every_shard_draws_its_own_random_numbers():
    now = Moment(seed=1, epoch=2, update=3)
    seeds = [replace(now, shard=shard).random("attack").initial_seed() for shard in (None, 0, 1)]
    assert len({*seeds}) == 3
    assert seeds[0] == generator(1, "attack", 2, 3).initial_seed()


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_rest_too_small_for_two_images_a_shard_joins_the_last_batch(shards):
    for count in range(8, 60):
        sizes = [len(part) for part in torch.arange(count).tensor_split(cuts(count, 8, shards))]
        assert sum(sizes) == count
        assert {*sizes[:-1]} <= {8}
        assert 2 * shards <= sizes[-1] < 8 + 2 * shards


# ---------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("free-at", "its perturbation is carried over from batch to batch"),
        ("gairat", "an example's weight is relative to the weights of its whole batch"),
        ("mma", "it remembers the margin"),
        ("self-adaptive+ema", "it remembers the label"),
        ("te", "it remembers the label"),
    ],
)
def test_methods_that_couple_a_batch_are_refused(planned, method, reason):
    with pytest.raises(UsageError, match=rf"is not trained in shards: {reason}.* --set recipe.shards=1"):
        planned(method, "recipe.shards=2").spec  # noqa: B018


def test_components_that_declare_nothing_are_refused(planned):
    run = planned("at", "recipe.shards=2")
    info = replace(run.method.method.info, sharded=False)
    method = replace(run.method.method, offer=replace(run.method.method.offer, info=info))
    with pytest.raises(UsageError, match="its catalogue row does not declare sharded=True"):
        make_spec(
            run.session.registry, run.session.protocol, replace(run.method, method=method), run.session.splits.ref, 1
        )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("recipe.shards=11",), r"a shard of a batch \(recipe.shards 11\) has one .* --set recipe.batch_size=22"),
        (("recipe.shards=21", "fixed.backbone=attention"), r"fewer images than shards .* --set recipe.batch_size=21"),
    ],
)
def test_batches_too_small_for_their_shards_are_refused(planned, settings, problem):
    with pytest.raises(UsageError, match=problem):
        _train(planned("at", *settings))


def test_processes_that_do_not_divide_the_shards_are_refused():
    assert [Processes(rank, 2).share(4) for rank in (0, 1)] == [range(2), range(2, 4)]
    with pytest.raises(UsageError, match=r"3 processes, and recipe.shards=4 .* --set recipe.shards=3"):
        Processes(0, 3).share(4)


def test_shards_enter_key_and_name_where_there_are_several(planned):
    one, also_one, two = (
        planned("at", *settings).spec for settings in ((), ("recipe.shards=1",), ("recipe.shards=2",))
    )
    assert one.key == also_one.key != two.key
    assert "shards" not in one.identity["recipe"]
    assert (one.label, two.label) == ("at", "at [shards=2]")


# ---------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithAnInterrupted(Processes):
    """This process and a second one, which computes what this one does, and has got SIGUSR1."""

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        other = rows.clone()
        if rows.shape[1] > 2:  # not the check at the start
            other[:, 1] = signal.SIGUSR1
        return torch.cat([rows, other])


def test_all_processes_stop_after_the_update_in_which_one_was_asked_to():
    at = resolve(built_ins(), "method", "at")
    with pytest.raises(Interrupted) as ended:
        trained(at, recipe=RECIPE.model_copy(update={"shards": 2}), processes=WithAnInterrupted(0, 2))
    assert ended.value.number == signal.SIGUSR1  # exit code 0: the end of a time slice, whichever process heard it


@pytest.mark.parametrize(
    "method", ["trades+awp", *(pytest.param(one, marks=pytest.mark.slow) for one in ("at", "hat+swa"))]
)
def test_two_processes_of_torchrun_make_the_record_of_one(command, child_environment, tiny, tmp_path, method):
    words = ["run", "--method", method, "--protocol", str(tiny), "--set", "recipe.shards=4", "--json", "--store"]
    alone = command(*words, tmp_path / "one")
    assert alone.code == 0, alone.err
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    both = subprocess.run(
        [*torchrun, "robflat_bench", *words, str(tmp_path / "two")],
        env=child_environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert both.returncode == 0, both.stderr
    record = json.loads(both.stdout)  # one document: only the first process reports
    assert promised(record) == promised(alone.document)
    assert record["environment"]["processes"] == 2
    made = [
        {path.relative_to(tmp_path / store): path for path in (tmp_path / store).rglob("*[lt].safetensors")}
        for store in ("one", "two")
    ]
    assert made[0].keys() == made[1].keys()
    for name, path in made[0].items():
        assert path.read_bytes() == made[1][name].read_bytes(), name
