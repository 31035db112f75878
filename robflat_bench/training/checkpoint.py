"""Training states for resuming, as safetensors.

Every file carries a digest of its tensors and state; a damaged one is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from robflat_bench.numerics.weights import digest, packed, unpacked
from robflat_bench.results.store import write_atomically

KEPT_STATES = 2


class States:
    """The last few training states of a run, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """One more state after `step` steps; older ones beyond the kept number go."""
        text = json.dumps(state)
        metadata = {"state": text, "digest": _seal(tensors, text)}
        write_atomically(self.folder / f"state-{step:09d}.safetensors", packed(tensors, metadata))
        for path in self._files()[KEPT_STATES:]:
            path.unlink(missing_ok=True)

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole, or None."""
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
