r"""Entropy-SGD: descends the local entropy of L at w, its gradient estimated by L steps of Langevin dynamics around w.

    w' <- w' - \eta' ( dL/dw' + \lambda w' + g (w' - w) + n / sqrt(\eta' / 2) N(0,1) ),  \mu <- a \mu + (1-a) w',
    w  <- the recipe's optimizer at w with gradient w - \mu,   g = \gamma (1 + \sigma)^k at its k-th step, k = 0, 1, ...

Each cycle starts with w' = \mu = w and takes the first line L times, each time as one update with its own batch and
adversarial images; the L-th ends with the optimizer's step. So an epoch of N batches has N / L outer steps, at the
rates the schedule has then; \lambda is the optimizer's weight decay. Every forward, all at w', moves BN statistics.
Extra heads take part as the weights do. Unlike the released code, momentum, schedule and scoping are in effect.
Chaudhari et al.: ICLR 2017; on the robust loss, Stutz, Hein, Schiele: ICCV 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Moment, Params, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.core.randomness import normal_like


class EntropySGDParams(Params):
    """steps: inner ones per outer one, at this rate. gamma: the pull towards the outer weights, growing by the
    factor 1 + scoping with each outer step. noise: of the inner steps. averaging: weight of the average so far."""

    steps: PositiveInt = 5
    rate: float = Field(default=0.1, gt=0)
    gamma: float = Field(default=1e-4, ge=0)
    noise: float = Field(default=1e-4, ge=0)
    scoping: float = Field(default=1e-3, ge=0)
    averaging: float = Field(default=0.75, ge=0, lt=1)


INFO = ModifierInfo(
    name="entropy-sgd",
    summary="descends the local entropy of the loss, estimated by Langevin dynamics around the weights",
    factory=f"{__name__}:EntropySGD",
    params=EntropySGDParams,
    citation="Chaudhari et al.: Entropy-SGD: Biasing gradient descent into wide valleys. ICLR 2017",
    example={"steps": 2},
    joints=("backward", "model"),
    rank=10,
)


class EntropySGD(Modifier):
    """Within a cycle the model holds w' and this holds w (the anchor), which is evaluated, with BN statistics as
    they are. Averages taken after each step (EMA) are averages of w'."""

    params: EntropySGDParams

    def setup(self, training: Training) -> None:
        self.device = next(training.model.parameters()).device
        self.updates = 0
        self.anchor: list[Tensor] = []
        self.average: list[Tensor] = []

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        cycle, position = divmod(self.updates, self.params.steps)
        if position == 0:
            self.anchor = [parameter.detach().clone() for parameter in parameters]
            self.average = [parameter.detach().clone() for parameter in parameters]
        value = loss()
        value.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        optimizer.zero_grad(set_to_none=True)
        pull = self.params.gamma * (1 + self.params.scoping) ** cycle
        decay = optimizer.param_groups[0]["weight_decay"]
        temperature = self.params.noise / math.sqrt(0.5 * self.params.rate)
        source = batch.moment.random("entropy-sgd")
        with torch.no_grad():
            for parameter, gradient, anchor, average in zip(
                parameters, gradients, self.anchor, self.average, strict=True
            ):
                force = gradient + decay * parameter + pull * (parameter - anchor)
                parameter.sub_(self.params.rate * (force + temperature * normal_like(parameter, source)))
                average.lerp_(parameter, 1 - self.params.averaging)
                if position + 1 == self.params.steps:
                    parameter.copy_(anchor)
                    parameter.grad = anchor - average
        # Within a cycle there are no gradients: this moves nothing, but the schedule wants to see every step.
        optimizer.step()
        self.updates += 1
        return value.detach()

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        if self.updates % self.params.steps == 0:
            return weights
        names = [name for name, _ in model.named_parameters()]  # the optimizer's first, before those of extra heads
        return weights | {name: tensor.clone() for name, tensor in zip(names, self.anchor, strict=False)}

    def state_dict(self) -> dict[str, Tensor]:
        pairs = zip(self.anchor, self.average, strict=True)
        kept = {f"{number:04d}": torch.stack(pair) for number, pair in enumerate(pairs)}
        return {"updates": torch.tensor(self.updates)} | kept

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        kept = [state[name].to(self.device) for name in sorted(state) if name != "updates"]
        self.anchor = [pair[0].clone() for pair in kept]
        self.average = [pair[1].clone() for pair in kept]
