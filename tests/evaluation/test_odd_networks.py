"""Odd but valid networks: each gives the numbers of the same function written plainly, or one line before any work."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.naive import digits
from helpers.networks import Root
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from robflat_bench.config.protocol import Attacked, Measured, load
from robflat_bench.core import BackboneInfo, Examples, Observer, Params, RunFailed, UsageError
from robflat_bench.data.splits import channel_statistics
from robflat_bench.evaluation import copies
from robflat_bench.evaluation.copies import whole_copy
from robflat_bench.evaluation.evaluate import _flags_of_network
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.measures.flatness.worst_case import Climb, _better
from robflat_bench.numerics.folding import pairs
from robflat_bench.records.record import Result
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.runs.evaluation import evaluate_model
from robflat_bench.runs.run import PlannedRun, execute

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """The function that all spellings below share: images [N,1,8,8] -> logits [N,10]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(64, classes)
            self.norm.running_mean.normal_(0, 0.3)
            self.norm.running_var.uniform_(0.05, 0.2)
        self.eval()
        if classes == 10:
            self.head.weight.data, self.head.bias.data = fitted(self)
        self.train()

    def features(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.silu(self.map(x)), 2).flatten(1)

    def map(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@torch.no_grad()
def fitted(network: Plain) -> tuple[Tensor, Tensor]:
    """Weight and bias of the head with the least squared error on digits, so that the network is better than chance."""
    train = digits(0, 400)
    features = F.pad(network.features(train.x), (0, 1), value=1.0).double()
    ridge = features.T @ features + torch.eye(features.shape[1])
    solved = torch.linalg.solve(ridge, features.T @ F.one_hot(train.y, 10).double()).float().T * 10
    return solved[:, :-1].contiguous(), solved[:, -1].contiguous()


def spelled(forward: Callable[[Plain, Tensor], object], name: str = "Odd") -> nn.Module:
    """`Plain` with another forward."""
    return type(name, (Plain,), {"forward": forward})()


def plain(network: Plain, x: Tensor) -> Tensor:
    return Plain.forward(network, x)


def without_parameters() -> nn.Module:
    network = Plain()
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, parameter.detach())
    return network


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    network = Plain()
    change(network)
    return network


def two_views(network: Plain, x: Tensor) -> Tensor:
    """Logits that are no leaf, not contiguous, and a view."""
    logits = plain(network, x)
    return torch.stack([logits, -logits], 2)[:, :, 0]


def traced() -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return torch.jit.trace(Plain().eval(), torch.rand(2, 1, 8, 8))


SAME: dict[str, Callable[[], nn.Module]] = {
    "frozen": lambda: Plain().requires_grad_(False),
    "float64": lambda: Plain().double(),
    "train mode": lambda: Plain().train(),
    "hooks": lambda: changed(lambda net: [m.register_forward_hook(lambda *_: None) for m in net.modules()]),
    "a view": lambda: spelled(two_views),
    "a parameter that nothing reads": lambda: changed(lambda net: setattr(net, "spare", nn.Parameter(torch.ones(3)))),
}
"""Another spelling of `Plain`: equal errors, losses and measures, up to rounding."""

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a tuple": (
        lambda: spelled(lambda net, x: (plain(net, x), x)),
        r"returns a tuple, not a tensor of logits .*Odd.forward\(self, x\)\[0\]`",
    ),
    "a dictionary": (
        lambda: spelled(lambda net, x: OrderedDict(logits=plain(net, x))),
        r"returns a OrderedDict, not a tensor of logits .*\['logits'\]`",
    ),
    "nothing": (lambda: spelled(lambda net, x: None), "returns a NoneType.*end its forward with `return`"),
    "an array": (
        lambda: spelled(lambda net, x: plain(net, x).detach().numpy()),
        r"returns a ndarray.* without `.detach\(\)` and `.numpy\(\)`",
    ),
    "one number an image": (lambda: spelled(lambda net, x: plain(net, x)[:, 0]), r"makes \(30,\) of .*one logit each"),
    "one logit an image": (lambda: spelled(lambda net, x: plain(net, x)[:, :1]), r"makes \(30, 1\) of .*torch.stack"),
    "pixels of logits": (
        lambda: spelled(lambda net, x: plain(net, x)[..., None, None]),
        r"makes \(30, 10, 1, 1\) of .*; end its forward with `.flatten\(1\)`",
    ),
    "too few classes": (lambda: Plain(9), r"makes \(30, 9\) of .* not logits \(30, 10\)"),
    "too many classes": (lambda: Plain(11), r"makes \(30, 11\) of .*say so: --classes 11"),
    "the mean of the batch": (lambda: spelled(lambda net, x: plain(net, x).mean(0)), r"makes \(10,\) of"),
    "classes": (
        lambda: spelled(lambda net, x: F.one_hot(plain(net, x).argmax(1), 10)),
        "returns torch.int64, not",
    ),
    "changes its images": (lambda: spelled(lambda net, x: plain(net, x.mul_(0.5))), "changes its images in place"),
    "NaN weights": (
        lambda: changed(lambda net: net.conv.weight.data[0].fill_(torch.nan)),
        "its tensor 'conv.weight' holds NaN or infinity",
    ),
    "an infinite statistic": (
        lambda: changed(lambda net: net.norm.running_mean[0].fill_(torch.inf)),
        "its tensor 'norm.running_mean' holds NaN",
    ),
    "NaN on some images": (
        lambda: spelled(lambda net, x: plain(net, x) + (x[:, 0, 2, 2] - 0.3).log()[:, None]),
        r"its logits are NaN or infinite on \d+ of 30 test images",
    ),
    "detached images": (lambda: spelled(lambda net, x: plain(net, x.detach())), "no gradient of .* reaches the images"),
    "no_grad": (lambda: spelled(torch.no_grad()(plain)), "no gradient of .* reaches the images"),
    "no image": (
        lambda: spelled(lambda net, x: plain(net, torch.zeros_like(x)) * net.head.weight.sum()),
        "no gradient of .* reaches the images",
    ),
    "statistics of the batch": (
        lambda: changed(lambda net: setattr(net, "norm", nn.BatchNorm2d(4, track_running_stats=False))),
        "depend on the other images of its batch",
    ),
    "another order": (lambda: spelled(lambda net, x: plain(net, x).roll(1, 0)), "depend on the other images"),
    "another precision": (
        lambda: spelled(lambda net, x: plain(net, x.double())),
        "fails on images float32",
    ),
    "another size": (
        lambda: changed(lambda net: setattr(net, "head", nn.Linear(65, 10))),
        r"fails on images float32\[30, 1, 8, 8\]: RuntimeError: .*mat1 and mat2",
    ),
    "TorchScript": (traced, "TorchScript module"),
}
"""Networks without a right number, and the line that says so."""


def rooted(root: Callable[[Tensor], Tensor]) -> nn.Module:
    """`Plain` with the spread of a feature map that is constant: its weights are 0."""

    def forward(network: Plain, x: Tensor) -> Tensor:
        maps = network.map(x)
        spread = root((maps - maps[:, :, :1, :1]).square().mean((2, 3)))
        return plain(network, x) + spread.sum(1)[:, None] * torch.arange(10)

    network = spelled(forward)
    nn.init.zeros_(network.conv.weight[0])
    return network


TWINS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "bfloat16": (
        lambda: spelled(lambda net, x: plain(net, x).bfloat16()),
        lambda: spelled(lambda net, x: plain(net, x).bfloat16().float()),
    ),
    "float16": (
        lambda: spelled(lambda net, x: plain(net, x).half()),
        lambda: spelled(lambda net, x: plain(net, x).half().float()),
    ),
    "root": (lambda: rooted(torch.sqrt), lambda: rooted(Root.apply)),
    "power": (lambda: rooted(lambda s: s**0.5), lambda: rooted(Root.apply)),
    "masked root": (
        lambda: rooted(lambda s: torch.where(s > 0, s.sqrt(), 0.0)),
        lambda: rooted(Root.apply),
    ),
}
"""A network, and another one whose numbers it must have bit for bit: losses in float32, the derivative at 0 as 0."""


# ---------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------


class Idle(Observer):
    """Fails the test when an evaluation or a training begins."""

    def evaluation_starts(self, stages) -> None:
        raise AssertionError("work has begun")

    def training_starts(self, *given) -> None:
        raise AssertionError("work has begun")


class OddParams(Params):
    kind: str = "a tuple"


def odd_backbone(params: OddParams, shape: object, activation: str) -> nn.Module:
    return TWINS[params.kind][0]() if params.kind in TWINS else REFUSED[params.kind][0]()


@pytest.fixture(scope="module")
def odd_registry(registry) -> Registry:
    """The built-in components and the backbone `odd(kind=...)`: the networks of REFUSED and the first ones of TWINS."""
    extended = Registry(registry.plugins)
    extended.add(
        BackboneInfo("odd", "-", f"{__name__}:odd_backbone", OddParams, pretrained=True),
        registry.get("attack", "fgsm").provider,
    )
    return extended


@pytest.fixture
def session(odd_registry, tiny, tmp_path) -> Session:
    return Session(odd_registry, load(odd_registry, str(tiny)), None, Store(tmp_path / "store"), "cpu")


@pytest.fixture(scope="module")
def expected(odd_registry, tiny, tmp_path_factory) -> Result:
    """The numbers of `Plain`."""
    store = Store(tmp_path_factory.mktemp("plain"))
    return evaluated(Session(odd_registry, load(odd_registry, str(tiny)), None, store, "cpu"), Plain(), *MEASURES)


def evaluated(session: Session, network: nn.Module | str, *measures: str) -> Result:
    texts = [resolve(session.registry, "measure", text).canonical for text in measures]
    plan = Plan(
        tuple(Attacked(attack=text, test=30, train=10) for text in ATTACKS),
        tuple(Measured(measure=text, test=30) for text in texts),
    )
    record, _ = evaluate_model(session, network, plan)
    return record.results[record.model]


MEASURES = (
    "worst-case(restarts=1, steps=3, strong_steps=2, xi=0.1)",
    "average-case(draws=2, steps=2)",
    "input-gradient-norm",
    "local-lipschitz(steps=2)",
    "margin",
    "hessian-trace(probes=2)",
)
FIRST_ORDER = MEASURES[:-1]
AUTOATTACK = 'autoattack(batch=250, fast=true, seed=0, version="apgd")'
ATTACKS = ('pgd(init="uniform", loss="ce", restarts=1, steps=10)', "fgsm")


def numbers(result: Result) -> list[float]:
    robust = [value for each in result.robust_error.values() for value in (each.test, each.train)]
    measures = [measured.value for measured in result.measures.values()]
    return [result.clean_error, *robust, result.robust_loss.test, *measures]


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_in_another_spelling_has_the_same_numbers(session, expected, name):
    assert expected.robust_loss.test > 0
    assert numbers(evaluated(session, SAME[name](), *MEASURES)) == pytest.approx(numbers(expected), rel=1e-4)


def test_weights_that_are_buffers_have_no_flatness_and_the_same_robustness(session, expected):
    found = evaluated(session, without_parameters(), *MEASURES)
    assert found.robust_error == expected.robust_error
    for text, measured in found.measures.items():
        if text.startswith(("input", "local", "margin")):
            assert measured.value == pytest.approx(expected.measures[text].value, rel=1e-5)
        else:
            assert "no weights that move" in measured.reason, text


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_without_a_right_number_is_refused_before_any_work(session, name):
    make, says = REFUSED[name]
    module = make()
    before = copy.deepcopy(module.state_dict())
    lines = []
    for network in (module, f"odd(kind='{name}')"):
        object.__setattr__(session, "observer", Idle())
        with pytest.raises(UsageError, match=says) as caught:
            evaluated(session, network)
        lines.append(str(caught.value))
    assert all("\n" not in line for line in lines)
    assert not (session.store.root / "tiny").exists()
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[key].nan_to_num(7))


def with_function(attach: Callable[[nn.Module], object], network: nn.Module) -> nn.Module:
    attach(network)
    return network


def _closure(net: nn.Module) -> None:
    old = net.forward
    net.forward = lambda x: old(x)


def hook(held: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module], object]:
    """A hook that holds a tensor of the network."""

    def attach(net: nn.Module) -> object:
        tensor = held(net)
        return net.register_forward_hook(lambda module, x, logits: logits + 0 * tensor.sum())

    return attach


def _layer_without_weights(net: nn.Module) -> None:
    """Its mode, that of the original, is all that it has."""
    net.dropout = dropout = nn.Dropout(0.1)
    net.register_forward_hook(lambda module, x, logits: dropout(logits))


class Shared(nn.Linear):
    """A layer that copies to itself."""

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        return self


HOLDING: dict[str, Callable[[], nn.Module]] = {
    "a closure": lambda: with_function(_closure, Plain().train()),
    "a closure over frozen weights": lambda: with_function(_closure, Plain().requires_grad_(False)),
    "a closure over float64": lambda: with_function(_closure, Plain().double()),
    "a compiled forward": lambda: with_function(
        lambda net: setattr(net, "forward", torch.compile(net.forward, backend="eager")), Plain()
    ),
    "a weight": lambda: with_function(hook(lambda net: net.head.weight), Plain()),
    "a weight in float64": lambda: with_function(hook(lambda net: net.head.weight), Plain().double()),
    "a frozen weight": lambda: with_function(hook(lambda net: net.head.weight), Plain().requires_grad_(False)),
    "a detached weight": lambda: with_function(hook(lambda net: net.head.weight.detach()), Plain()),
    "a view of a statistic": lambda: with_function(hook(lambda net: net.norm.running_mean[1:]), Plain()),
    "a layer without weights": lambda: with_function(_layer_without_weights, Plain()),
    "a shared layer": lambda: with_function(lambda net: setattr(net, "head", Shared(64, 10)), Plain()),
}
"""Networks with a function on them that holds their layers, and goes on holding them when they are copied."""


@pytest.mark.parametrize("name", HOLDING)
def test_a_live_network_whose_copy_would_compute_with_its_weights_is_refused(session, name):
    """Moves of the copy would have no effect: flatness was 0. In train mode, the original's statistics moved."""
    network = HOLDING[name]()
    before, flags = copy.deepcopy(network.state_dict()), [each.requires_grad for each in network.parameters()]
    object.__setattr__(session, "observer", Idle())
    with pytest.raises(UsageError, match=r"computes with the original's layers.*class Logits\(Plain\): forward"):
        evaluated(session, network)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert [each.requires_grad for each in network.parameters()] == flags
    assert not any(each._forward_pre_hooks for each in network.modules())


@pytest.mark.parametrize("name", ["a weight", "a frozen weight", "a closure"])
def test_compiled_code_that_shows_no_operation_is_seen_by_its_gradient(session, monkeypatch, name):
    """As of a network that torch.compile had compiled before it was copied."""

    def unseen(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))

    monkeypatch.setattr(copies._Watch, "__torch_function__", unseen)
    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", lambda *_: RemovableHandle(OrderedDict()))
    with pytest.raises(UsageError, match="computes with the original's layers"):
        whole_copy(session, HOLDING[name](), "it")


def test_a_network_that_is_refused_for_another_reason_keeps_no_hook(session):
    network = nn.Sequential(Plain().eval(), traced_layer())
    with pytest.raises(UsageError, match="TorchScript module"):
        evaluated(session, network)
    network(torch.rand(2, 1, 8, 8))


def traced_layer() -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return torch.jit.trace(nn.Linear(10, 10).eval(), torch.rand(2, 10))


class Counting(nn.Module):
    """Counts its passes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x)


def test_the_copy_that_is_evaluated_has_made_no_pass(session):
    network = Counting()
    copied = whole_copy(session, network, "it")
    assert (network.passes, copied.passes) == (0, 0)


def _bound(net: nn.Module) -> None:
    net.forward = types.MethodType(Plain.forward, net)


@pytest.mark.parametrize("attach", [_bound, lambda net: setattr(net, "forward", functools.partial(net.forward))])
def test_functions_that_are_copied_with_their_network_change_nothing(session, expected, attach):
    found = evaluated(session, with_function(attach, Plain()), *MEASURES)
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------
# Precision of logits, and gradients that are not finite
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_a_network_has_the_numbers_of_its_twin(session, name):
    odd, twin = (evaluated(session, make(), *FIRST_ORDER) for make in TWINS[name])
    assert numbers(odd) == pytest.approx(numbers(twin), rel=1e-5)
    assert odd.robust_error == twin.robust_error
    assert odd.clean_error < 0.5 < odd.robust_error[ATTACKS[0]].test
    assert odd.flags.nonfinite_gradients == (0.0 if "float" in name else 1.0)
    assert odd.flags.reasons() == (() if "float" in name else ("gradients not finite on 100%",))
    assert twin.flags.reasons() == ()


def test_the_curvature_of_a_network_without_a_derivative_has_no_value(session):
    found = evaluated(session, rooted(torch.sqrt), "hessian-trace(probes=2)", "hessian-lambda-max", "fisher-rao")
    for measured in found.measures.values():
        assert measured.value is None
        assert measured.reason


def test_logits_in_half_precision_train_to_the_weights_of_float32(session, monkeypatch):
    name = "bfloat16"
    fixed = session.fixed.model_copy(update={"backbone": f"odd(kind='{name}')"})
    there = replace(session, protocol=replace(session.protocol, fixed=fixed))
    odd = execute(PlannedRun(there, compose(there.registry, "at"), 1))
    monkeypatch.setitem(TWINS, name, TWINS[name][::-1])
    twin = execute(PlannedRun(there, compose(there.registry, "at"), 1), fresh=True)
    assert odd.history[0].train_loss == twin.history[0].train_loss
    assert odd.results["last"].weights == twin.results["last"].weights


def test_gradients_that_are_not_finite_are_flagged_on_a_single_image_anywhere():
    """Of 300 images, more than a memory batch, one has a constant map; 1 % of zero gradients would not be shown."""
    network = spelled(lambda net, x: plain(net, x) + x.square().sum((1, 2, 3)).sqrt()[:, None])
    x = digits(0, 300).x
    x[270] = 0
    flags = _flags_of_network(network.eval(), Examples(x, torch.zeros(300, dtype=torch.int64), torch.arange(300)))
    assert flags.nonfinite_gradients == pytest.approx(1 / 300)
    assert flags.reasons(300) == ("gradients not finite on 0.333%",)
    assert flags.model_copy(update={"nonfinite_gradients": 1e-4}).reasons() == ("gradients not finite on 0.01%",)


def test_autoattack_passes_an_operation_without_a_derivative(session):
    """Attacks of others differentiate the network as it is given to them: stuck, they break the images of the start."""
    plan = Plan((Attacked(attack=AUTOATTACK, test=12),), ())
    odd, twin = (evaluate_model(session, make(), plan)[0].results["Odd"] for make in TWINS["root"])
    assert odd.robust_error == twin.robust_error
    assert odd.robust_error[AUTOATTACK].test > odd.clean_error


def test_logits_that_are_nan_within_the_ball_fail_the_attack_that_finds_them(session):
    """They are finite on all clean images, whose corner is black."""
    network = spelled(lambda net, x: plain(net, x) + (0.04 - x[:, 0, 0, 0]).log()[:, None])
    with pytest.raises(RunFailed, match=r"logits are NaN or infinite on \d+ of the 30 test images of pgd.*; bound"):
        evaluated(session, network)


def test_a_loss_of_nan_cannot_make_a_measure_lower(session):
    """The loss is NaN where the weights have moved: the record says so, instead of counting the start."""
    network = spelled(lambda net, x: plain(net, x) + (net.head.bias[0] - net.centre + 1e-9).log())
    network.register_buffer("centre", network.head.bias.detach()[0].clone())
    measured = next(iter(evaluated(session, network, MEASURES[0]).measures.values()))
    assert measured.value is None
    assert "nan" in measured.reason
    low, nan = (Climb({}, torch.zeros(2), torch.tensor(losses)) for losses in ([1.0, 2.0], [1.0, torch.nan]))
    assert _better(_better(low, nan), low) is nan


def test_a_constant_channel_is_left_as_it_is():
    """Its deviation counts as 1: networks divide by it."""
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    x[..., 1] = 77
    means, stds = channel_statistics(x)
    assert means == pytest.approx(x.mean((0, 1, 2)) / 255)
    assert stds == pytest.approx([x[..., 0].std() / 255, 1.0, x[..., 2].std() / 255])


def test_a_network_that_is_not_finite_is_not_folded():
    network = changed(lambda net: net.conv.weight.data.fill_(torch.nan)).eval()
    assert pairs(network, torch.rand(2, 1, 8, 8)) == []
    assert len(pairs(Plain().eval(), torch.rand(2, 1, 8, 8))) == 1


def test_a_run_with_a_network_that_has_no_logits_ends_before_training(session):
    fixed = session.fixed.model_copy(update={"backbone": "odd(kind='a tuple')"})
    there = replace(session, protocol=replace(session.protocol, fixed=fixed), observer=Idle())
    run = PlannedRun(there, compose(there.registry, "hat"), 1)
    with pytest.raises(UsageError, match=r"odd\(kind=.* returns a tuple, not a tensor of logits"):
        execute(run)
    assert not list(session.store.root.rglob("*.safetensors"))
