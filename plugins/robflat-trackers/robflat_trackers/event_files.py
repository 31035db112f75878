"""TensorBoard's event files of a run, below `<run>/observers/tensorboard`.

Each checkpoint's results have a folder of their own. So best and last share charts, and a repeated evaluation replaces
its results.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from robflat_bench.api import RunView
from robflat_trackers.scalars import of_epoch, of_result

# With this module present, TensorBoard writes files by its own stub and does not import an installed TensorFlow, which
# would take seconds and the memory of every GPU.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

from torch.utils.tensorboard import SummaryWriter  # noqa: E402


class TensorBoard:
    """The event files of one run, written to disk after every epoch."""

    def __init__(self, run: RunView) -> None:
        self.run = run
        self.folder = run.folder / "observers" / "tensorboard"
        self.writer: SummaryWriter | None = None

    def epoch_ends(self, epoch: Mapping[str, Any]) -> None:
        if self.writer is None:
            self.writer = self._begun(epoch["epoch"])
        _write(self.writer, of_epoch(epoch), epoch["epoch"])

    def evaluation_ends(self, checkpoint: str, result: Mapping[str, Any]) -> None:
        folder = self.folder / checkpoint
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(folder) as writer:
            _write(writer, of_result(result), result["epoch"])

    def ends(self, record: Mapping[str, Any]) -> None:
        self.close()

    def fails(self, error: Exception) -> None:
        self.close()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _begun(self, step: int) -> SummaryWriter:
        """A writer that begins at an epoch and purges what an interrupted run logged from there on.

        A run that begins at epoch 0 also needs the mark to purge: TensorBoard takes a folder's first mark for its
        beginning and heeds only later ones.
        """
        if step == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        writer = SummaryWriter(self.folder, purge_step=step)
        if step == 0:
            writer.add_text("run", _about(self.run), step)
        return writer


def _write(writer: SummaryWriter, numbers: Mapping[str, float], step: int) -> None:
    for name, value in numbers.items():
        writer.add_scalar(name, value, step)
    writer.flush()


def _about(run: RunView) -> str:
    """Label, protocol, seed and key of the run, and its spec as code, in Markdown."""
    spec = json.dumps(run.spec, indent=2).replace("\n", "\n    ")
    return f"**{run.label}** under {run.protocol}, seed {run.seed}, key {run.key}\n\n    {spec}"
