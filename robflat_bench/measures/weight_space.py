r"""The weights a measure moves, and the ball it moves them in.

    B_xi(w) = { w + \nu : ||\nu^{(l)}||_2 <= xi ||w^{(l)}||_2  for every layer l }

A layer is one parameter tensor: a weight and its bias are two. Normalisation layers never move; tensors of zero
norm have an empty ball and are skipped. Norms are accumulated in float64. Draws are keyed by the tensor's name
and shape, so two models of one architecture meet common random numbers.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from robflat_bench.randomness import generator

NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)

Direction = dict[str, Tensor]
"""One tensor per moved parameter, by the parameter's name."""


def norm(x: Tensor) -> float:
    """The l2 norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


class WeightSpace:
    """The layers of a model that move, with their norms at w; in training, biases stay (biases=False)."""

    def __init__(self, model: nn.Module, biases: bool = True) -> None:
        fixed = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, NORMALISATION)
            for parameter in module.parameters(recurse=False)
        }
        candidates = {name: p for name, p in model.named_parameters() if id(p) not in fixed and (biases or p.ndim > 1)}
        self.norms = {name: length for name, p in candidates.items() if (length := norm(p)) > 0}
        self.layers: dict[str, nn.Parameter] = {name: candidates[name] for name in self.norms}

    def zero(self) -> Direction:
        """The perturbation that moves nothing."""
        return {name: torch.zeros_like(layer) for name, layer in self.layers.items()}

    def on_sphere(self, xi: float, *key: int | str) -> Direction:
        """Isotropic per layer, ||nu_l|| = xi ||w_l||."""
        return {name: self._gaussian(name, layer, xi * self.norms[name], *key) for name, layer in self.layers.items()}

    def in_ball(self, xi: float, *key: int | str) -> Direction:
        """Isotropic per layer, ||nu_l|| = xi ||w_l|| U(0,1): the radius is uniform, as the paper's start."""
        return {
            name: self._gaussian(
                name,
                layer,
                xi * self.norms[name] * float(torch.rand((), generator=generator(*key, "radius", name))),
                *key,
            )
            for name, layer in self.layers.items()
        }

    def _gaussian(self, name: str, layer: Tensor, length: float, *key: int | str) -> Tensor:
        source = generator(*key, name, *layer.shape)
        draw = torch.randn(layer.shape, generator=source, dtype=torch.float64)
        return (draw * (length / norm(draw))).to(layer)

    def step(self, nu: Direction, gradient: Mapping[str, Tensor], size: float, xi: float) -> Direction:
        """Pi_{B_xi}( nu + size ||w_l|| g_l / ||g_l|| ) per layer; a layer without gradient stays."""
        moved = {}
        for name, current in nu.items():
            length = norm(gradient[name])
            if length > 0:
                ascent = gradient[name] * (size * self.norms[name] / length)
                current = (current.to(ascent.dtype) + ascent).to(current.dtype)
            radius, reached = xi * self.norms[name], norm(current)
            moved[name] = current * (radius / reached) if reached > radius else current
        return moved

    @contextmanager
    def moved(self, nu: Direction) -> Iterator[None]:
        """The model at w + nu; afterwards the saved weights are copied back, bit for bit."""
        saved = {name: layer.detach().clone() for name, layer in self.layers.items()}
        try:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.add_(nu[name])
            yield
        finally:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.copy_(saved[name])
