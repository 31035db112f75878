r"""NuAT:  L(w) = mean_i \ell_CE(f(x_i), y_i) + \lambda / B || f(X') - f(X) ||_*,   X' one step on the same:
see `guided`.

Sriramanan, Addepalli, Baburaj, Babu: Towards efficient and effective adversarial training, NeurIPS 2021. f gives
logits, f(X) is the [B,K] matrix of a batch, ||.||_* the sum of its singular values.

The authors' script for CIFAR-10 at 8/255 (ResNet-18, batches of 64, 100 epochs): \nu = 1/2 (4/255), \alpha = 1, and
\lambda rises by equal parts after each of the first 90 epochs, from 0 to 4.5. Ours: it rises with each update. The
sum grows as sqrt(B) where examples change alike in size, so the same \lambda weighs more in smaller batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robflat_bench.api import Batch, Moment
from robflat_fastat import NuATParams
from robflat_fastat.guided import Guided


class NuAT(Guided):
    """The norm belongs to the batch: each example has its share of it."""

    params: NuATParams

    def weight(self, moment: Moment) -> float:
        ramp = self.params.ramp
        return self.params.weight * (min(1.0, moment.progress / ramp) if ramp else 1.0)

    def distance(self, moved: Tensor, clean: Tensor, batch: Batch) -> Tensor:
        return nuclear_shares(moved - clean, batch.weight)


def nuclear_shares(matrix: Tensor, weight: Tensor) -> Tensor:
    r"""s_i = <M_i, Q_i> of the rows of M [B,K], Q = U V^T where diag(w) M = U S V^T:  sum_i w_i s_i = ||diag(w) M||_*.

    Q is held fixed. Where it moves, the sum stays to first order (of all matrices of spectral norm <= 1, Q has the
    largest product with diag(w) M), so the sum's gradient is that of the norm; none goes through the decomposition,
    which has none where singular values meet. Singular values within rounding of 0 are left out of Q: of all
    subgradients the shortest, and 0 where M is 0. A row that is not finite has a share that is not.
    """
    rows = weight.double()[:, None] * matrix.detach().double()
    u, s, vh = torch.linalg.svd(rows.nan_to_num(0, 0, 0), full_matrices=False)
    held = s > s.max() * max(rows.shape) * torch.finfo(matrix.dtype).eps
    polar: Tensor = (u * held) @ vh
    return (matrix * polar.to(matrix)).sum(1)
