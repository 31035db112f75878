"""Small networks, examples, a journal that interrupts, and naive losses for tests of measures."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.backbones.parts import initialize
from robflat_bench.backbones.resnet import ResNet8Params, ResNet18Params, preact_resnet18, resnet8
from robflat_bench.core import Examples, ImageShape, Journal, Threat
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.registry.registry import discover

EPSILON = 0.1

THREAT = Threat(EPSILON)


def small_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Images [B,2,5,5] -> 4 logits: a convolution with bias, a norm layer, a linear layer with bias; eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.SiLU(), nn.Flatten(), nn.Linear(45, 4))
        net[1].running_mean.normal_(0, 0.3)
        net[1].running_var.uniform_(0.2, 0.6)
        nn.init.uniform_(net[1].weight, 0.5, 1.5)
    return net.to(dtype).eval()


def small_examples(count: int = 9, dtype: torch.dtype = torch.float64) -> Examples:
    x = torch.rand(count, 2, 5, 5, generator=generator("x"), dtype=torch.float64).to(dtype)
    return Examples(x, torch.randint(0, 4, (count,), generator=generator("y")), torch.arange(100, 100 + count))


def naive_robust_loss(model: nn.Module, examples: Examples, steps: int, restarts: int, seed: int) -> Tensor:
    """Highest cross-entropy per example over restarts and PGD iterates."""
    model = copy.deepcopy(model)
    highest = torch.full((len(examples),), -math.inf, dtype=torch.float64)
    for restart in range(restarts):
        x = examples.x + EPSILON * per_example_uniform(examples.x, examples.index, seed, "pgd", restart)
        for _ in range(steps + 1):
            x = torch.minimum(torch.maximum(x, examples.x - EPSILON), examples.x + EPSILON).clamp(0, 1)
            x = x.detach().requires_grad_()
            losses = F.cross_entropy(model(x), examples.y, reduction="none")
            losses.sum().backward()
            highest = torch.maximum(highest, losses.detach())
            x = x + EPSILON / 4 * x.grad.sign()
    return highest


def moved_copy(model: nn.Module, nu: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model at w + nu."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in nu:
                parameter += nu[name]
    return twin


class Remembering(Journal):
    """Keeps units in memory, by section and name; raises InterruptedError once it has computed `lives` units."""

    def __init__(self, lives: float = math.inf) -> None:
        self.lives = [lives]
        self.path: tuple[str, ...] = ()
        self.kept: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def unit(self, name, compute):
        key = (*self.path, name)
        if key not in self.kept:
            if self.lives[0] == 0:
                raise InterruptedError(name)
            self.lives[0] -= 1
            self.kept[key] = dict(compute())
        return self.kept[key]

    def section(self, name):
        child = copy.copy(self)
        child.path = (*self.path, name)
        return child


REGISTRY = discover()


def highest_in_ball(g: Tensor, hessian: Tensor, radius: float) -> float:
    """max_{||v|| <= r} g'v + v'Hv/2 for H >= 0: v = (t - H)^-1 g with ||v|| = r, t > lambda_max by bisection."""
    values, vectors = torch.linalg.eigh(hessian)
    b = vectors.T @ g
    low, high = float(values[-1]), float(values[-1] + g.norm() / radius + 1)
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (b / (t - values)).norm() > radius else (low, t)
    v = b / (high - values)
    return float(b @ v + (values * v * v).sum() / 2)


def stir(net: nn.Module) -> None:
    """Random running statistics and affine parameters for every batch normalisation."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)


class Tangled(nn.Module):
    """Names, order and input-output pairs of its modules mislead about which convolution a norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.conv1 = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.shared = nn.BatchNorm2d(3)
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.deep, self.plain = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.last = nn.Conv2d(3, 4, 4)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.bn1(x)).relu()  # folds
        y = self.stem(x)
        x = self.norm(y) + y  # does not: y is read twice
        x = self.shared(self.a(x)) + self.shared(self.b(x))  # does not: used twice
        x = self.plain(self.deep(x))  # folds
        return self.batch(self.last(x)).flatten(1)  # does not: it normalises by the batch


def tangled() -> Tangled:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tangled()
        stir(net)
    return net.eval()


def residual(kind: str) -> nn.Module:
    shape = ImageShape(3, 16, 10, (0.5, 0.4, 0.5), (0.25, 0.3, 0.2))
    net = resnet8(ResNet8Params(width=4), shape, "relu") if kind == "resnet8" else None
    net = net or preact_resnet18(ResNet18Params(width=4), shape, "silu")
    initialize(net, generator("residual"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stir(net)
    return net.eval()


class Quadratic(nn.Module):
    """Cross-entropy of class 0 is 3 + a_i (g'u + u'Hu / 2), u the weights' distance from where they began: eight
    numbers, a matrix of two filters and two biases. Pixel 0 of an image is its a_i."""

    def __init__(self, slope: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.1, -0.4]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.7, -1.5], dtype=torch.float64))
        self.centre = self.flat().detach().clone()
        root = torch.randn(8, 8, generator=generator("root"), dtype=torch.float64)
        self.hessian = root @ root.T / 8
        self.slope = slope * torch.randn(8, generator=generator("slope"), dtype=torch.float64) / 4

    def flat(self) -> Tensor:
        return torch.cat([self.weight.flatten(), self.bias])

    def rise(self, u: Tensor) -> Tensor:
        return self.slope @ u + u @ self.hessian @ u / 2

    def forward(self, x: Tensor) -> Tensor:
        loss = 3 + x[:, 0, 0, 0] * self.rise(self.flat() - self.centre)
        return torch.stack([-loss, torch.log(-torch.expm1(-loss))], 1)


def shares(spread: float = 0.0) -> Examples:
    """Four images whose a_i have mean 1."""
    a = 1 + spread * torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64)
    return Examples(a.reshape(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4))
