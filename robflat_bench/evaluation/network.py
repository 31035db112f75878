"""Networks that can be trained and evaluated: any other is refused in one line, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.core import RobflatError, UsageError
from robflat_bench.core.batching import MEMORY_BATCH
from robflat_bench.data.own import OwnSplits
from robflat_bench.evaluation.copies import subclass_of
from robflat_bench.evaluation.options import OTHER_PROTOCOL
from robflat_bench.evaluation.own_code import line_of
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.passes import trial
from robflat_bench.numerics.weights import digest

PROBED = 32
"""Test images that a network is tried on."""


def check_network(session: Session, model: nn.Module, name: str, classes: int | None = None) -> None:
    """Try a network on a few test images. It is left as it was, and so is torch's random state.

    `classes` is the number of its logits (None: the number of classes of the data).

    Raises
    ------
    UsageError
        Unless it maps images [N,C,H,W] to finite logits [N,K], each row a differentiable function of its own image
        alone, and leaves the images as they are.
    """
    x = session.examples("test", PROBED).x
    with attacked(model), trial(x):
        images = x.clone()
        with torch.no_grad():
            logits = _forward(session, model, images, name)
        _check_logits(session, model, logits, x, name, classes)
        if not torch.equal(images, x):
            raise UsageError(f"{name} changes its images in place; write `x = 2 * x`, not `x.mul_(2)`, in its forward")
        if not logits.isfinite().all():
            raise UsageError(f"{name}: {_not_finite(model, logits)}")
        images.requires_grad_()
        if not _reaches(_forward(session, model, images, name), images):
            raise UsageError(
                f"no gradient of {name}'s logits reaches the images, so no attack by gradients says anything about it; "
                "take `detach` and `torch.no_grad` out of its forward"
            )
        with torch.no_grad():
            _check_rows(model, logits, x, name)


def behaviour(session: Session, network: nn.Module) -> str:
    """Digest of the network's logits and input gradients on a few test examples; stands for code that is unknown."""
    examples = session.examples("test", MEMORY_BATCH)
    with attacked(network):
        images = examples.x.clone().requires_grad_()
        logits = network(images)
        (gradient,) = torch.autograd.grad(logits.sum(), images)
    return digest({"logits": logits, "gradient": gradient})


def check_trainable(session: Session, model: nn.Module, name: str) -> None:
    """Try a network that is to be trained: in eval mode as `check_network` does, and one pass in train mode.

    Raises UsageError as `check_network` does, and where no parameter requires a gradient.
    """
    check_network(session, model, name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"no parameter of {name} requires a gradient, so nothing can be trained; use `evaluate`")
    x, modes = session.examples("test", PROBED).x, [(module, module.training) for module in model.modules()]
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    try:
        with trial(x), torch.no_grad():
            name = f"{name} in train mode"
            _check_logits(session, model, _forward(session, model.train(), x.clone(), name), x, name)
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for key, buffer in model.named_buffers():
                buffer.copy_(buffers[key])


def _forward(session: Session, model: nn.Module, images: Tensor, name: str) -> Any:
    try:
        return model(images)
    except (RobflatError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = (str(error).strip() or "no reason given").splitlines()[0]
        own = isinstance(session.splits, OwnSplits)
        other = "give images that it takes" if own else f"choose another protocol: {OTHER_PROTOCOL}"
        raise UsageError(
            f"{name} fails on images {_kind(images)}: {type(error).__name__}: {first:.300}{line_of(error)}; "
            f"pass a network for images of this shape and type, or {other}"
        ) from error


def _check_logits(
    session: Session, model: nn.Module, logits: Any, x: Tensor, name: str, classes: int | None = None
) -> None:
    """UsageError unless these are logits of the images x, one for each class."""
    expected = (len(x), classes or _classes(session, logits))
    if not isinstance(logits, Tensor):
        instead = f"write `{subclass_of(model, _place(logits, expected))}`"
        if logits is None or isinstance(logits, np.ndarray):
            instead = "end its forward with `return` and the tensor, without `.detach()` and `.numpy()`"
        raise UsageError(f"{name} returns a {type(logits).__name__}, not a tensor of logits {expected}; {instead}")
    if logits.numel() == len(x):
        raise UsageError(
            f"{name} makes {tuple(logits.shape)} of {tuple(x.shape)} images: one logit each, whose softmax is 1. Of "
            "these z [N], return `torch.stack([torch.zeros_like(z), z], 1)`, one for each of two classes"
        )
    if tuple(logits.shape) != expected:
        live = isinstance(session.splits, OwnSplits)
        advice = "pass a network with an output [N,K]" if live else f"pass a network for {session.splits.ref.name}"
        if tuple(logits.flatten(1).shape if logits.ndim > 1 else ()) == expected:
            advice = "end its forward with `.flatten(1)`"
        elif live and logits.ndim == 2 and logits.shape[1] < expected[1]:
            advice = f"the labels go up to {expected[1] - 1}: classes are 0, 1, ..., {logits.shape[1] - 1} for it"
        elif logits.ndim == 2 and len(logits) == len(x) and logits.shape[1] > expected[1]:
            advice = f"if it has {logits.shape[1]} classes, say so: --classes {logits.shape[1]}"
        raise UsageError(
            f"{name} makes {tuple(logits.shape)} of {tuple(x.shape)} images, not logits {expected}; {advice}"
        )
    if not logits.is_floating_point():
        raise UsageError(f"{name} returns {logits.dtype}, not logits; return the scores before `argmax` or rounding")
    if logits.shape[1] > 1 and logits.min() >= 0 and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-3):
        raise UsageError(
            f"{name} returns probabilities: every row is positive and its sum is 1. Attacks and losses need logits; "
            "return the scores before `softmax`"
        )


def _classes(session: Session, logits: Any) -> int:
    """The number of logits that the data ask for; of examples without a dataset, the labels are a lower bound."""
    known = session.splits.shape.classes
    more = isinstance(session.splits, OwnSplits) and isinstance(logits, Tensor) and logits.ndim == 2
    return max(known, logits.shape[1]) if more else known


def _place(output: Any, expected: tuple[int, int]) -> str:
    """Where in an output the logits are: an attribute, or an index or key; the first where nothing has their shape."""
    if isinstance(getattr(output, "logits", None), Tensor):
        return ".logits"
    if not isinstance(output, tuple | list | Mapping) or not output:
        return "[0]"
    places = output.items() if isinstance(output, Mapping) else enumerate(output)
    shapes = {key: tuple(getattr(part, "shape", ())) for key, part in places}
    return f"[{next((key for key, shape in shapes.items() if shape == expected), next(iter(shapes)))!r}]"


def _not_finite(model: nn.Module, logits: Tensor) -> str:
    """The reason why there are NaN or infinity among the logits."""
    tensors = model.state_dict().items()
    wrong = [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        return f"its tensor '{wrong[0]}' holds NaN or infinity; pass weights that are finite"
    rows = int((~logits.isfinite().all(1)).sum())
    return f"its logits are NaN or infinite on {rows} of {len(logits)} test images; bound what overflows in its forward"


def _reaches(logits: Tensor, images: Tensor) -> bool:
    """Whether autograd has a path from the images to the logits."""
    if not logits.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
    return gradient is not None


def _check_rows(model: nn.Module, logits: Tensor, x: Tensor, name: str) -> None:
    """UsageError if the logits of the first images change with the images behind them in the batch."""
    half = len(x) // 2
    again, other = model(x.clone()), model(torch.cat([x[:half], 1 - x[half:]]))
    scale = 1e-3 * float(logits.abs().max())
    same, alone = (torch.allclose(found[:half], logits[:half], 1e-3, scale) for found in (again, other))
    if same and not alone:  # a random forward is flagged in the record
        raise UsageError(
            f"{name}: the logits of an image depend on the other images of its batch, even in eval mode; use running "
            "statistics, and keep the order of the images"
        )


def _kind(x: Tensor) -> str:
    return f"{x.dtype}{list(x.shape)}".removeprefix("torch.")
