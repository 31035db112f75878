"""Saved training states, from which an interrupted run resumes. They are safetensors files.

Each file carries a digest of its tensors and of its progress. A damaged file is skipped in favour of the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from robflat_bench.numerics.weights import digest, packed, unpacked
from robflat_bench.records.store import write_atomically

KEPT_STATES = 2

Tensors = dict[str, Tensor]


def flattened(groups: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    """One dictionary of all groups, with keys `<group>.<name>`."""
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """The groups of a flattened dictionary: keys are split at their first dot."""
    groups: dict[str, Tensors] = defaultdict(dict)
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = tensor
    return dict(groups)


class States:
    """The newest `KEPT_STATES` saved states of a run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """Save the state after `step` updates, and delete all but the newest `KEPT_STATES`.

        Parameters
        ----------
        step: updates done so far; names the file.
        tensors: weights, optimizer and everything else that is a tensor.
        state: progress as plain JSON values.
        """
        text = json.dumps(state)
        metadata = {"state": text, "digest": _seal(tensors, text)}
        write_atomically(self.folder / f"state-{step:09d}.safetensors", packed(tensors, metadata))
        for path in self._files()[KEPT_STATES:]:
            path.unlink(missing_ok=True)

    def latest(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Tensors and progress of the newest undamaged file; None if there is none."""
        for path in self._files():
            try:
                tensors, metadata = unpacked(path)
                if metadata["digest"] == _seal(tensors, metadata["state"]):
                    return tensors, json.loads(metadata["state"])
            except (SafetensorError, OSError, ValueError, KeyError):
                continue
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), reverse=True)


def _seal(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest(tensors)}{text}".encode()).hexdigest()
