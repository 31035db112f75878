"""Input-space, gradient and norm measures: closed forms, brute force, what rescaling does, folding, resuming."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from helpers.measures import Remembering, residual, stir, tangled
from helpers.naive import digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robflat_bench.backbones.parts import Normalized, initialize
from robflat_bench.backbones.resnet import ResNet8Params, resnet8
from robflat_bench.core import Examples, ImageShape, Measurement, NoValue, Threat, Workspace
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.measures.inputs.gradient_alignment import GradientAlignment
from robflat_bench.numerics.folding import folded, pairs
from robflat_bench.registry.components import resolve

EPSILON = 0.1
THREAT = Threat(EPSILON)
THICKNESS = "boundary-thickness(radius=0.4, points=32, steps=5)"
GRADIENTS = ("weight-gradient-norm", "input-gradient-norm", "margin")
INPUTS = ("input-gradient-norm", "margin", "local-lipschitz", THICKNESS, "gradient-alignment")
ALL = ("weight-gradient-norm", *INPUTS, "spectral-norm", "path-norm")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def measure(registry):
    """measure(text, model, examples, ...) -> Measurement."""

    def run(text: str, model: nn.Module, examples: Examples, workspace: Workspace | None = None) -> Measurement:
        found: Measurement = (
            resolve(registry, "measure", text)
            .build(THREAT)
            .measure(model, examples, workspace or Workspace(batch=100, seed=5))
        )
        return found

    return run


# ---------------------------------------------------------------------------------------------------------
# Models and examples
# ---------------------------------------------------------------------------------------------------------


def small_net(activation: nn.Module | None = None) -> nn.Sequential:
    """Images [B,2,5,5] -> 4 logits, with normalisation that does something; float64, eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        act = activation or nn.ReLU()
        net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), act, nn.Flatten(), nn.Linear(125, 4))
        stir(net)
    return net.double().eval()


def small_examples(count: int = 12) -> Examples:
    x = torch.rand(count, 2, 5, 5, generator=generator("x"), dtype=torch.float64)
    return Examples(x, torch.randint(0, 4, (count,), generator=generator("y")), torch.arange(100, 100 + count))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """resnet8(width=4), float32, trained a little on 400 digits; look, do not touch."""
    model = resnet8(ResNet8Params(width=4), ImageShape(1, 8, 10, (0.3,), (0.37,)), "relu")
    initialize(model, generator(1, "init"))
    examples, optimizer = digits(0, 400), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(6):
        for rows in torch.randperm(400, generator=generator("order", epoch)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(examples.x[rows]), examples.y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


class Duel(nn.Module):
    """Two classes whose logits differ by z = w.x + b, exactly linear in the image."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(9, generator=generator("duel"), dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def difference(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w + self.bias

    def forward(self, x: Tensor) -> Tensor:
        z = self.difference(x)
        return torch.stack([z / 2, -z / 2], 1)


def grey(count: int = 12) -> Examples:
    """Images [B,1,3,3] whose whole ball lies in the box."""
    x = 0.2 + 0.6 * torch.rand(count, 1, 3, 3, generator=generator("grey"), dtype=torch.float64)
    return Examples(x, torch.randint(0, 2, (count,), generator=generator("sides")), torch.arange(count))


def pgd(model: nn.Module, examples: Examples, steps: int, seed: int = 5) -> Tensor:
    """The images of the coupling `frozen`, the long way round: the iterate with the highest loss."""
    x = examples.x + EPSILON * per_example_uniform(examples.x, examples.index, seed, "pgd", 0)
    best, highest = x, torch.full((len(examples),), -math.inf).to(x)
    for _ in range(steps + 1):
        x = torch.clamp(x, examples.x - EPSILON, examples.x + EPSILON).clamp(0, 1).detach().requires_grad_()
        losses = F.cross_entropy(model(x), examples.y, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        best = torch.where((losses > highest)[:, None, None, None], x, best).detach()
        highest = torch.maximum(highest, losses).detach()
        x = (x + EPSILON / 4 * gradient.sign()).detach()
    return best


# ---------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------


def weight_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean loss, all layers but the normalisation in one vector."""
    loss = F.cross_entropy(model(x), y)
    layers = [model[0].weight, model[0].bias, model[4].weight, model[4].bias]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, layers)])


@pytest.mark.parametrize("coupling", ["clean", "frozen"])
def test_weight_gradient_norm_is_that_of_dense_autograd(measure, coupling):
    model, examples = small_net(), small_examples(23)
    x = pgd(model, examples, 4) if coupling == "frozen" else examples.x
    gradient = weight_gradient(model, x, examples.y)
    found = measure(f"weight-gradient-norm(coupling={coupling}, steps=4)", model, examples)
    w = torch.cat([p.detach().flatten() for p in (*model[0].parameters(), *model[4].parameters())])
    assert found.value == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert found.details["squared"] == pytest.approx(float(gradient.square().sum()), rel=1e-10)
    assert found.details["adaptive"] == pytest.approx(float((w * gradient).abs().sum()), rel=1e-10)
    groups = [[i for i in range(23) if i % 10 != group] for group in range(10)]
    without = [float(weight_gradient(model, x[rows], examples.y[rows]).norm()) for rows in groups]
    assert found.arrays["leave_one_group_out"] == pytest.approx(without, rel=1e-9)
    spread = sum((value - np.mean(without)) ** 2 for value in without)
    assert found.standard_error == pytest.approx(math.sqrt(9 / 10 * spread), rel=1e-8)


def test_jackknife_is_the_spread_over_fresh_samples(measure):
    model = small_net()
    x = torch.rand(2000, 2, 5, 5, generator=generator("many"), dtype=torch.float64)
    y = torch.randint(0, 4, (2000,), generator=generator("labels")) // 2
    found = [
        measure("weight-gradient-norm(coupling=clean)", model, Examples(x[rows], y[rows], rows))
        for rows in torch.arange(2000).split(50)
    ]
    spread = np.std([one.value for one in found], ddof=1)
    assert math.sqrt(np.mean([one.standard_error**2 for one in found])) == pytest.approx(spread, rel=0.3)


def test_one_example_has_no_standard_error(measure):
    for text in ("weight-gradient-norm(coupling=clean)", "margin(coupling=clean)"):
        assert measure(text, small_net(), small_examples(1)).standard_error is None


def test_adaptive_gradient_norm_is_the_slope_of_adaptive_box_sharpness(measure):
    """max_{|nu_i| <= rho |w_i|} L(w + nu) - L(w) = rho ||w (.) g||_1 + O(rho^2), the highest corner read."""
    model, examples, rho = small_net(nn.SiLU()), small_examples(), 1e-6
    found = measure("weight-gradient-norm(coupling=clean)", model, examples)
    loss = F.cross_entropy(model(examples.x), examples.y)
    layers = [*model[0].parameters(), *model[4].parameters()]
    gradients = torch.autograd.grad(loss, layers)
    with torch.no_grad():
        for layer, gradient in zip(layers, gradients, strict=True):
            layer += rho * layer.abs() * gradient.sign()
        rise = float(F.cross_entropy(model(examples.x), examples.y) - loss)
    assert found.details["adaptive"] == pytest.approx(rise / rho, rel=1e-3)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("coupling", ["clean", "frozen"])
def test_input_gradient_norm_equals_the_naive_loop(measure, p, coupling):
    model, examples = small_net(), small_examples()
    found = measure(f"input-gradient-norm(p={p}, coupling={coupling}, steps=4)", model, examples)
    images = pgd(model, examples, 4) if coupling == "frozen" else examples.x
    lengths = []
    for image, label in zip(images, examples.y, strict=True):
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(image), label[None]), image)
        lengths.append(sum(abs(float(g)) ** p for g in gradient.flatten()) ** (1 / p))
    assert found.arrays["per_example"] == pytest.approx(lengths, rel=1e-9)
    assert found.value == pytest.approx(np.mean(lengths), rel=1e-9)
    assert found.standard_error == pytest.approx(np.std(lengths, ddof=1) / math.sqrt(12))


def test_input_gradient_norm_of_two_classes_in_closed_form(measure):
    """|| (1 - p_y) w ||_1 of a linear network."""
    model, examples = Duel(), grey()
    sides = torch.where(examples.y == 0, 1.0, -1.0)
    wrong = torch.sigmoid(-sides * model.difference(examples.x)).detach()
    found = measure("input-gradient-norm(coupling=clean)", model, examples)
    assert found.arrays["per_example"] == pytest.approx((wrong * model.w.detach().abs().sum()).numpy(), rel=1e-12)


def alignment_by_hand(model: nn.Module, examples: Examples, draw: int) -> list[float]:
    eta = EPSILON * per_example_uniform(examples.x, examples.index, 5, "gradient-alignment", draw)
    cosines = []
    for image, noise, label in zip(examples.x, eta, examples.y, strict=True):
        directions = []
        for at in (image, image + noise):
            variable = at[None].clone().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(model(variable), label[None]), variable)
            directions.append(g.flatten())
        cosines.append(float(torch.nn.functional.cosine_similarity(*directions, dim=0)))
    return cosines


def test_gradient_alignment_equals_the_naive_loop(measure):
    model, examples = small_net(), small_examples()
    found = measure("gradient-alignment(draws=3)", model, examples)
    cosines = np.array([alignment_by_hand(model, examples, draw) for draw in range(3)])
    assert found.arrays["per_example"] == pytest.approx(cosines.mean(0), abs=1e-10)
    assert found.value < 0.999
    assert found.details["vanishing"] == 0
    expected = math.sqrt((cosines.var(0, ddof=1) / 3).sum()) / 12
    assert found.details["standard_error_draws"] == pytest.approx(expected)
    single = measure("gradient-alignment", model, examples)
    assert single.arrays["per_example"] == pytest.approx(cosines[0], abs=1e-10), "draws are keyed by their number"


def test_gradient_alignment_of_a_linear_network_is_one(measure):
    found = measure("gradient-alignment(draws=2)", Duel(), grey())
    assert found.arrays["per_example"] == pytest.approx(1.0, abs=1e-12)


def test_error_over_draws_shrinks_with_their_root(measure):
    errors = [
        measure(f"gradient-alignment(draws={draws})", small_net(), small_examples(30)).details["standard_error_draws"]
        for draws in (8, 72)
    ]
    assert errors[0] / errors[1] == pytest.approx(3, rel=0.25)


def test_vanishing_gradients_agree_with_each_other_and_with_nothing_else(registry):
    class Cliff(nn.Module):
        """The loss is flat up to a mean of 1/2 and rises beyond."""

        def forward(self, x: Tensor) -> Tensor:
            z = torch.relu(x.flatten(1).mean(1) - 0.5)
            return torch.stack([-z, z], 1)

    x = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)[:, None, None, None].expand(3, 1, 1, 1).clone()
    index = next(i for i in range(50) if float(per_example_uniform(x[:1], torch.tensor([i]), 5, *DRAW)) > 0.01)
    examples = Examples(x, torch.zeros(3, dtype=torch.int64), torch.full((3,), index))
    found = GradientAlignment(resolve(registry, "measure", "gradient-alignment").params, THREAT).measure(
        Cliff(), examples, Workspace(seed=5)
    )
    assert found.arrays["per_example"].tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert found.details["vanishing"] == pytest.approx(2 / 3)


DRAW = ("gradient-alignment", 0)


# ---------------------------------------------------------------------------------------------------------
# Margins, Lipschitz constants, thickness
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["probability", "logit"])
@pytest.mark.parametrize("coupling", ["clean", "frozen"])
@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_margins_equal_those_by_hand(measure, kind, coupling, logits):
    model, examples = small_net(), small_examples(30)
    x = pgd(model, examples, 4) if coupling == "frozen" else examples.x
    margins = []
    for scores, label in zip(model(x).detach(), examples.y.tolist(), strict=True):
        if logits == "normalised":
            scores = (scores - scores.mean()) / (scores - scores.mean()).norm()
        values = (scores.softmax(0) if kind == "probability" else scores).tolist()
        margins.append(values[label] - max(value for k, value in enumerate(values) if k != label))
    found = measure(f"margin(kind={kind}, coupling={coupling}, logits={logits}, steps=4)", model, examples)
    assert found.arrays["per_example"] == pytest.approx(margins, abs=1e-9)
    assert found.details["percentile_10"] == pytest.approx(np.percentile(margins, 10))
    assert found.details["negative"] == sum(value < 0 for value in margins) / 30
    assert 0 < found.details["negative"] < 1 or coupling == "frozen"


def test_a_tie_is_no_negative_margin(measure):
    model = small_net()
    for parameter in model[4].parameters():
        parameter.data.zero_()
    found = measure("margin(coupling=clean)", model, small_examples())
    assert (found.value, found.details["negative"]) == (0.0, 0.0)


def test_local_lipschitz_of_a_linear_network_is_its_operator_norm(measure):
    """|z/2| twice, z = w.x + b: the quotient at every corner on the right side is ||w||_1."""
    model, examples = Duel(0.3), grey()
    found = measure("local-lipschitz", model, examples)
    assert found.arrays["per_example"] == pytest.approx(float(model.w.detach().abs().sum()), rel=1e-9)


@pytest.mark.parametrize("target", ["probabilities", "divergence"])
def test_local_lipschitz_of_two_classes_is_never_above_brute_force_and_reaches_it(measure, target):
    """Outputs depend on z alone: search all z within reach, the cheapest image of each being known."""
    model, examples = Duel(), grey()
    found = measure(f"local-lipschitz(target={target}, restarts=6, steps=12)", model, examples)
    reach = EPSILON * float(model.w.detach().abs().sum())
    for value, z in zip(found.arrays["per_example"], model.difference(examples.x).tolist(), strict=True):
        shifts = np.concatenate([np.linspace(-reach, -reach / 1000, 1000), np.linspace(reach / 1000, reach, 1000)])
        p, q = 1 / (1 + math.exp(-z)), 1 / (1 + np.exp(-(z + shifts)))
        if target == "divergence":
            highest = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).max()
            assert value == pytest.approx(highest, rel=1e-9)
        else:
            highest = (2 * abs(q - p) / (abs(shifts) / reach * EPSILON)).max()
            assert 0.9 * highest < value <= highest * (1 + 1e-3)


def test_local_lipschitz_grows_with_restarts_and_stays_below_the_operator_norm(measure):
    model, examples = small_net(), small_examples()
    one, five = (measure(f"local-lipschitz(restarts={restarts})", model, examples) for restarts in (1, 5))
    assert (five.arrays["per_example"] >= one.arrays["per_example"]).all()
    assert five.value > one.value
    matrix = torch.autograd.functional.jacobian(lambda x: nn.Sequential(*model[:2])(x), examples.x[:1]).reshape(125, 50)
    bound = float((model[4].weight.detach().abs() @ matrix.abs()).sum())
    assert 0 < five.value < bound


def test_local_lipschitz_counts_nothing_where_no_image_differs(registry):
    for epsilon in (0.0, EPSILON):
        component = resolve(registry, "measure", "local-lipschitz")
        constant = small_net()
        if epsilon:
            nn.init.zeros_(constant[4].weight)
        found = component.build(Threat(epsilon)).measure(constant, small_examples(), Workspace())
        assert found.value == 0.0


def test_boundary_thickness_in_closed_form(measure):
    """x_a = x - eps sign(z) sign(w): z falls linearly, and p_i - p_j = tanh(|z| / 2) counts from 0.75 down to 0."""
    model = Duel()
    x = grey().x
    aim = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64)
    w = model.w.detach()
    x = 0.5 + 0.4 * ((x - 0.5) - ((x.flatten(1) - 0.5) @ w / w.dot(w))[:, None, None, None] * w.view(1, 1, 3, 3))
    x = x + (aim / w.dot(w))[:, None, None, None] * w.view(1, 1, 3, 3)
    model.bias.data = -0.5 * w.sum()
    examples = Examples(x, torch.zeros(12, dtype=torch.int64), torch.arange(12))
    found = measure("boundary-thickness(points=400)", model, examples)
    reach, length = EPSILON * float(w.abs().sum()), EPSILON * 3
    for value, z in zip(found.arrays["thickness"], model.difference(x).abs().tolist(), strict=True):
        if z > reach:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(length * min(z, 2 * math.atanh(0.75)) / reach, abs=2 * length / 400)
    unchanged = int((model.difference(x).abs() > reach).sum())
    assert 0 < unchanged < 12
    assert found.details["unchanged"] == unchanged == np.isnan(found.arrays["thickness"]).sum()
    assert found.n == 12 - unchanged
    assert found.value == pytest.approx(np.nanmean(found.arrays["thickness"]))
    narrow = measure("boundary-thickness(points=400, b=0.1)", model, examples)
    assert narrow.value < 0.7 * found.value
    far = measure("boundary-thickness(points=400, radius=0.2)", model, examples)
    assert far.details["unchanged"] < unchanged


def test_boundary_thickness_where_nothing_changes(measure):
    found = measure("boundary-thickness(points=3)", Duel(100.0), grey())
    assert (found.value, found.standard_error, found.n) == (0.0, None, 0)
    assert found.details["unchanged"] == 12


@pytest.mark.parametrize("attack", ["untargeted", "targeted"])
def test_boundary_thickness_equals_the_naive_loop(measure, attack):
    model, examples, radius, key = small_net(), small_examples(40), 0.5, (5, "boundary-thickness")
    model[4].bias.data.zero_()
    found = measure(f"boundary-thickness(points=7, radius={radius}, attack={attack}, steps=8)", model, examples)
    expected, targets = [], set()
    for n in range(40):
        x, index = examples.x[n : n + 1], examples.index[n : n + 1]
        first = int(model(x).argmax())
        uniform = float(per_example_uniform(torch.zeros(1, dtype=torch.float64), index, *key, "target"))
        target = (first + 1 + math.floor((uniform + 1) / 2 * 3)) % 4
        targets.add((target - first) % 4)
        at, best, highest = x + radius * per_example_uniform(x, index, *key, "start"), x, -math.inf
        for _ in range(9):
            at = torch.clamp(at, x - radius, x + radius).clamp(0, 1).detach().requires_grad_()
            log_p = model(at).log_softmax(1)[0]
            goal = log_p[target] if attack == "targeted" else -log_p[first]
            if goal.item() > highest:
                best, highest = at.detach(), goal.item()
            at = at + radius / 4 * torch.autograd.grad(goal, at)[0].sign()
        second, inside = int(model(best).argmax()), 0
        for t in (1 / 14, 3 / 14, 5 / 14, 7 / 14, 9 / 14, 11 / 14, 13 / 14):
            p = model((1 - t) * x + t * best).softmax(1)[0].tolist()
            inside += 0 < p[first] - p[second] < 0.75
        expected.append(float((best - x).norm()) * inside / 7 if first != second else math.nan)
    assert targets == {1, 2, 3}
    assert np.isfinite(expected).sum() > 5
    assert found.arrays["thickness"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


# ---------------------------------------------------------------------------------------------------------
# Folding
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape", "left"),
    [
        (small_net, (2, 5, 5), 0),
        (lambda: residual("resnet8"), (3, 16, 16), 0),
        # Each block's first norm reads a sum, or a stem that the shortcut reads too; so does the tail's.
        (lambda: residual("preact"), (3, 16, 16), 9),
        (tangled, (2, 5, 5), 3),
    ],
    ids=["row", "resnet8", "preact", "tangled"],
)
def test_folded_networks_have_the_same_logits(make, shape, left):
    model = make()
    x = torch.rand(7, *shape, generator=generator("fold")).to(next(model.parameters()))
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    logits = model(x)
    with folded(model, x):
        assert torch.allclose(model(x), logits, rtol=1e-5, atol=1e-5 * float(logits.detach().abs().max()))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert norms - len(pairs(model, x)) == left < norms
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [str(module) for module in model.modules()] == [str(module) for module in twin.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Gated(nn.Module):
    """The output of its convolution is read outside the graph, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) * (y.detach() > y.detach().mean())).flatten(1)


def doubled() -> nn.Module:
    conv = nn.Conv2d(2, 3, 3)
    conv.register_forward_hook(lambda module, given, made: 2 * made)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.Flatten())


def normed() -> nn.Module:
    """A weight that is made anew before each pass is no parameter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv = nn.utils.weight_norm(nn.Conv2d(2, 3, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.Flatten())


@pytest.mark.parametrize("make", [Gated, doubled, normed])
def test_what_reads_a_convolution_past_the_graph_keeps_it_unfolded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        stir(model)
    model = model.eval()
    x = torch.rand(5, 2, 5, 5, generator=generator("past"))
    with torch.no_grad():
        logits = model(x)
    with folded(model, x):
        assert torch.equal(model(x), logits)


class Activating(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Lifted(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight + 1, self.bias)


@pytest.mark.parametrize("kind", [Activating, Lifted])
def test_norms_of_ones_own_are_not_folded(kind):
    norm = kind(3)
    nn.init.constant_(norm.bias, -0.1)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Flatten()).eval()
    x = torch.rand(2, 2, 5, 5, generator=generator("own"))
    logits = model(x)
    with folded(model, x):
        assert torch.equal(model(x), logits)


@pytest.mark.parametrize("name", INPUTS)
def test_input_measures_of_folded_networks_agree(measure, name):
    model, examples = small_net(nn.SiLU()), small_examples()
    fused = copy.deepcopy(model)
    fused[0], fused[1] = fuse_conv_bn_eval(fused[0], fused[1]), nn.Identity()
    found, again = (measure(name, net, examples) for net in (model, fused))
    assert again.value == pytest.approx(found.value, rel=1e-5)
    assert found.value != 0


# ---------------------------------------------------------------------------------------------------------
# Norms
# ---------------------------------------------------------------------------------------------------------


def dense(layer: nn.Conv2d, shape: tuple[int, ...]) -> np.ndarray:
    """The convolution as a matrix, column by column."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    bias = 0 if layer.bias is None else layer.bias.detach().view(1, -1, 1, 1)
    return (layer(basis).detach() - bias).flatten(1).T.numpy()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 5, 3, padding=1), (2, 6, 6)),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (3, 7, 7)),
        (nn.Conv2d(4, 4, 3, groups=2, dilation=2), (4, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    ],
    ids=["padded", "strided", "grouped", "circular"],
)
def test_spectral_norm_of_a_convolution_is_its_largest_singular_value(measure, layer, shape):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = copy.deepcopy(layer).double()
        nn.init.normal_(layer.weight)
    model = nn.Sequential(layer, nn.Flatten()).eval()
    x = torch.rand(2, *shape, generator=generator("conv"), dtype=torch.float64)
    examples = Examples(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    found = measure("spectral-norm(iterations=3000, tolerance=1e-9)", model, examples)
    values = np.linalg.svd(dense(layer, shape), compute_uv=False)
    assert found.value == pytest.approx(math.log(values[0]), abs=1e-6)
    assert found.arrays["operator_norms"] == pytest.approx([values[0]], rel=1e-6)
    assert abs(np.linalg.norm(layer.weight.detach().flatten(1).numpy(), 2) - values[0]) > 0.01, "not the kernel's"
    early = measure("spectral-norm(iterations=4)", model, examples)
    square, residual = float(early.arrays["operator_norms"][0]) ** 2, early.details["residual"]
    assert 1e-6 < residual < 1
    assert early.arrays["operator_norms"][0] < values[0]
    assert min(abs(values**2 - square)) <= residual * square, "some singular value is as near as the residual says"
    first = measure("spectral-norm(iterations=1)", model, examples)
    v = torch.randn(1, *shape, generator=generator(5, "spectral-norm", "0", 1, *shape), dtype=torch.float64).flatten()
    matrix = torch.from_numpy(dense(layer, shape))
    v = v / v.norm()
    square = (matrix @ v).square().sum()
    assert first.arrays["operator_norms"] == pytest.approx([float(square.sqrt())])
    assert first.details["residual"] == pytest.approx(float((matrix.T @ matrix @ v - square * v).norm() / square))


def test_spectral_norm_adds_folded_convolutions_and_linear_layers(measure):
    model, examples = small_net(), small_examples()
    conv = copy.deepcopy(model[0])
    conv.weight.data *= (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).view(-1, 1, 1, 1)
    expected = [np.linalg.norm(m, 2) for m in (dense(conv, (2, 5, 5)), model[4].weight.detach().numpy())]
    found = measure("spectral-norm(iterations=3000, tolerance=1e-8)", model, examples)
    assert found.arrays["operator_norms"] == pytest.approx(expected, rel=1e-6)
    assert found.value == pytest.approx(math.log(expected[0]) + math.log(expected[1]), abs=1e-6)
    assert (found.details["layers"], found.details["unfolded_norms"], found.standard_error) == (2, 0, None)


def test_norms_stay_finite_where_weights_vanish(measure):
    model, examples = small_net(), small_examples()
    model[1].weight.data.zero_()
    found = measure("spectral-norm", model, examples)
    assert found.details["zero_layers"] == 1
    assert found.value == pytest.approx(math.log(np.linalg.norm(model[4].weight.detach().numpy(), 2)))
    for parameter in model.parameters():
        parameter.data.zero_()
    assert measure("spectral-norm", model, examples).value == 0.0
    assert math.isfinite(measure("path-norm", model, examples).value)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU, nn.Mish])
def test_path_norm_adds_all_paths(measure, activation):
    """Pixel by pixel, tap by tap: paths from inputs, from the convolution's folded biases and from the head's."""
    model = small_net(activation())
    scale = (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).tolist()
    means = model[1].running_mean.tolist()
    head = model[4].weight.detach().square().sum(0).tolist()
    shift = [beta - s * mean for beta, s, mean in zip(model[1].bias.tolist(), scale, means, strict=True)]
    kernel, bias = model[0].weight.tolist(), model[0].bias.tolist()
    total = float(model[4].bias.detach().square().sum())
    for channel, row, column in itertools.product(range(5), range(5), range(5)):
        onward = head[channel * 25 + row * 5 + column]
        total += onward * (scale[channel] * bias[channel] + shift[channel]) ** 2
        for source, dy, dx in itertools.product(range(2), range(3), range(3)):
            if 0 <= row + dy - 1 < 5 and 0 <= column + dx - 1 < 5:
                total += onward * (scale[channel] * kernel[channel][source][dy][dx]) ** 2
    found = measure("path-norm", model, small_examples())
    assert found.value == pytest.approx(math.log(total), abs=1e-10)
    assert (found.standard_error, found.n) == (None, 0)


class Shortcut(nn.Module):
    """A pre-activation block: the norm reads a convolution that the shortcut reads too, and cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1)
        self.norm = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(1, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.conv(self.norm(x).relu())).flatten(1)


def test_path_norm_of_a_shortcut_and_of_a_norm_alone(measure):
    model = Shortcut().double().eval().requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        stir(model)
    wrapped = Normalized(model, ImageShape(1, 1, 1, (0.7,), (0.1,))).double().eval()
    (w, b, v) = (float(p) for p in (model.stem.weight, model.stem.bias, model.conv.weight))
    s = float(model.norm.weight) / math.sqrt(float(model.norm.running_var) + model.norm.eps)
    t = float(model.norm.bias) - s * float(model.norm.running_mean)
    stem = w**2 + b**2
    expected = math.log(stem + v**2 * (s**2 * stem + t**2))
    examples = Examples(torch.rand(1, 1, 1, 1).double(), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    assert measure("path-norm", model, examples).value == pytest.approx(expected, abs=1e-12)
    assert measure("path-norm", wrapped, examples).value == pytest.approx(expected, abs=1e-12), "ones behind pixels"


def test_path_norm_refuses_what_depends_on_its_input(measure):
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(50), nn.Linear(50, 4)).double()
    with pytest.raises(NoValue, match="LayerNorm"):
        measure("path-norm", model, small_examples())


# ---------------------------------------------------------------------------------------------------------
# What rescaling does
# ---------------------------------------------------------------------------------------------------------


def undone(model: nn.Sequential, c: float) -> nn.Sequential:
    """The same function: the convolution times c, and its normalisation told so."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight *= c
        model[0].bias *= c
        model[1].running_mean *= c
        model[1].running_var *= c**2
        model[1].eps *= c**2
    return model


@pytest.mark.parametrize("name", [*ALL[1:], "margin(kind=logit)", "local-lipschitz(target=divergence)"])
@pytest.mark.parametrize("c", [0.3, 3.0])
def test_scaling_that_normalisation_undoes_moves_nothing(measure, name, c):
    model, examples = small_net(), small_examples()
    found, again = measure(name, model, examples), measure(name, undone(model, c), examples)
    assert found.value != 0
    assert again.value == pytest.approx(found.value, rel=1e-5)


@pytest.mark.parametrize("c", [0.3, 3.0])
def test_weight_gradients_move_by_the_inverse_and_their_adaptive_form_not_at_all(measure, c):
    model, examples = small_net(), small_examples()
    name = "weight-gradient-norm(coupling=clean)"
    found, again = measure(name, model, examples), measure(name, undone(model, c), examples)
    gradient = weight_gradient(model, examples.x, examples.y)
    count = model[0].weight.numel() + model[0].bias.numel()
    assert again.details["adaptive"] == pytest.approx(found.details["adaptive"], rel=1e-9)
    expected = float(gradient[:count].square().sum()) / c**2 + float(gradient[count:].square().sum())
    assert again.details["squared"] == pytest.approx(expected, rel=1e-9)
    assert abs(again.value - found.value) > 1e-3 * found.value


def test_factors_around_a_relu_move_the_gradient_and_none_of_the_others(measure):
    model, examples, a = small_net(), small_examples(), 4.0
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[1].weight *= a
        scaled[1].bias *= a
        scaled[4].weight /= a
    for name in ALL:
        found, again = (
            measure(f"{name}(coupling=clean)" if name in GRADIENTS else name, net, examples) for net in (model, scaled)
        )
        moved = abs(again.value / found.value - 1)
        assert moved > 0.01 if name == "weight-gradient-norm" else moved < 1e-5, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("margin(kind=logit, coupling=clean)", lambda value, c: c * value),
        ("local-lipschitz", lambda value, c: c * value),
        ("spectral-norm", lambda value, c: value + math.log(c)),
        ("path-norm", lambda value, c: value + 2 * math.log(c)),
        ("margin(coupling=clean, logits=normalised)", lambda value, c: value),
        ("input-gradient-norm(coupling=clean, logits=normalised)", lambda value, c: value),
    ],
)
def test_what_scaled_logits_move(measure, name, expected):
    model, examples, c = small_net(), small_examples(), 3.0
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[4].weight *= c
        scaled[4].bias *= c
    found = measure(name, model, examples).value
    assert measure(name, scaled, examples).value == pytest.approx(expected(found, c), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------
# What every measure must do
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENTS)
def test_frozen_and_clean_differ_on_a_trained_network(measure, trained, name):
    examples = digits(1000, 1040)
    clean, frozen = (
        measure(f"{name}(coupling={coupling}, steps=5)", trained, examples).value for coupling in ("clean", "frozen")
    )
    assert frozen < clean if name == "margin" else frozen > 1.1 * clean


@pytest.mark.parametrize("name", ALL)
def test_memory_batches_change_no_value(measure, trained, name):
    text = f"{name}(steps=3)" if name in (*GRADIENTS, "local-lipschitz") else name
    found = [measure(text, trained, digits(1000, 1110), Workspace(batch=batch, seed=5)).value for batch in (32, 100)]
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ALL if name != "path-norm"])
def test_measures_resume_bit_for_bit(measure, name):
    model, examples = small_net().float(), small_examples(9)
    examples = Examples(examples.x.float(), examples.y, examples.index)
    plain = measure(name, model, examples, Workspace(batch=4))
    journal = Remembering()
    assert measure(name, model, examples, Workspace(4, 0, journal)).value == plain.value
    assert len(journal.kept) > 1
    for lives in range(len(journal.kept)):
        dying = Remembering(lives)
        with pytest.raises(InterruptedError):
            measure(name, model, examples, Workspace(4, 0, dying))
        dying.lives[0] = len(journal.kept) - lives
        found = measure(name, model, examples, Workspace(4, 0, dying))
        assert (found.value, found.standard_error, found.details) == (plain.value, plain.standard_error, plain.details)
        assert all(np.array_equal(found.arrays[key], array, equal_nan=True) for key, array in plain.arrays.items())
