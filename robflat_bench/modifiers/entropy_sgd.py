r"""Entropy-SGD: descends the local entropy of L at w. L steps of Langevin dynamics around w estimate its gradient:

    w' <- w' - \eta' ( dL/dw' + \lambda w' + g (w' - w) + n / sqrt(\eta' / 2) N(0,1) ),   \mu <- a \mu + (1 - a) w',
    w  <- the recipe's optimizer at w with gradient w - \mu,   g = \gamma (1 + \sigma)^k at its k-th step, k = 0, 1, ...

Chaudhari et al.: Entropy-SGD: Biasing gradient descent into wide valleys. ICLR 2017;
on the robust loss Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

A cycle starts with w' = \mu = w and takes the first line L times. Each time is one update, with its own batch and
adversarial images; the L-th ends with the optimizer's step. So an epoch of N batches has N / L outer steps, at the
learning rates that the schedule has then. \lambda is the optimizer's weight decay. Every forward pass, all at w', moves
BN statistics. Extra heads are trained as the weights are; parameters without a gradient stay. Momentum, schedule and
scoping are in effect, unlike in the released code.

Within a cycle the model holds w'. w is evaluated, with the model's BN statistics. An average taken after each update
(EMA) is an average of w'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Moment, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.core.randomness import normal_like


class EntropySGDParams(Params):
    steps: PositiveInt = Field(default=5, description="Inner steps per outer step (L). Stutz et al. try 1, 2, 3, 5.")
    rate: float = Field(
        default=0.1, gt=0, description="Learning rate of the inner steps (eta'). Default: Stutz et al.'s."
    )
    gamma: float = Field(
        default=1e-4, ge=0, description="Strength of the pull towards the outer weights. Default: Stutz et al.'s."
    )
    noise: float = Field(default=1e-4, ge=0, description="Noise of the inner steps (n). Default: Stutz et al.'s.")
    scoping: float = Field(
        default=1e-3, ge=0, description="The pull grows by 1 + scoping per outer step (sigma). Default: Stutz et al.'s."
    )
    averaging: float = Field(
        default=0.75, ge=0, lt=1, description="Weight of the average so far (a). Default: Stutz et al.'s."
    )


INFO = ModifierInfo(
    name="entropy-sgd",
    summary="descends the local entropy of the loss, estimated by Langevin dynamics around the weights",
    factory=f"{__name__}:EntropySGD",
    params=EntropySGDParams,
    citation=cite("chaudhari2017entropy"),
    example={"steps": 2},
    joints=("backward", "model"),
    rank=10,
    sharded=True,
)


class EntropySGD(Modifier):
    """`anchor` holds w and `average` holds mu, one tensor per parameter of the optimizer, from the first update on."""

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
            self.anchor, self.average = ([parameter.detach().clone() for parameter in parameters] for _ in range(2))
        value = loss()
        value.backward()
        gradients = [parameter.grad for parameter in parameters]
        optimizer.zero_grad(set_to_none=True)
        pull = self.params.gamma * (1 + self.params.scoping) ** cycle
        decay = optimizer.param_groups[0]["weight_decay"]
        temperature = self.params.noise / math.sqrt(0.5 * self.params.rate)
        source = batch.moment.random("entropy-sgd")
        held = zip(parameters, gradients, self.anchor, self.average, strict=True)
        with torch.no_grad():
            for parameter, gradient, anchor, average in held:
                noise = normal_like(parameter, source)
                if gradient is not None:
                    force = gradient + decay * parameter + pull * (parameter - anchor)
                    parameter.sub_(self.params.rate * (force + temperature * noise))
                    average.lerp_(parameter, 1 - self.params.averaging)
                if position + 1 == self.params.steps and not torch.equal(average, anchor):
                    parameter.copy_(anchor)
                    parameter.grad = anchor - average
        # Within a cycle there are no gradients, so this moves nothing; the schedule needs it before each of its steps.
        optimizer.step()
        self.updates += 1
        return value.detach()

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        if self.updates % self.params.steps == 0:
            return weights
        # In the optimizer, extra heads come after these. A tied parameter has one anchor and several names.
        anchors = dict(zip(model.parameters(), self.anchor, strict=False))
        return weights | {name: anchors[p].clone() for name, p in model.named_parameters(remove_duplicate=False)}

    def state_dict(self) -> dict[str, Tensor]:
        pairs = enumerate(zip(self.anchor, self.average, strict=True))
        return {"updates": torch.tensor(self.updates)} | {f"{number:04d}": torch.stack(pair) for number, pair in pairs}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        pairs = [state[name].to(self.device) for name in sorted(state) if name != "updates"]
        self.anchor, self.average = ([pair[which].clone() for pair in pairs] for which in (0, 1))
