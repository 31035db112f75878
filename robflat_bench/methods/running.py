"""What several methods remember: a running average of the predictions for each training image."""

from __future__ import annotations

from typing import Any

from robflat_bench.core import Batch, Method, Training, lazy_imports

with lazy_imports():
    from torch import Tensor

REMEMBERS = "it remembers the label of each example"
"""Why these methods are not trained in shards."""


class RunningPredictions(Method):
    """t_i <- m t_i + (1 - m) p(x_i), from a fraction `start` of training on.

    `labels` [N,K] holds t_i, or zeros for an image without one. The parameters have `momentum` (m) and `start`.
    """

    params: Any
    saved = ("labels",)

    def setup(self, training: Training) -> None:
        weight = next(training.model.parameters())
        self.labels = weight.new_zeros(training.count, training.shape.classes)

    def started(self, batch: Batch) -> bool:
        """Whether predictions are averaged."""
        return bool(batch.moment.progress >= self.params.start)

    def moved(self, batch: Batch, before: Tensor, prediction: Tensor) -> Tensor:
        """The averages [B,K] of what was there before and the predictions of a batch; training images keep them."""
        momentum, known = self.params.momentum, batch.index >= 0
        moved: Tensor = momentum * before + (1 - momentum) * prediction
        self.labels[batch.index[known]] = moved[known]
        return moved
