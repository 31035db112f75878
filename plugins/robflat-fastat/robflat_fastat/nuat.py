r"""NuAT, whose adversarial images X' take one step (see `guided`):

    L(w) = mean_i \ell_CE(f(x_i), y_i) + \lambda / B || f(X') - f(X) ||_*

Sriramanan, Addepalli, Baburaj, Babu: Towards efficient and effective adversarial training, NeurIPS 2021. f gives
logits, f(X) is the [B,K] matrix of a batch, ||.||_* the sum of its singular values.

The authors' script for CIFAR-10 at 8/255 (ResNet-18, batches of 64, 100 epochs): \nu = 1/2 (4/255), \alpha = 1, and
\lambda rises by equal parts after each of the first 90 epochs, from 0 to 4.5. Here it rises with each update. The norm
grows as sqrt(B) if all examples change by similar amounts, so the same \lambda weighs more in smaller batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robflat_bench.api import Batch, Moment
from robflat_fastat import NuATParams
from robflat_fastat.guided import Guided


class NuAT(Guided):
    """Measures the distance of a batch by the nuclear norm, and gives each example its share."""

    params: NuATParams

    def weight(self, moment: Moment) -> float:
        ramp = self.params.ramp
        return self.params.weight * (min(1.0, moment.progress / ramp) if ramp else 1.0)

    def distance(self, moved: Tensor, clean: Tensor, batch: Batch) -> Tensor:
        return nuclear_shares(moved - clean, batch.weight)


def nuclear_shares(matrix: Tensor, weight: Tensor) -> Tensor:
    r"""Each example's share s_i of the nuclear norm of a batch.

    Parameters
    ----------
    matrix
        M [B,K], e.g. differences of logits.
    weight
        w [B], weights of the examples.

    Notes
    -----
    With diag(w) M = U S V^T and Q = U V^T:

        s_i = <M_i, Q_i>,   sum_i w_i s_i = ||diag(w) M||_*

    Q is held fixed. Of all matrices of spectral norm <= 1, Q has the largest product with diag(w) M; so moving Q
    changes the sum to second order only, and the gradient of the sum is the gradient of the norm. No gradient goes
    through the decomposition, which has none where singular values meet. Singular values within rounding of 0 are left
    out of Q, which gives the shortest subgradient, and 0 where M is 0. A row that is not finite has a share that is not
    finite.
    """
    rows = weight.double()[:, None] * matrix.detach().double()
    u, s, vh = torch.linalg.svd(rows.nan_to_num(0, 0, 0), full_matrices=False)
    held = s > s.max() * max(rows.shape) * torch.finfo(matrix.dtype).eps
    polar: Tensor = (u * held) @ vh
    return (matrix * polar.to(matrix)).sum(1)
