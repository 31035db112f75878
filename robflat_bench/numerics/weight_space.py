r"""The weights that a measure or a modifier moves, and the ball in which it moves them.

    B_xi(w) = { w + T z : ||z_g||_p <= xi ||T^{-1} w_g||_p  for every group g },   p = 2 or inf

| ball    | groups g               | T       | invariant to scaling, where the function stays, of |
|---------|------------------------|---------|----------------------------------------------------|
| layer   | one parameter tensor   | 1       | layers                                             |
| filter  | one output channel     | 1       | filters                                            |
| element | one parameter tensor   | diag|w| | single weights (adaptive sharpness)                |
| global  | all of them            | 1       | all of them by one factor                          |

A layer is one parameter tensor: a weight and its bias are two layers, and each number of a bias is a filter.
Normalisation and gains (`gains`) and tensors of zero norm do not move; a tensor that several modules share moves once.
Norms are accumulated in float64. Draws are keyed by the tensor's name and shape, so two models of one architecture meet
common random numbers.
Layers: Stutz et al., ICCV 2021. Filters: Li et al., NeurIPS 2018. Elements: Kwon et al., ICML 2021.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from robflat_bench.core import BallNorm, BallShape, NoValue
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.gains import gains

Direction = Mapping[str, Tensor]
"""One tensor per moved parameter, by the parameter's name."""


class Drawn(Direction):
    """A direction whose tensors are drawn on access, so that they never lie in memory all at once."""

    def __init__(self, names: tuple[str, ...], draw: Callable[[str], Tensor]) -> None:
        self.names, self.draw = names, draw

    def __getitem__(self, name: str) -> Tensor:
        return self.draw(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def norm(x: Tensor) -> float:
    """The l2 norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def filters(x: Tensor) -> Tensor:
    """[filters, weights of each]: a filter holds the weights of one output channel, a slice of the first dimension."""
    return x.reshape(len(x) if x.ndim else 1, -1)


@dataclass(frozen=True)
class Ball:
    """The shape of the ball: the weights that share a radius, and the norm in which it is measured."""

    shape: BallShape = "layer"
    norm: BallNorm = "l2"

    def sizes(self, z: Direction) -> dict[str, Tensor]:
        """||z_g||_p, float64, shaped to multiply each tensor."""
        measure = _NORMS[self.norm]
        if self.shape == "filter":
            return {
                name: measure(filters(part), 1).reshape(part.shape[:1] + (1,) * (part.ndim - 1))
                for name, part in z.items()
            }
        sizes = {name: measure(part, None) for name, part in z.items()}
        if self.shape == "global" and sizes:
            return dict.fromkeys(sizes, measure(torch.stack(list(sizes.values())), None))
        return sizes


_NORMS: dict[BallNorm, Callable[[Tensor, int | None], Tensor]] = {
    "l2": lambda x, dim: torch.linalg.vector_norm(x.detach(), dim=dim, dtype=torch.float64),
    "linf": lambda x, dim: torch.linalg.vector_norm(x.detach().double(), torch.inf, dim=dim),
}


class WeightSpace:
    """The layers of a model that move, and their ball.

    Parameters
    ----------
    model : nn.Module
        Its present weights are w, the centre of the ball.
    training : bool
        Whether the weights move in a training step, where tensors of one dimension and frozen parameters stay.
    ball : Ball
        By default one l2 radius per layer, as in the paper.
    exclude : tuple of str or None
        Shell patterns of parameter names that do not move either, e.g. ("*.bias", "head.*").

    Attributes
    ----------
    layers : dict of str to nn.Parameter
        The tensors that move, by name: no normalisation or gain, none of zero norm, each tensor once.
    left : dict of str to str
        The tensors that do not move, by name, each with the reason.
    norms : dict of str to float
        ||w_l||_2 of each layer.
    radii : dict of str to Tensor
        ||T^{-1} w_g||_p, float64, shaped to multiply each layer: the radius of xi = 1.

    Raises
    ------
    NoValue
        A pattern of `exclude` matches no parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        training: bool = False,
        ball: Ball | None = None,
        exclude: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        fixed, excluded = gains(model), _matched(model, exclude or ())
        self.norms: dict[str, float] = {}
        self.layers: dict[str, nn.Parameter] = {}
        self.left: dict[str, str] = {}
        for name, parameter in model.named_parameters():
            if id(parameter) in fixed:
                self.left[name] = f"normalisation or gain of {fixed[id(parameter)]}"
            elif id(parameter) in excluded:
                self.left[name] = "excluded"
            elif training and parameter.ndim < 2:
                self.left[name] = "one dimension"
            elif training and not parameter.requires_grad:
                self.left[name] = "frozen"
            elif not (length := norm(parameter)) > 0:
                self.left[name] = "zero norm"
            else:
                self.norms[name], self.layers[name] = length, parameter
        if not self.layers and not training:
            raise NoValue("this network has no weights that move: all are normalisation, zero, excluded or buffers")
        self.ball = ball or Ball()
        adaptive = self.layers if self.ball.shape == "element" else {}
        self.scales = {name: layer.detach().abs() for name, layer in adaptive.items()}  # T; empty where T = 1
        self.radii = self.ball.sizes(self._unscaled(dict(self.layers)))

    @property
    def counts(self) -> dict[str, float]:
        """Tensors and single weights that move, and those that are left, for a record."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return {
            "tensors_moved": float(len(self.layers)),
            "tensors_left": float(len(self.left)),
            "weights_moved": float(sum(sizes[name] for name in self.layers)),
            "weights_left": float(sum(sizes[name] for name in self.left)),
        }

    def zero(self) -> Direction:
        """nu = 0."""
        return {name: torch.zeros_like(layer) for name, layer in self.layers.items()}

    def on_sphere(self, xi: float, *key: int | str) -> Direction:
        """A random move. p = 2: isotropic in each group, ||z_g||_2 = xi ||T^{-1} w_g||_2. p = inf: uniform in the box.

        Each layer is drawn on access."""
        return self._drawn(xi, lambda _: torch.ones((), dtype=torch.float64), *key)

    def in_ball(self, xi: float, *key: int | str) -> Direction:
        """A random move within the ball. p = 2: the radius of each group is uniform, as the paper's start."""

        def fraction(name: str) -> Tensor:
            source = generator(*key, "radius", *([] if self.ball.shape == "global" else [name]))
            return torch.rand(self.radii[name].shape, generator=source, dtype=torch.float64)

        return dict(self.on_sphere(xi, *key) if self.ball.norm == "linf" else self._drawn(xi, fraction, *key))

    def _drawn(self, xi: float, fraction: Callable[[str], Tensor], *key: int | str) -> Direction:
        gaussian = self.ball.norm == "l2"

        def noise(name: str) -> Tensor:
            shape, device = self.layers[name].shape, self.layers[name].device
            source = generator(*key, name, *shape)
            z = (torch.randn if gaussian else torch.rand)(shape, generator=source, dtype=torch.float64).to(device)
            return z * (self.scales[name] > 0) if self.scales else z  # a weight of 0 does not move and has no radius

        lengths: Mapping[str, Tensor] = {}
        if gaussian and self.ball.shape == "global":
            lengths = self.ball.sizes({name: Ball().sizes({name: noise(name)})[name] for name in self.layers})

        def draw(name: str) -> Tensor:
            z, radius = noise(name), xi * self.radii[name] * fraction(name).to(self.radii[name].device)
            z = z * (radius / (lengths or self.ball.sizes({name: z}))[name]) if gaussian else (2 * z - 1) * radius
            return self._scaled(name, z).to(self.layers[name])

        return Drawn(tuple(self.layers), draw)

    def step(self, nu: Direction, gradient: Mapping[str, Tensor], size: float, xi: float) -> Direction:
        """Projected ascent in the coordinates z, in every group

            z <- Pi_{B_xi}( z + size ||T^{-1} w_g||_p u ),   u = T g / ||T g||_2 (p = 2)  or  sign(T g) (p = inf)

        A group without a gradient stays."""
        slopes = {name: self._scaled(name, gradient[name]) for name in nu}
        lengths, l2 = self.ball.sizes(slopes), self.ball.norm == "l2"
        moved = {}
        for name, current in self._unscaled(nu).items():
            slope, reach = slopes[name], size * self.radii[name]
            factor = _ratio(reach, lengths[name]) if l2 else reach
            ascent = (slope if l2 else slope.sign()) * factor.to(slope.dtype)
            moved[name] = (current.to(ascent.dtype) + ascent).to(current.dtype)
        return {name: self._scaled(name, part) for name, part in self._projected(moved, xi).items()}

    def _projected(self, z: Direction, xi: float) -> Direction:
        if self.ball.norm == "linf":
            bounds = {name: (xi * radius).to(z[name].dtype) for name, radius in self.radii.items()}
            return {name: torch.clamp(part, -bounds[name], bounds[name]) for name, part in z.items()}
        reached = self.ball.sizes(z)
        shrinking = {name: _ratio(xi * self.radii[name], size).clamp(max=1) for name, size in reached.items()}
        return {name: part * shrinking[name].to(part.dtype) for name, part in z.items()}

    def _scaled(self, name: str, z: Tensor) -> Tensor:
        """T z."""
        return z * self.scales[name].to(z.dtype) if self.scales else z

    def _unscaled(self, nu: Mapping[str, Tensor]) -> Direction:
        """T^{-1} nu; 0 where a weight is 0."""
        if not self.scales:
            return dict(nu)
        return {name: torch.where(self.scales[name] > 0, part / self.scales[name], 0) for name, part in nu.items()}

    @contextmanager
    def moved(self, nu: Direction) -> Iterator[None]:
        """The model at w + nu within the block, one more copy of its weights; w is restored afterwards, bit for bit."""
        own = {name: layer.data for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                layer.data = torch.add(layer.data, nu[name].detach(), out=torch.empty_like(layer.data))
            yield
        finally:
            for name, layer in self.layers.items():
                layer.data = own[name]


def _matched(model: nn.Module, patterns: tuple[str, ...]) -> set[int]:
    """Identities of the parameters of which a pattern matches a name; a shared tensor has several."""
    names: defaultdict[str, set[int]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for pattern in patterns:
            if fnmatchcase(name, pattern):
                names[pattern].add(id(parameter))
    if missing := [pattern for pattern in patterns if pattern not in names]:
        example = next((name for name, _ in model.named_parameters()), "none")
        raise NoValue(f"exclude: '{missing[0]}' matches no parameter of this network; its first one is {example}")
    return set().union(*names.values())


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0)
