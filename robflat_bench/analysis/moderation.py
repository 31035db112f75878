r"""Seed variances of several methods, moderated: each borrows from the others, because three seeds say little of it.

The variance s^2 of a method's S seed means has d = S - 1 degrees of freedom. The true variances are taken as draws of
one distribution (Smyth: Stat. Appl. Genet. Mol. Biol. 2004, the model of limma):

    s^2 | \sigma^2 ~ \sigma^2 \chi^2_d / d,        1 / \sigma^2 ~ \chi^2_{d_0} / (d_0 s_0^2)
    moderated variance  (d_0 s_0^2 + d s^2) / (d_0 + d),  with d_0 + d degrees of freedom

So s^2 / s_0^2 follows F(d, d_0). Smyth fits d_0 and s_0^2 to the moments of log s^2, which a single small s^2 of three
seeds moves far. Here both come from the likelihood of F, where s^2 enters as d_0 s_0^2 + d s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DOUBT = 2.706
"""Twice the log likelihood lost at the lower end of the one-sided 95 % interval of d_0 (90 % quantile of chi^2_1)."""
FREEDOMS: Floats = np.geomspace(0.5, 200, 60)
"""Candidates for d_0."""
BISECTIONS = 60


@dataclass(frozen=True)
class Prior:
    """The distribution of the methods' seed variances.

    Attributes
    ----------
    freedom : d_0, the degrees of freedom that each method borrows.
    variance : s_0^2.
    pooled : the degrees of freedom that s_0^2 is estimated from: the sum of d over the variances above 0. No test has
        more (as in limma).
    """

    freedom: float
    variance: float
    pooled: float

    def moderated(self, variances: Floats, freedom: Floats) -> Floats:
        """Moderated variances of the observed ones, [M], with degrees of freedom [M]."""
        return (self.freedom * self.variance + freedom * variances) / (self.freedom + freedom)


RESOLVED = 1e-200
"""A variance is 0 if it is smaller, relative to the largest one: the likelihood has no logarithm of such numbers."""
ALONE = Prior(0.0, 0.0, math.inf)
"""Nothing is borrowed: the variances stay as observed."""


def estimated_prior(variances: Floats, freedom: Floats) -> Prior:
    """The prior of the observed seed variances, [M], with degrees of freedom [M], at least 1.

    s_0^2 is its maximum-likelihood estimate; d_0 is the lower end of its 95 % interval, so that a few methods that look
    alike by chance borrow little. A variance of 0 (relative to the largest one) says only that it is below what
    outcomes resolve: neither estimate nor `pooled` counts it, and it is moderated like the others. Where all are 0,
    the prior is `ALONE`.
    """
    positive = variances > RESOLVED * variances.max(initial=0.0)
    if not positive.any():
        return ALONE
    order = np.lexsort((freedom[positive], variances[positive]))  # the sums' rounding is that of any order of methods
    s2, d = variances[positive][order], freedom[positive][order]
    log_scale, likelihood = _profile(s2 / s2[-1], d)
    best = int(likelihood.argmax())
    lower = int(np.flatnonzero(2 * (likelihood[best] - likelihood) <= DOUBT)[0])
    return Prior(float(FREEDOMS[lower]), float(s2[-1] * math.exp(log_scale[best])), float(d.sum()))


def _profile(s2: Floats, d: Floats) -> tuple[Floats, Floats]:
    """For each candidate d_0: log s_0^2 of largest likelihood, and that log likelihood up to a constant."""
    from scipy.special import gammaln

    d0 = FREEDOMS[:, None]
    low = np.full(d0.shape, math.log(s2[0]) - 10)
    high = np.full(d0.shape, math.log(s2[-1]) + 10)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        prior = d0 * np.exp(middle)
        slope = (d0 - (d0 + d) * prior / (prior + d * s2)).sum(1, keepdims=True)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    prior = d0 * np.exp(low)
    terms = gammaln((d0 + d) / 2) - gammaln(d0 / 2) + d0 / 2 * np.log(prior) - (d0 + d) / 2 * np.log(prior + d * s2)
    return low[:, 0], terms.sum(1)
