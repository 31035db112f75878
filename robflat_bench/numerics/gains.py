"""Which tensors are normalisation or gain: weight-space measures and modifiers leave them where they are.

A tensor is left if the module that owns it

1. is a normalisation of torch (`NORMALISATION`, subclasses included),
2. inherits from a class of `GAINS`, whose rows name the class and the tensor as `module.Class.tensor`, or
3. declares it: `fixed_in_weight_space = ("gamma",)` on the module's class, patterns of its own tensors' names; `("*",)`
   names all of them.

Libraries are known by name, so none is imported. A plugin declares its own layers by 3; the declaration is read once.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from robflat_bench.core import UsageError

NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)

GAINS = (
    "timm.*.FilterResponseNorm*.*",
    "timm.*.EvoNorm*.*",
    "timm.*.GlobalResponseNorm.*",
    "timm.*.RmsNorm*.*",
    "timm.*.SimpleNorm*.*",
    "timm.*.InplaceAbn.*",
    "timm.*.LayerScale*.*",
    "timm.*.Affine.*",  # ResMLP
    "timm.*.LearnableAffineBlock.*",  # HGNet
    "timm.*.Scale.scale",  # MetaFormer
    "timm.*.ScaledStdConv2d*.gain",
    "timm.*.gamma*",  # scales of branches that blocks keep as tensors of their own: ConvNeXt, BEiT, CaiT, XCiT, EVA
    "timm.*.layer_scale*",
    "timm.*.ResBlock.ls[12]",
    "timm.*.skipinit_gain",
    "torchvision.*.layer_scale",
)
"""Normalisation and gains of libraries, as patterns."""

DECLARATION = "fixed_in_weight_space"
"""The attribute by which a module's class names its gains."""


def gains(model: nn.Module) -> dict[int, str]:
    """Identity of each tensor that is normalisation or gain -> the class of the module that owns it.

    Raises UsageError where a module's declaration is no tuple of its class, or names none of its parameters.
    """
    for module in model.modules():
        _check_declaration(module)
    return {
        id(tensor): type(module).__name__
        for module in model.modules()
        for name, tensor in module.named_parameters(recurse=False)
        if _is_gain(type(module), name)  # type: ignore[arg-type]  # mypy asks instances for the hash of the class
    }


def _check_declaration(module: nn.Module) -> None:
    declared = getattr(module, DECLARATION, ())
    names = list(module._parameters)
    if isinstance(declared, str) or DECLARATION in vars(module):
        raise UsageError(f"{type(module).__name__}.{DECLARATION} must be a tuple of names, set on the class")
    if declared and not any(fnmatchcase(name, pattern) for name in names for pattern in declared):
        raise UsageError(
            f"{type(module).__name__}.{DECLARATION} is {declared}, and names no parameter of that layer: {names}"
        )


@lru_cache(maxsize=4096)  # weight perturbations ask in every update
def _is_gain(kind: type[nn.Module], name: str) -> bool:
    """Whether the tensor of that name, of a module of this class, is normalisation or gain."""
    classes = [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__]
    return (
        issubclass(kind, NORMALISATION)
        or any(fnmatchcase(f"{own}.{name}", pattern) for own in classes for pattern in GAINS)
        or any(fnmatchcase(name, pattern) for pattern in getattr(kind, DECLARATION, ()))
    )
