r"""Adversarial images of a file, made elsewhere by any attack. The image of position i is x'_i where

    0 <= x'_i <= 1   and   ||x'_i - x_i||_norm <= \epsilon + TOLERANCE

for every example under evaluation; otherwise the file is refused before any work.

The file is an .npz with two arrays: `x`, [N,H,W,C] or [N,C,H,W], uint8 (v stands for v/255) or floats in [0,1]; and
`index`, the positions of the images in their dataset, integers [N]. Its content is a part of what is evaluated, its
path is not: the attack is named by the SHA-256 of the file.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from robflat_bench.core import Attack, AttackInfo, Examples, Params, Passes, Threat, UsageError, Workspace, lazy_imports
from robflat_bench.core.files import read_regular

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.norms import NORMS
    from robflat_bench.core.archives import unpack_arrays

TOLERANCE = 1e-6
"""Pixels of [0,1] by which an image of floats may exceed ball and box, because floats round. Half a level is 2e-3: an
image that was rounded to uint8 out of the ball is outside."""
MAX_BYTES = 2**30
"""Limit of a file, packed and unpacked."""
FILES: dict[str, Path] = {}
"""SHA-256 -> where this process has read a file of that content."""


class ImagesParams(Params):
    """One of `file` and `sha256` names the images; the canonical text of the attack has the hash only."""

    norms = ("linf", "l2", "l1")

    file: str | None = Field(default=None, max_length=4096, description="The .npz file with arrays x and index.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        default=None, description="SHA-256 of the file, by which records name it; a file with another is refused."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_content(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("file"), str):
            return values
        path = Path(values["file"]).expanduser()
        try:
            found = hashlib.sha256(read_regular(path, MAX_BYTES)).hexdigest()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{path} cannot be read ({reason}); write images(file=adv.npz)") from None
        if values.get("sha256") not in (None, found):
            raise ValueError(
                f"{path} has the SHA-256 {found}, not {values['sha256']}; leave sha256 out, or name its file"
            )
        FILES[found] = path.absolute()
        return {"sha256": found}

    @model_validator(mode="after")
    def _named(self) -> ImagesParams:
        if self.sha256 is None:
            raise ValueError("it needs a file; write images(file=adv.npz)")
        return self


INFO = AttackInfo(
    name="images",
    summary="adversarial images of an .npz file, made elsewhere; each is checked for ball and box",
    factory=f"{__name__}:Images",
    params=ImagesParams,
    title="images of the file {sha256:.8}",
    passes=Passes("0", "0"),
    example={"sha256": "0" * 64},
)


def excess(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """How far each image lies outside the threat's ball around x, [N] in pixels of [0,1]; NaN for an image with NaN."""
    return NORMS[threat.norm].size(x_adv - x) - threat.epsilon


class Images(Attack):
    """Gives the image of each example's position; it makes no pass."""

    params: ImagesParams

    def admit(self, examples: Examples) -> None:
        """UsageError unless every example has an image in ball and box."""
        self._images(examples)

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self._images(examples)

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        return self._images(examples)

    def _images(self, examples: Examples) -> Tensor:
        """x_adv [N,C,H,W] of the examples, in their precision."""
        name, (x, index) = self._path.name, self._arrays
        wanted, order = examples.index.cpu().numpy(), np.argsort(index)
        rows = order[np.searchsorted(index, wanted, sorter=order).clip(max=len(index) - 1)]
        if (lacks := np.flatnonzero(index[rows] != wanted)).size:
            few = f"; the first {lacks[0]:,} have one: add --examples {lacks[0]}" if lacks[0] > 1 else ""
            raise UsageError(
                f"{name} has no image of {lacks.size:,} of the {len(wanted):,} examples, such as position "
                f"{wanted[lacks[0]]}; add them to x and index{few}"
            )
        chosen = torch.from_numpy(_as(x[rows], examples, name)).to(examples.x)
        x_adv = chosen / 255 if x.dtype == np.uint8 else chosen
        self._check(x_adv, examples, name)
        return x_adv.clamp(0, 1)

    def _check(self, x_adv: Tensor, examples: Examples, name: str) -> None:
        low, high = float(x_adv.min()), float(x_adv.max())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN fails both
            raise UsageError(
                f"{name} has pixels from {low:.4g} to {high:.4g}; save floats in [0,1], or uint8, whose v stands for "
                "v/255"
            )
        far = excess(x_adv, examples.x, self.threat)
        if (outside := (~(far <= TOLERANCE)).nonzero()[:, 0]).numel():
            worst = outside[far[outside].argmax()]
            raise UsageError(
                f"{name}: {outside.numel():,} of {len(examples):,} images lie outside the {self.threat.norm} ball of "
                f"radius {self.threat.epsilon:.6g}, that of position {int(examples.index[worst])} by "
                f"{float(far[worst]):.3g}; project them onto the ball around the images of this dataset "
                "(rounding to uint8 may leave it), and let index hold their positions in it"
            )

    @cached_property
    def _path(self) -> Path:
        if path := FILES.get(self.params.sha256 or ""):
            return path
        raise UsageError(
            f"this process has not read the file with the SHA-256 {self.params.sha256}; name it by "
            "--attack 'images(file=adv.npz)'"
        )

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """x and index of the file."""
        path = self._path
        try:
            raw = read_regular(path, MAX_BYTES)
            if hashlib.sha256(raw).hexdigest() != self.params.sha256:
                raise ValueError("it has changed since this evaluation began")
            found = unpack_arrays(raw, MAX_BYTES)
            x, index = (found[name] for name in ("x", "index"))
        except KeyError as error:
            raise UsageError(f"{path.name} has no array {error}; save np.savez(file, x=x, index=index)") from None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path.name} is no .npz file of arrays ({error}); save np.savez(file, x=x, index=index)"
            ) from None
        if x.ndim != 4 or x.dtype not in (np.uint8, np.float32, np.float64) or not len(x):
            raise UsageError(f"{path.name}: x is {x.dtype}{[*x.shape]}; save uint8, float32 or float64 [N,H,W,C]")
        if index.shape != x.shape[:1] or index.dtype.kind not in "iu" or len(np.unique(index)) < len(index):
            raise UsageError(
                f"{path.name}: index is {index.dtype}{[*index.shape]}; save one integer for each of the {len(x):,} "
                "images, each position once"
            )
        return x, index


def _as(x: np.ndarray, examples: Examples, name: str) -> np.ndarray:
    """The images [N,C,H,W], as the examples are; where both orders of the axes fit, x is [N,C,H,W] already."""
    channels, height, width = shape = tuple(examples.x.shape[1:])
    if x.shape[1:] == shape:
        return x
    if x.shape[1:] == (height, width, channels):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise UsageError(
        f"{name} has images {[*x.shape[1:]]}, the data {[height, width, channels]} or {[*shape]}; save images of this "
        "dataset"
    )
