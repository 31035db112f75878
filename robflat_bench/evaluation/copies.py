"""Copies of a live network: whole, or refused before any work. TorchScript is refused anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from robflat_bench.attacks.engine import attacked
from robflat_bench.backbones.parts import Normalized, check_tensors
from robflat_bench.core import UsageError, one_line
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.passes import copied, trial


def check_python(model: nn.Module) -> None:
    """UsageError where a part of the network is TorchScript."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        raise UsageError(
            f"{type(model).__name__} holds a TorchScript module, whose passes cannot be counted; pass the Python "
            "module that it was made from"
        )


def subclass_of(module: nn.Module, output: str = "") -> str:
    """Python to write instead of a patched network: a subclass of the user's class. output: what its forward takes of
    the other's, such as "[0]"."""
    own = type(module.network if isinstance(module, Normalized) else module).__name__
    return f"class Logits({own}): forward = lambda self, x: {own}.forward(self, x){output}"


def whole_copy(session: Session, module: nn.Module, name: str) -> nn.Module:
    """A copy of a network. The network, its hooks and modes stay as they are.

    A function that was put on a network, as `net.forward = lambda x: old(x)` does, still holds that network when the
    two are copied, and a part may copy to itself. The copy would compute with the original's weights and modes, and
    its own would move without effect. So another copy is tried on two test images first.

    Raises UsageError where the module is TorchScript, has tensors without values or cannot be copied, or where a copy
    computes with modules, parameters or buffers of the original.
    """
    check_python(module)
    check_tensors(module)
    try:
        tried, made = copied(module), copied(module)
    except Exception as error:
        raise UsageError(f"{name} cannot be copied ({one_line(error):.200}); pass a module without that") from None
    x = session.examples("test", 2).x
    x = x.to(next((own for own in tried.parameters() if own.is_floating_point()), x))
    with trial(x), _watched(module, name) as watch, attacked(tried), torch.enable_grad():
        try:
            watch.reached_from(tried(x))
        except UsageError:
            raise
        except Exception:  # of a network that fails on these images, `check_network` says what is wrong
            return made
    return made


class _Watch(TorchFunctionMode):
    """Refuses operations on tensors of a network, and gradients that reach its parameters.

    Compiled code shows no operations, and operations without a derivative leave no gradient; so both are watched.
    (A mode of dispatch sees more, and imports torch's compiler.)
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.name, self.instead = name, subclass_of(module)
        self.parameters = [each for each in module.parameters() if each.is_floating_point() and not each.is_inference()]
        tensors = [*module.parameters(), *module.buffers()]
        self.places = {each.untyped_storage().data_ptr() for each in tensors if each.layout is torch.strided} - {0}

    def refuse(self, *_: Any) -> None:
        raise UsageError(
            f"a copy of {self.name} computes with the original's layers: a function on it holds them, as after "
            "`net.forward = lambda x: old(x)`, or a part of it copies to itself. Instead of a function, write a class: "
            f"`{self.instead}`, and load the weights"
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(t.layout is torch.strided and t.untyped_storage().data_ptr() in self.places for t in tensors):
            self.refuse()
        return func(*args, **(kwargs or {}))

    def reached_from(self, logits: Any) -> None:
        if isinstance(logits, Tensor) and logits.requires_grad and self.parameters:
            reached = torch.autograd.grad(logits.sum(), self.parameters, allow_unused=True)
            if any(gradient is not None for gradient in reached):
                self.refuse()


@contextmanager
def _watched(module: nn.Module, name: str) -> Iterator[_Watch]:
    """A watch of the network's tensors, and of calls of its layers, which change statistics in train mode."""
    watch = _Watch(module, name)
    with ExitStack() as stack:
        for part in module.modules():
            stack.callback(part.register_forward_pre_hook(watch.refuse).remove)
        for parameter in watch.parameters:
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_()
        stack.enter_context(watch)
        yield watch
