"""`--compile` gives the numbers of an eager run, whatever the compiler does with memory, and without a compiler.

No CUDA device is needed: a backend does here what CUDA graphs do. All outputs of a graph have fixed addresses and are
overwritten by the next call, and weights are read at the addresses at which the graph was recorded.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from helpers.commands import promised
from helpers.networks import Root
from helpers.observers import StopsAt
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from robflat_bench.attacks.engine import TrainingAttack, ascend, attacked, cross_entropy
from robflat_bench.config.protocol import load
from robflat_bench.core import Batch, ImageShape, Moment, Observer, Training, clock
from robflat_bench.core.randomness import generator
from robflat_bench.data.splits import load_splits
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics import compilation
from robflat_bench.numerics.compilation import Compilation, captured, fused
from robflat_bench.numerics.gradients import guarded
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.runs.run import PlannedRun, _train
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = ImageShape(1, 8, 3, (0.5,), (0.5,))


# ---------------------------------------------------------------------------------------------------------
# Compilers
# ---------------------------------------------------------------------------------------------------------


def recorded(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., list[object]]:
    """A compiler whose outputs have fixed addresses and are silently overwritten, as a CUDA graph's are."""
    kept: list[Tensor | None] = []

    def replay(*arguments: object) -> list[object]:
        found = graph(*arguments)
        if not kept:
            kept.extend(value.clone() if isinstance(value, Tensor) else None for value in found)
        for place, value in zip(kept, found, strict=True):
            if place is not None:
                place.data.copy_(value)
        return [value if place is None else place.detach() for place, value in zip(kept, found, strict=True)]

    return make_boxed_func(replay)


def plain(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
    return make_boxed_func(graph)


class Graphs:
    """A backend that records graphs where weights need no gradient, as mode "reduce-overhead" does, and compiles
    otherwise. It refuses weights at other addresses."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.compiled += 1
        graphs = not any(isinstance(value, nn.Parameter) and value.requires_grad for value in inputs)
        compiler = recorded if graphs else plain
        run = aot_autograd(fw_compiler=compiler)(graph, inputs)
        weights = [number for number, value in enumerate(inputs) if value.ndim != 4 or value.shape[1:] != (1, 8, 8)]
        lain = [inputs[number].detach() for number in weights]  # held, so that nothing else comes to lie there

        def check(*arguments: Tensor) -> object:
            for number, weight in zip(weights, lain, strict=True):
                assert not graphs or arguments[number].data_ptr() == weight.data_ptr(), "a graph reads old weights"
            return run(*arguments)

        return check


def no_compiler(graph: object, inputs: object) -> None:
    raise OSError("no C++ compiler\nand much else")


def not_at_run_time(graph: object, inputs: object) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        raise RuntimeError("this kernel does not start")

    return make_boxed_func(run)


def not_backward(graph: object, inputs: object) -> object:
    def compiler(graph: object, inputs: object) -> Callable[..., None]:
        return not_at_run_time(graph, inputs)

    return aot_autograd(fw_compiler=plain, bw_compiler=compiler)(graph, inputs)


# ---------------------------------------------------------------------------------------------------------
# A network and a few updates
# ---------------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    """Norms that fold and one that does not, and an affine head."""
    source = generator("compile")
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return made


def images(count: int, *key: int) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=generator("images", *key)), torch.arange(count) % 3


def batch(count: int, update: int) -> Batch:
    x, y = images(count, update)
    target = nn.functional.one_hot(y, 3).float()
    return Batch(torch.arange(count), x, y, target, torch.ones(count), Moment(1, 0, update, update / 4))


def updates(
    registry, method: str, session: Compilation | None, bn: str = "eval", reduced: bool = False
) -> tuple[list[float], str, int, int]:
    """Losses, the digest of weights and statistics, and passes of four updates, the last batch smaller."""
    model = network()
    if session:
        session.add(model)
    counter = PassCounter(model)
    composition = Composition(compose(registry, method))
    composition.setup(Training(model, SHAPE, 8, 0.1, {}, lambda: iter([]), lambda: torch.zeros(0), 0))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1, momentum=0.9)
    losses = []
    for update, count in enumerate((6, 6, 6, 5)):
        here = composition.prepare(batch(count, update))
        source = here.moment.random("attack")
        inner = TrainingAttack(epsilon=0.1, step=0.05, steps=3, start="uniform", bn=bn, source=source)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced, cache_enabled=False):
            losses.append(composition.update(model, here, inner, optimizer))
    return losses, digest(model.state_dict()), counter.forward, counter.backward


@pytest.fixture
def session() -> Compilation:
    notes: list[str] = []
    made = Compilation("cpu", notes.append, Graphs())
    made.notes = notes
    return made


METHODS = (
    "at",
    "trades",
    "mart",
    "at+awp",
    "trades+sam",
    "at+rwp",
    "gradalign",
    "free-at(repeats=2)",
    "at+self-supervision",
)


EAGER = ("free-at(repeats=2)",)
"""Methods whose images all need a gradient."""


@pytest.mark.parametrize("method", METHODS)
def test_compiled_updates_equal_eager_ones_although_graphs_overwrite_their_outputs(registry, session, method):
    assert updates(registry, method, session) == updates(registry, method, None)
    assert session.notes == []
    assert session.backend.compiled == session.variants
    assert bool(session.variants) == (method not in EAGER)


@pytest.mark.parametrize(("bn", "reduced"), [("train", False), ("eval", True), ("train", True)])
def test_compiled_updates_equal_eager_ones_in_train_mode_and_in_bfloat16(registry, session, bn, reduced):
    assert updates(registry, "trades", session, bn, reduced) == updates(registry, "trades", None, bn, reduced)
    assert session.notes == []


def test_output_of_a_graph_survives_the_next_replay(session):
    model, (x, _) = network().eval(), images(4)
    session.add(model)
    with captured(model), torch.no_grad():
        first, second = model(x), model(1 - x)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, second)


def test_attack_on_moved_weights_equals_the_eager_one(session):
    """A graph reads the weights that a measure has moved, although they have new addresses."""
    model, (x, y) = network().eval(), images(4)
    twin = copy.deepcopy(model)
    session.add(model)
    found = []
    for subject in (model, twin):
        space, here = WeightSpace(subject), []
        for draw in range(3):
            with space.moved(space.on_sphere(0.5, draw)), attacked(subject):
                here.append(ascend(subject, x, x, cross_entropy(y), epsilon=0.1, step=0.05, steps=2).loss)
        found.append(torch.cat(here))
    assert torch.equal(*found)
    assert (session.notes, session.variants) == ([], 2)
    for one, other in pairwise([model.state_dict(), twin.state_dict()]):
        assert digest(one) == digest(other)


def test_a_copy_of_a_compiled_network_is_eager(session):
    model, (x, _) = network().eval(), images(4)
    session.add(model)
    with captured(copy.deepcopy(model)), torch.no_grad():
        model(x)
    assert session.variants == 0


# ---------------------------------------------------------------------------------------------------------
# Trying
# ---------------------------------------------------------------------------------------------------------


def test_trial_changes_no_state_and_takes_no_time(session, monkeypatch):
    """Statistics, gradients and random numbers are as before, and no time has passed."""

    class Time:
        passed = 0.0

        def perf_counter(self) -> float:
            return self.passed

    time = Time()
    monkeypatch.setattr(clock, "time", time)
    monkeypatch.setattr(compilation, "time", time)

    def slow(graph: object, inputs: list[Tensor]) -> object:
        time.passed += 100
        return graph

    session.backend = slow
    model, (x, _) = nn.Sequential(network(), nn.Dropout(0.5)), images(4)
    session.add(model)
    before, state, began = digest(model.state_dict()), torch.get_rng_state(), clock.now()
    assert compilation._NETWORKS[model]._works(compilation._variant("fused", compilation._state(model), x), model, x)
    assert digest(model.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (clock.now() - began, session.seconds) == (0, 100)


def test_variants_beyond_the_limit_are_eager(registry, session, monkeypatch):
    monkeypatch.setattr(compilation, "VARIANTS", 1)
    assert updates(registry, "at", session) == updates(registry, "at", None)
    assert (session.backend.compiled, session.variants) == (1, 1)


def test_more_variants_than_torchs_default_limit_are_compiled(session):
    model = network()
    session.add(model)
    for count in range(2, 14):
        with fused(model):
            model(images(count)[0])
    assert (session.notes, session.backend.compiled) == ([], 12)


@pytest.mark.parametrize(
    ("backend", "said"),
    [(no_compiler, "no C"), (not_at_run_time, "does not start"), (not_backward, "does not start")],
)
def test_without_a_compiler_updates_equal_eager_ones(registry, session, backend, said):
    session.backend = backend
    assert updates(registry, "trades+awp", session) == updates(registry, "trades+awp", None)
    (note,) = session.notes
    assert note.startswith("--compile: ")
    assert note.endswith("; going on without")
    assert "\n" not in note
    assert session.report()["problem"] in note


def test_call_that_fails_after_its_trial_is_repeated_eagerly(session):
    model, (x, _) = network().eval(), images(4)
    session.add(model)
    calls = []

    def third_time_unlucky(network: nn.Module, x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > compilation.TRIALS:
            raise RuntimeError("out of luck")
        return compilation._forward(network, x)

    compilation._NETWORKS[model].forwards["captured"] = third_time_unlucky
    with captured(model), torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert session.notes == ["--compile: RuntimeError: out of luck; going on without"]
    assert len(calls) == compilation.TRIALS + 1


# ---------------------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------------------


VARIANTS_OF_A_RUN = 13
"""The loss; the attack with and without gradients, on the batches of training and of the held-out check (as large:
other autocast settings); and in evaluation, where each of two checkpoints has a network of its own, and one attack goes
on with the images that still move, in two sizes of batches."""


@pytest.mark.parametrize("backend", ["aot_eager", no_compiler])
def test_compiled_run_equals_the_eager_run(command, finished, tiny, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(compilation, "Compilation", partial(Compilation, backend=backend))
    done = command("run", "--method", "at", "--protocol", tiny, "--store", tmp_path, "--compile", "--json")
    assert done.code == 0, done.err
    assert promised(done.document) == promised(finished.record)
    assert finished.record["environment"]["compiled"] is None
    compiled = done.document["environment"]["compiled"]
    assert (compiled["mode"], compiled["seconds"] > 0) == (None, True)
    assert done.err.count("--compile: ") == (1 if backend is no_compiler else 0)
    assert bool(compiled["problem"]) == (backend is no_compiler)
    assert compiled["variants"] == (1 if backend is no_compiler else VARIANTS_OF_A_RUN)


def test_compiled_evaluation_equals_the_eager_one(command, finished_copy, tiny, monkeypatch):
    monkeypatch.setattr(compilation, "Compilation", partial(Compilation, backend="aot_eager"))
    arguments = (
        "evaluate",
        finished_copy.key,
        "--protocol",
        tiny,
        "--store",
        finished_copy.store,
        "--attack",
        "pgd(steps=2)",
        "--json",
    )
    done = command(*arguments, "--compile")
    assert done.code == 0, done.err
    compiled = done.document["environment"]["compiled"]
    assert (compiled["problem"], compiled["variants"]) == ("", 2)
    (found,) = done.document["results"].values()
    attacks = finished_copy.record["results"]["last"]["robust_error"]
    ((attack, error),) = found["robust_error"].items()
    assert error["test"] == attacks[attack]["test"]


@pytest.mark.parametrize("first", [True, False])
def test_interrupted_compiled_run_resumes_eagerly_and_vice_versa(registry, tiny, tmp_path, monkeypatch, first):
    from robflat_bench.training import loop

    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    protocol = load(registry, str(tiny), ("recipe.epochs=1",))
    splits = load_splits(registry, protocol, None)

    def trained(store: str, compiled: bool, observer: Observer | None = None) -> str:
        compilation = Compilation("cpu", print, "aot_eager") if compiled else None
        where = Store(tmp_path / store)
        session = Session(registry, protocol, splits, where, "cpu", observer or Observer(), compile=compilation)
        run = PlannedRun(session, compose(registry, "at"), 1)
        _train(run)
        assert compilation is None or compilation.variants
        return digest(read_weights(run.folder.weights("last")))

    with pytest.raises(KeyboardInterrupt):
        trained("stopped", first, StopsAt(2))
    assert trained("stopped", not first) == trained("whole", False)


STUDY = """
name = "mine"
version = "1.0"
summary = "One run."
protocol = "tiny.toml"

[[groups]]
title = "one"
methods = ["standard"]
"""


@pytest.mark.slow
def test_sweep_passes_compile_to_its_runs(command, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # in the run's process: no compiler is needed to see that it asks
    (tmp_path / "tiny.toml").write_text(tiny.read_text())
    (tmp_path / "mine.toml").write_text(STUDY)
    done = command("sweep", tmp_path / "mine.toml", "--store", tmp_path, "--compile", "--json")
    assert done.code == 0, done.err
    (record,) = tmp_path.glob("tiny/standard/*/record.json")
    assert json.loads(record.read_text())["environment"]["compiled"]["variants"] > 0


@pytest.mark.slow
def test_inductor_equals_eager_within_rounding(registry):
    """The real compiler, which needs a C++ one here: losses within rounding, and no fallback."""
    session = Compilation("cpu", print)
    found, expected = updates(registry, "trades", session), updates(registry, "trades", None)
    assert session.problem == ""
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[2:] == expected[2:]


def test_a_compiled_attack_passes_an_operation_without_a_derivative(session):
    """Compiled code hides the operation: the ascent is repeated without it."""

    class Spread(nn.Module):
        def __init__(self, root) -> None:
            super().__init__()
            self.head, self.root = nn.Linear(64, 10), root

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(x) + self.root((x - x[:, :1]).square().mean(1))[:, None] * torch.arange(10)

    odd, hand = Spread(torch.sqrt), Spread(Root.apply)
    hand.load_state_dict(odd.state_dict())
    session.add(odd)
    x, y = torch.full((4, 1, 8, 8), 0.5), torch.arange(4)
    found = []
    for network, known in ((hand, False), (odd, False), (odd, True)):  # known: the evaluation has seen such gradients
        with attacked(network), guarded(network) if known else nullcontext():
            found.append(ascend(network, x, x, cross_entropy(y), epsilon=0.1, step=0.02, steps=4).x)
    assert session.variants > 0
    assert not session.problem
    assert (found[0] != x).any()
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])
