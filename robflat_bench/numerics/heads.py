"""Networks with a second head on their features."""

from __future__ import annotations

from torch import Tensor, nn

from robflat_bench.core import UsageError


class WithHead(nn.Module):
    """A model whose last linear layer is replaced by another head during its forward.

    Parameters
    ----------
    model
        Images -> logits. Its hooks run as ever, so its passes are counted; nothing of it is changed after the forward.
    head
        Features, the input of the model's last linear layer -> output.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        with last_linear(self.model).register_forward_hook(lambda _, inputs, output: self.head(inputs[0])):
            logits: Tensor = self.model(x)
        return logits


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer that makes the logits: the model's last linear layer; UsageError if it has none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError("self-supervision needs a network with a linear layer at its end; choose another backbone")
    return layers[-1]
