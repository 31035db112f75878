r"""Muon: hidden matrices W [m,n] take steps without preferred directions; AdamW moves all other weights.

    B <- \mu B + (1 - \mu) G,   U = (1 - \mu) G + \mu B with Nesterov's momentum, else B
    W <- (1 - \eta \lambda) W - 0.2 \eta sqrt(max(m, n)) NS_5(U)

    NS_0 = U / ||U||_F,   NS_k = a NS_{k-1} + (b A + c A^2) NS_{k-1},   A = NS_{k-1} NS_{k-1}^T

Jordan et al.: Muon: an optimizer for hidden layers in neural networks. 2024, https://kellerjordan.github.io/posts/muon;
the factor 0.2 sqrt(max(m, n)) is from Liu et al.: Muon is scalable for LLM training. 2025, arXiv 2502.16982.

NS_5 has the singular vectors of U and singular values near 1. A convolution [o,i,h,w] is the matrix [o, i h w]. As
Jordan advises, the layer that makes the logits belongs to AdamW, with biases and normalisation. The factor makes a step
as large as AdamW's, so one learning rate \eta and one weight decay \lambda suit both. torch.optim.Muon takes matrices
only and computes NS_5 in bfloat16; here it has the weights' precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c."""
ITERATIONS = 5
EPSILON = 1e-8
"""AdamW's, torch's default."""


class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for the others, as one optimizer.

    Parameters
    ----------
    parameters: everything that is trained.
    lr, weight_decay: of both.
    outputs: weights of the layers that make logits; they are AdamW's.
    momentum, nesterov: Muon's.
    betas: AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        outputs: Iterable[Tensor],
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        betas: tuple[float, float],
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "betas": betas}
        super().__init__(parameters, defaults)
        self.outputs = {id(weight) for weight in outputs}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    hidden = parameter.ndim > 1 and id(parameter) not in self.outputs
                    move = self._step_of_muon if hidden else self._step_of_adamw
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    move(parameter, parameter.grad, group)

    def _step_of_muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (average,), momentum = self._averages(parameter, "momentum"), group["momentum"]
        average.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum) if group["nesterov"] else average
        matrix = orthogonalized(update.flatten(1))
        size = 0.2 * math.sqrt(max(matrix.shape))
        parameter.sub_(matrix.view_as(parameter), alpha=group["lr"] * size)

    def _step_of_adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (first, second), (beta1, beta2) = self._averages(parameter, "first", "second"), group["betas"]
        steps = self.state[parameter].setdefault("step", torch.tensor(0.0))
        steps += 1
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        spread = (second / (1 - beta2 ** float(steps))).sqrt() + EPSILON
        parameter.addcdiv_(first, spread, value=-group["lr"] / (1 - beta1 ** float(steps)))

    def _averages(self, parameter: Tensor, *names: str) -> list[Tensor]:
        state = self.state[parameter]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return [state[name] for name in names]


def orthogonalized(update: Tensor) -> Tensor:
    """NS_5 of a matrix [m,n], also under autocast in its own precision; zero stays zero."""
    a, b, c = COEFFICIENTS
    wide = update.T if len(update) > update.shape[1] else update
    with torch.autocast(update.device.type, enabled=False):
        matrix = wide / wide.norm().clamp(min=torch.finfo(wide.dtype).tiny)
        for _ in range(ITERATIONS):
            gram = matrix @ matrix.T
            matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    found: Tensor = matrix.T if wide is not update else matrix
    return found


def outputs(*networks: nn.Module) -> list[Tensor]:
    """The weight of the last linear layer of each network that has one."""
    linear = ([module for module in network.modules() if isinstance(module, nn.Linear)] for network in networks)
    return [layers[-1].weight for layers in linear if layers]
