r"""GAT, whose adversarial images x' take one step (see `guided`):

    L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \lambda || p(x_i') - p(x_i) ||_2^2 ]

Sriramanan, Addepalli, Baburaj, Babu: Guided adversarial attack for evaluating and enhancing adversarial defenses,
NeurIPS 2020. p are softmax probabilities.

The authors' script for CIFAR-10 at 8/255 (ResNet-18, batches of 64, 100 epochs): \nu = 1/2 (4/255), \alpha = 1, and
\lambda = 10, four times that from epoch 86 (counted from 0) on, after the last drop of the learning rate.
"""

from __future__ import annotations

from torch import Tensor

from robflat_bench.api import Batch, Moment
from robflat_fastat import GATParams
from robflat_fastat.guided import Guided


class GAT(Guided):
    """Measures the distance of predictions by their squared difference."""

    params: GATParams

    def weight(self, moment: Moment) -> float:
        return self.params.weight * (self.params.boost if moment.progress >= self.params.late else 1.0)

    def distance(self, moved: Tensor, clean: Tensor, batch: Batch) -> Tensor:
        return (moved.softmax(1) - clean.softmax(1)).square().sum(1)
