"""Names of tensors that public code gives to well-known networks, mapped onto built-in backbones.

A layout is recognised by names that it alone has. The backbone's text follows from the shapes: another width or depth
is another backbone, or a refusal that says what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from robflat_bench.core import UsageError
from robflat_bench.evaluation.fitting import stripped

RESNETS = "ResNet of torchvision or timm"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """A public layout, as a built-in backbone.

    Parameters
    ----------
    backbone : str
        Component text of the backbone, e.g. "resnet18(width=64)".
    tensors : dict of str to Tensor
        Under the backbone's own names, without normalisation.
    notes : tuple of str
        What was recognised, left out and assumed.
    """

    backbone: str
    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """One way to name tensors.

    Parameters
    ----------
    title : str
        In words.
    marks : tuple of str
        Names that are all there; of a name after "!", that is not.
    backbone : callable
        Component text from the shapes; UsageError for a network that no backbone is.
    renames : tuple of (str, str)
        Regular expression of a whole name, and the backbone's name; a name that no expression matches stays.
    unused : str
        Regular expression of names of tensors that the public forward pass never reads.
    assumed : str
        What weights do not show.
    """

    title: str
    marks: tuple[str, ...]
    backbone: Callable[[Shapes], str]
    renames: tuple[tuple[str, str], ...] = ()
    unused: str = r"(?!)"
    assumed: str = "activation ReLU"

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are the layout's names, and its convolutions are some."""
        named = all((mark.lstrip("!") in tensors) != mark.startswith("!") for mark in self.marks)
        return named and all(tensors[mark].ndim == 4 for mark in self.marks if "conv" in mark)

    def read(self, tensors: Mapping[str, Tensor]) -> Recognised:
        """The tensors under the backbone's names."""
        kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(self.unused, name)}
        text = self.backbone({name: tuple(tensor.shape) for name, tensor in kept.items()})
        named = {self.renamed(name): tensor for name, tensor in kept.items()}
        if len(named) < len(kept):
            raise UsageError(f"two of these tensors have the name of one in a {self.title}; add --model FILE.py:CLASS")
        notes = [f"names of a {self.title}: read as {text}; assumed: {self.assumed}"]
        if unused := len(tensors) - len(kept):
            notes.append(f"{unused} tensors that its forward pass never reads are left out")
        return Recognised(text, named, tuple(notes))

    def renamed(self, name: str) -> str:
        """The backbone's name of a tensor; a number after `+` in a rename is one more than the public one."""
        for pattern, replacement in self.renames:
            if found := re.fullmatch(pattern, name, re.ASCII):
                return re.sub(r"\+(\d+)", lambda number: str(int(number[1]) + 1), found.expand(replacement))
        return name


def recognise(tensors: Mapping[str, Tensor], arch: str = "") -> Recognised | None:
    """The public layout of these tensors, with prefixes of wrappers or without; None where there is none.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Under a file's own names.
    arch : str
        The network's name in the file, as timm's and torchvision's training programs write it.

    Raises
    ------
    UsageError
        The layout is known, and no built-in backbone is this network.
    """
    for named, notes in stripped(tensors):
        for layout in LAYOUTS:
            if layout.fits(named):
                if layout.title == RESNETS and _is_timms(arch):  # others have the same names and shapes
                    layout = replace(layout, backbone=partial(_named, arch))
                found = layout.read(named)
                return Recognised(found.backbone, found.tensors, (*notes, *found.notes))
    if not _is_timms(arch):
        return None
    notes = (f"the file calls its network {arch}, an architecture of timm",)
    return Recognised(f"timm(name={_untagged(arch)})", dict(tensors), notes)


def _untagged(arch: str) -> str:
    """The architecture's name without the tag of its pretrained weights."""
    return arch.partition(".")[0]


def _is_timms(arch: str) -> bool:
    """Whether timm has an architecture of that name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", _untagged(arch), re.ASCII):
        return False
    import timm

    return bool(timm.is_model(_untagged(arch)))


# ---------------------------------------------------------------------------------------------------------
# From shapes to backbones
# ---------------------------------------------------------------------------------------------------------


def _blocks(shapes: Shapes, stage: str) -> list[int]:
    """Number of blocks of each stage; `stage` is a format of the names of their first convolutions."""
    counts: list[int] = []
    while (count := _count(shapes, stage, len(counts) + 1)) > 0:
        counts.append(count)
    return counts


def _count(shapes: Shapes, stage: str, number: int) -> int:
    block = 0
    while stage.format(number, block) in shapes:
        block += 1
    return block


def _other(title: str, seen: str) -> UsageError:
    return UsageError(f"these are names of a {title} with {seen}, which no backbone here is; add --model FILE.py:CLASS")


_DEPTHS: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
_DEEPER: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
"""Blocks by stage of ResNets with basic blocks, and with bottlenecks."""


def _depth(title: str, shapes: Shapes) -> int:
    """The depth of a ResNet by its blocks; UsageError for one that the papers do not have."""
    counts = tuple(_blocks(shapes, "layer{}.{}.conv1.weight"))
    deep = "layer1.0.conv3.weight" in shapes
    depth = (_DEEPER if deep else _DEPTHS).get(counts, 0)
    if not depth:
        kind = "bottlenecks" if deep else "basic blocks"
        raise _other(title, f"stages of {', '.join(map(str, counts))} {kind}")
    return depth


def _cifar(backbone: str, title: str) -> Callable[[Shapes], str]:
    """ResNet-18 of any width with the 3x3 stem of small images."""

    def text(shapes: Shapes) -> str:
        if (depth := _depth(title, shapes)) != 18:
            raise _other(title, f"depth {depth}")
        if shapes["conv1.weight"][2:] != (3, 3):
            raise _other(title, f"a stem of {shapes['conv1.weight'][2:]}")
        return f"{backbone}(width={shapes['conv1.weight'][0]})"

    return text


def _wide(shapes: Shapes) -> str:
    """A wide ResNet of depth 6 n + 4 and width factor k, whose first stage has n blocks of 16 k channels."""
    counts, stem = _blocks(shapes, "block{}.layer.{}.conv1.weight"), shapes["conv1.weight"][0]
    factor = shapes["block1.layer.0.conv1.weight"][0] // 16
    if len(counts) != 3 or len({*counts}) > 1 or stem != 16 or not factor:
        raise _other("wide ResNet", f"stages of {', '.join(map(str, counts))} blocks and a stem of {stem} channels")
    depth = 6 * counts[0] + 4
    return (
        f"wrn-{depth}-{factor}" if (depth, factor) in {(28, 10), (34, 10)} else f"wrn(depth={depth}, factor={factor})"
    )


def _named(arch: str, shapes: Shapes) -> str:
    """An architecture of timm by its name, with the stem that the shapes show."""
    stem = "" if shapes["conv1.weight"][2:] == (3, 3) else ", stem=original"
    return f"timm(name={_untagged(arch)}{stem})"


def _torchvision(shapes: Shapes) -> str:
    """A ResNet of torchvision, which timm has under the same names."""
    return _named(f"resnet{_depth(RESNETS, shapes)}", shapes)


def _trunk(block: str, shortcut: str) -> tuple[tuple[str, str], ...]:
    """Renames of the stem and of the blocks, whose names begin with `block` and whose projections are `shortcut`."""
    return (
        (r"conv1\.weight", r"stem.conv.weight"),
        (rf"{block}\.conv(\d)\.weight", r"stage\1.block+\2.conv\3.weight"),
        (rf"{block}\.bn(\d)\.(\w+)", r"stage\1.block+\2.norm\3.\4"),
        (rf"{block}\.{shortcut}\.weight", r"stage\1.block+\2.shortcut.conv.weight"),
    )


_LAYER = r"layer(\d{1,3})\.(\d{1,3})"
_RESNET = (
    *_trunk(_LAYER, r"shortcut\.0"),
    (rf"{_LAYER}\.shortcut\.1\.(\w+)", r"stage\1.block+\2.shortcut.norm.\3"),
    (r"bn1\.(\w+)", r"stem.norm.\1"),
    (r"bn\.(\w+)", r"tail.norm.\1"),
    (r"linear\.(\w+)", r"head.\1"),
)
_WIDE = (
    *_trunk(r"block(\d{1,3})\.layer\.(\d{1,3})", "convShortcut"),
    (r"bn1\.(\w+)", r"tail.norm.\1"),
    (r"fc\.(\w+)", r"head.\1"),
)


def _no_tail(shapes: Shapes) -> str:
    raise _other("pre-activation ResNet", "no norm behind its last block")


_BLOCK = "layer1.0.conv1.weight"
LAYOUTS = (
    Layout(
        "pre-activation CIFAR ResNet",
        ("conv1.weight", "bn1.weight", "layer2.0.shortcut.0.weight", "!layer2.0.shortcut.1.weight", "linear.weight"),
        _cifar("preact-resnet18", "pre-activation CIFAR ResNet"),
        ((r"bn1\.(\w+)", r"tail.norm.\1"), *_RESNET),
    ),
    Layout(
        "CIFAR ResNet",
        ("conv1.weight", "bn1.weight", _BLOCK, "linear.weight"),
        _cifar("resnet18", "CIFAR ResNet"),
        _RESNET,
    ),
    Layout(
        "pre-activation CIFAR ResNet",
        ("conv1.weight", "!bn1.weight", "bn.weight", _BLOCK, "linear.weight"),
        _cifar("preact-resnet18", "pre-activation CIFAR ResNet"),
        _RESNET,
    ),
    Layout(
        "pre-activation CIFAR ResNet without a last norm",
        ("conv1.weight", "!bn1.weight", "!bn.weight", _BLOCK, "linear.weight"),
        _no_tail,
    ),
    Layout(
        "wide ResNet",
        ("conv1.weight", "bn1.weight", "block1.layer.0.conv1.weight", "fc.weight"),
        _wide,
        _WIDE,
        unused=r"sub_block1\..*",
        assumed="activation ReLU, no dropout",
    ),
    Layout(
        RESNETS,
        ("conv1.weight", "bn1.weight", _BLOCK, "fc.weight"),
        _torchvision,
        assumed="activation ReLU, no blurred pooling; a 7x7 stem has stride 2 and is followed by pooling, a 3x3 stem "
        "has neither",
    ),
)
"""The layouts that are recognised, the first that fits."""
