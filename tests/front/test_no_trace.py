"""A call from Python leaves no trace: process, network, data and files are as before, however the call ends; and its
numbers do not depend on what it is called in."""

import contextlib
import copy
import gc
import pickle
import random
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import scipy.sparse
import scipy.special  # noqa: F401  (these imports add filters of warnings)
import torch
from helpers import surroundings
from helpers.surroundings import changes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import robflat_bench as rb
from robflat_bench.core import RunFailed, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")

EPSILON = 0.2
MEASURE = "average-case(draws=2, steps=1)"


class Net(nn.Module):
    """Convolution, batch norm, dropout, and Python state that its forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 10)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.calls = 0
        self.seen: list[int] = []

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))) * self.scale


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


def partly_in_eval(net):
    net.norm.eval()


def with_gradients(net):
    x = torch.rand(3, 1, 8, 8)
    net(x).sum().backward()
    net.conv.bias.grad = None


def frozen(net):
    net.conv.requires_grad_(False)


def with_weight_norm(net):
    parametrizations.weight_norm(net.conv)


def with_spectral_norm(net):
    parametrizations.spectral_norm(net.head)


def with_old_norms(net):
    weight_norm(net.conv)
    spectral_norm(net.head)
    net(torch.rand(3, 1, 8, 8))


def with_hooks(net):
    net.conv.register_forward_hook(_doubles)
    net.head.register_full_backward_hook(_passes)
    net.conv.weight.register_hook(_same)


def _doubles(module, given, found):
    return 2 * found


def _passes(module, above, below):
    return None


def _same(gradient):
    return gradient


def tied(net):
    net.twin = net.head


def parallel(net):
    return nn.DataParallel(net)


def made_under_inference(net):
    with torch.inference_mode():
        return Net().eval()


NETWORKS = (
    lambda net: None,
    partly_in_eval,
    with_gradients,
    frozen,
    with_weight_norm,
    with_spectral_norm,
    with_old_norms,
    with_hooks,
    tied,
    parallel,
    made_under_inference,
)


def network(change: Callable) -> nn.Module:
    torch.manual_seed(1)
    net = Net()
    return change(net) or net


# ---------------------------------------------------------------------------------------------------------
# Surroundings
# ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def setting(read: Callable, write: Callable, value: object) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def attribute(owner: object, name: str, value: object) -> Callable:
    return lambda: setting(lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value)


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    with setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True):
        yield


backends = torch.backends
SURROUNDINGS: dict[str, Callable] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "grad disabled": lambda: setting(torch.is_grad_enabled, torch.set_grad_enabled, False),
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "float16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "meta": lambda: torch.device("meta"),
    "set_default_device": lambda: setting(torch.get_default_device, torch.set_default_device, "meta"),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": deterministic,
    "benchmark": attribute(backends.cudnn, "benchmark", True),
    "no mkldnn": attribute(backends.mkldnn, "enabled", False),
    "medium": lambda: setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "all in bf16": attribute(backends, "fp32_precision", "bf16"),
    "all in tf32": attribute(backends, "fp32_precision", "tf32"),
    "convolutions in bf16": attribute(backends.mkldnn.conv, "fp32_precision", "bf16"),
    "matmul in bf16": attribute(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "numpy raises": lambda: np.errstate(all="raise"),
    "fork_rng": lambda: torch.random.fork_rng([]),
    "warnings are errors": warnings_are_errors,
}

THREADS = ("two threads", lambda: setting(torch.get_num_threads, torch.set_num_threads, 2))
"""Apart: `measure` computes with the threads of the process, and says so."""


@pytest.fixture(autouse=True)
def _as_new(one_thread, tmp_path, monkeypatch):
    """Each test starts with the precision that torch starts with, and with an empty folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    surroundings.forget_precision()
    yield
    surroundings.forget_precision()


# ---------------------------------------------------------------------------------------------------------
# Endings
# ---------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """An exception of the user's own."""


def _raises() -> None:
    raise Broken


def _interrupts() -> None:
    signal.raise_signal(signal.SIGINT)


class _At:
    """Does something at the n-th pass of a network; it is shared by the network's copies."""

    def __init__(self, passes: int, does: Callable) -> None:
        self.left, self.does = passes, does

    def __deepcopy__(self, memo):
        return self

    def __call__(self, module, given):
        self.left -= 1
        if self.left == 0:
            self.spoil()
            self.does()

    @staticmethod
    def spoil() -> None:
        """What a careless forward does to its process before it fails."""
        torch.rand(3), np.random.rand(), random.random()
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        backends.cudnn.deterministic = False
        backends.mkldnn.conv.fp32_precision = "bf16"


class Fails(TensorDataset):
    """The sixth item ends in an exception."""

    def __getitem__(self, index):
        if index == 5:
            torch.rand(1)
            raise Broken
        return super().__getitem__(index)


# ---------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(8) % 10


@pytest.fixture(scope="module")
def calls(tiny, finished, tmp_path_factory) -> dict[str, Callable]:
    """Name -> a call on a network and data; each writes into a store of its own."""
    quiet = {"progress": False}

    def stored(net, data):
        store = tmp_path_factory.mktemp("store")
        chosen = {"attacks": ["fgsm"], "measures": [MEASURE, "path-norm"]}
        return rb.evaluate(net, data=data, protocol=str(tiny), store=store, **chosen, **quiet)

    def diverges(net, data):
        changed = {"recipe.learning_rate": 1e30}
        return rb.run("at", protocol=str(tiny), settings=changed, store=tmp_path_factory.mktemp("store"), **quiet)

    return {
        "evaluate": stored,
        "measure": lambda net, data: rb.measure(net, data, MEASURE, epsilon=EPSILON, **quiet),
        "hessian": lambda net, data: rb.measure(net, data, "hessian-lambda-max", epsilon=EPSILON, **quiet),
        "attack": lambda net, data: rb.attack(net, *_pair(data), "pgd(steps=2)", epsilon=EPSILON, **quiet),
        "run": lambda net, data: rb.run("at", protocol=str(tiny), store=finished.store, **quiet),
        "load": lambda net, data: rb.load(finished.folder, protocol=str(tiny)),
        "results": lambda net, data: repr(rb.results(finished.store)),
        "board": lambda net, data: rb.board(str(tiny), store=finished.store, leaderboard="none")._repr_html_(),
        "list": lambda net, data: repr(rb.list("measures")),
        "info": lambda net, data: repr(rb.info("awp")),
        "wrong measure": lambda net, data: rb.measure(net, data, "mergin", epsilon=EPSILON, **quiet),
        "wrong labels": lambda net, data: rb.attack(
            net, _pair(data)[0], torch.ones(3).long(), epsilon=EPSILON, **quiet
        ),
        "wrong run": lambda net, data: rb.load("12345678", store=finished.store),
        "wrong method": lambda net, data: rb.run("att", **quiet),
        "wrong kind": lambda net, data: rb.list("measure of all things"),
        "no name": lambda net, data: rb.info("nothing"),
        "no board": lambda net, data: rb.board("digits"),
        "diverges": diverges,
    }


COMPUTING = ("evaluate", "measure", "hessian", "attack")


def _pair(data):
    return data if isinstance(data, tuple) else data.dataset.tensors


EXPECTED = (UsageError, RunFailed, Broken, KeyboardInterrupt)


def trace(call: Callable, net: nn.Module, data: object) -> tuple[list[str], BaseException | None]:
    """What a call changed, and how it ended."""
    generator = data.generator.get_state() if isinstance(data, DataLoader) else torch.zeros(0)
    before = surroundings.process() | surroundings.network(net)
    raised = None
    try:
        call(net, data)
    except EXPECTED as error:
        raised = error
    found = changes(before, surroundings.process() | surroundings.network(net))
    if isinstance(data, DataLoader) and not torch.equal(generator, data.generator.get_state()):
        found.append("generator of the loader")
    return found, raised


def in_thread(call: Callable) -> object:
    """The result of a call in another thread."""
    found: list = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


# ---------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------

quick = settings(
    max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(
    name=st.sampled_from(
        ["evaluate", "measure", "hessian", "attack", "load", "board", "wrong measure", "wrong labels"]
    ),
    change=st.sampled_from(NETWORKS),
    around=st.lists(st.sampled_from([*SURROUNDINGS.values(), THREADS[1]]), max_size=2, unique=True),
    passes=st.sampled_from([0, 0, 1, 2, 5, 9]),
    does=st.sampled_from([_raises, _interrupts]),
    other_thread=st.booleans(),
)
def test_a_call_leaves_process_and_network_as_they_were(
    calls, images, name, change, around, passes, does, other_thread
):
    net = network(change)
    if passes:
        net.register_forward_pre_hook(_At(passes, _raises if other_thread else does))

    def called():
        with contextlib.ExitStack() as stack:
            for one in around:
                stack.enter_context(one())
            return trace(calls[name], net, images)

    try:
        found, _ = in_thread(called) if other_thread else called()
    finally:
        surroundings.forget_precision()
    assert found == []


@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_numbers_do_not_depend_on_the_surroundings(calls, images, around):
    net = network(with_hooks)
    plain = _numbers(calls, net, images)
    here: list = []
    with around():
        found, _ = trace(lambda net, data: here.append(_numbers(calls, net, data)), net, images)
    assert found == []
    assert here == [plain]


def _numbers(calls, net, images):
    evaluated = calls["evaluate"](net, images)
    values = [(result.value, result.standard_error) for result in evaluated.measures.values()]
    outcomes = {name: array.tobytes() for name, array in evaluated.outcomes.items()}
    return values, outcomes, float(calls["measure"](net, images)), calls["attack"](net, images).numpy().tobytes()


@pytest.mark.parametrize("name", ["run", "load", "results", "board", "list", "info", *COMPUTING])
def test_every_call_leaves_no_trace_when_it_succeeds(calls, images, name):
    found, raised = trace(calls[name], network(with_gradients), images)
    assert raised is None
    assert found == []


@pytest.mark.parametrize(
    "name", ["wrong measure", "wrong labels", "wrong run", "wrong method", "wrong kind", "no name", "no board"]
)
def test_a_call_that_is_refused_leaves_no_trace(calls, images, name):
    found, raised = trace(calls[name], network(with_gradients), images)
    assert isinstance(raised, UsageError)
    assert found == []


def test_a_run_that_diverges_leaves_no_trace(calls, images):
    found, raised = trace(calls["diverges"], network(with_gradients), images)
    assert isinstance(raised, RunFailed)
    assert found == []


@pytest.mark.parametrize("dataset", [TensorDataset, Fails])
@pytest.mark.parametrize("sampler", [None, RandomSampler])
def test_the_generator_of_a_loader_is_left_as_it_was(calls, images, dataset, sampler):
    generator, items = torch.Generator().manual_seed(3), dataset(*images)
    sampler = sampler and sampler(items, generator=generator)
    loader = DataLoader(items, batch_size=2, generator=generator, sampler=sampler)
    found, raised = trace(calls["measure"], network(with_gradients), loader)
    assert isinstance(raised, Broken if dataset is Fails else None.__class__)
    assert found == []


@pytest.mark.parametrize("name", COMPUTING)
def test_python_state_that_a_forward_changes_stays(calls, images, name):
    net = network(with_gradients)
    calls_before, seen = net.calls, net.seen
    calls[name](net, images)
    assert (net.calls, net.seen) == (calls_before, [3])
    assert net.seen is seen


@pytest.mark.parametrize(
    "value", ["medium", "high", "all in bf16", "all in tf32", "convolutions in bf16", "matmul in bf16"]
)
def test_a_precision_that_followed_the_precision_of_all_still_follows_it(images, value):
    around = SURROUNDINGS.get(
        value, lambda: setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)
    )
    found = []
    for call in (lambda: None, lambda: rb.attack(network(frozen), *images, "fgsm", epsilon=EPSILON, progress=False)):
        surroundings.forget_precision()
        with around():
            call()
            found.append(surroundings.inherited())
    assert changes(*found) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that Python's library had open
def test_ctrl_c_at_any_moment_leaves_no_trace(calls, images):
    net, ends = network(with_hooks), set()
    before = surroundings.process() | surroundings.network(net)
    handler = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    gc.disable()  # Python drops what is raised in a callback of its garbage collector
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        stack.callback(signal.signal, signal.SIGALRM, handler)
        stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        for moment in range(1, 80, 4):
            signal.setitimer(signal.ITIMER_REAL, moment / 1000)
            try:
                calls["measure"](net, images)
                signal.setitimer(signal.ITIMER_REAL, 0)
                ends.add("finished")
            except KeyboardInterrupt:
                ends.add("interrupted")
            changed = changes(before, surroundings.process() | surroundings.network(net))
            assert set(changed) <= {"signals"}, moment  # SIGALRM is the test's own
    assert "interrupted" in ends


@pytest.mark.parametrize(
    ("passes", "does"),  # an error of the first passes says nothing of the copy, and chooses the memory format
    [*product((1, 2), (_interrupts,)), *product((3, 4, 8), (_raises, _interrupts))],
)
def test_a_forward_that_fails_after_spoiling_the_process_leaves_no_trace(calls, images, passes, does):
    net = network(partly_in_eval)
    net.register_forward_pre_hook(_At(passes, does))
    found, raised = trace(calls["measure"], net, images)
    assert isinstance(raised, UsageError | Broken if does is _raises else KeyboardInterrupt)
    assert found == []


@pytest.mark.parametrize("name", COMPUTING)
def test_a_forward_that_fails_fails_every_call_of_a_network(calls, images, name):
    net = network(partly_in_eval)
    net.register_forward_pre_hook(_At(3, _raises))
    found, raised = trace(calls[name], net, images)
    assert isinstance(raised, UsageError | Broken)  # the former where the first passes fail
    assert found == []


def test_nothing_is_written_outside_the_store(tiny, images, tmp_path, monkeypatch):
    home, here, store = (tmp_path / name for name in ("home", "here", "store"))
    for path in (home, here):
        path.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    net = network(frozen)
    rb.evaluate(net, data=images, protocol=str(tiny), attacks=["fgsm"], store=store, progress=False)
    rb.measure(net, images, MEASURE, epsilon=EPSILON, progress=False)
    with contextlib.suppress(Broken):
        rb.measure(net, Fails(*images), MEASURE, epsilon=EPSILON, progress=False)
    rb.results(store)
    assert [path.name for path in tmp_path.iterdir() if path not in (home, here)] == ["store"]
    assert surroundings.folder(home) == surroundings.folder(here) == {}


# ---------------------------------------------------------------------------------------------------------
# What `load` returns
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["nothing", "inference_mode", "float64", "autocast", "set_default_device"])
def test_a_loaded_network_is_a_plain_module(calls, images, tmp_path, around):
    with SURROUNDINGS[around]():
        net, _ = calls["load"](None, None)
    parameters = [*net.parameters()]
    assert all(part.requires_grad and part.grad is None and not part.is_inference() for part in parameters)
    assert {(part.dtype, part.device.type) for part in parameters} == {(torch.float32, "cpu")}
    x, y = images
    logits = net(x).detach()
    assert logits.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.float32
    torch.save(net.state_dict(), tmp_path / "net.pt")
    twin, _ = calls["load"](None, None)
    twin.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    for other in (twin, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), logits)
    assert net.double()(x.double()).dtype == torch.float64
    twin.train()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert next(twin.to("meta").parameters()).is_meta


def test_within_a_call_errors_of_numpy_and_autograd_are_those_of_a_new_process():
    from robflat_bench.front.guard import undisturbed

    with np.errstate(all="raise"), torch.autograd.set_detect_anomaly(True), torch.no_grad():
        with undisturbed():
            within = np.geterr(), torch.is_anomaly_enabled(), torch.is_grad_enabled()
        after = np.geterr(), torch.is_anomaly_enabled(), torch.is_grad_enabled()
    usual = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    assert within == (usual, False, True)
    assert after == (dict.fromkeys(usual, "raise"), True, False)
