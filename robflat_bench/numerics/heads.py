"""Networks with another head on their features."""

from __future__ import annotations

from torch import Tensor, nn

from robflat_bench.core import UsageError


class WithHead(nn.Module):
    """The model with another head in place of its last linear layer, for as long as a forward lasts: its output
    is the head's, so passes are counted as ever, and nothing outlives the forward."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        hook = last_linear(self.model).register_forward_hook(lambda _, inputs, output: self.head(inputs[0]))
        try:
            logits: Tensor = self.model(x)
        finally:
            hook.remove()
        return logits


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer that makes the logits; UsageError where there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError("self-supervision needs a network with a linear layer at its end; choose another backbone")
    return layers[-1]
