r"""Directions in weight space, and the loss along them. A layer is one tensor of the `WeightSpace`; sizes are relative.

    random, per layer    D_l = a ||w_l|| z_l / ||z_l||,  z ~ N(0, I)              Stutz et al., ICCV 2021
    random, per filter   D_f = a ||w_f|| z_f / ||z_f||                            Li et al., NeurIPS 2018
    adversarial          D_l = a ||w_l|| \nu_l / ||\nu_l||,  \nu the end of an ascent of the mean loss at fixed images:
                         \nu_l <- \Pi_{a/2} ( \nu_l + a ||w_l|| g_l / ||g_l|| ),  g = d L(w + \nu) / dw

Norms are l2 (the paper's released code divides by the largest entry instead). Draws are keyed by the tensor's name, so
models of one architecture meet the same z. The adversarial examples of the ascent are those of w, and stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import nn

from robflat_bench.core import Examples, Journal
from robflat_bench.experiments import LandscapeParams
from robflat_bench.experiments.subject import Subject
from robflat_bench.measures.oracle import Oracle
from robflat_bench.numerics.weight_space import Ball, Direction, WeightSpace, norm
from robflat_bench.results.store import StoredJournal


def offsets(points: int) -> tuple[float, ...]:
    """-1 ... 1, evenly, exactly 0 in the middle."""
    half = points // 2
    return tuple(k / half for k in range(-half, half + 1))


class Words(NamedTuple):
    """How a figure speaks of a coupling."""

    axis: str
    sentence: str

    def caption(self, params: LandscapeParams) -> str:
        restarts = f" x {params.restarts}" if params.restarts > 1 else ""
        return self.sentence.format(attack=f"PGD-{params.steps}{restarts}")


COUPLINGS = {
    "clean": Words("clean cross-entropy", "Clean images."),
    "frozen": Words("cross-entropy at fixed images", "Adversarial examples found once, at w, by {attack}."),
    "reattack": Words("robust loss", "Attacked again at every point by {attack}."),
}


class Landscape:
    """One model, its examples and an oracle whose images (coupling `frozen`) were found at w."""

    def __init__(self, subject: Subject, params: LandscapeParams, journal: StoredJournal) -> None:
        self.subject, self.params = subject, params
        self.model: nn.Module = subject.load()
        self.space = WeightSpace(self.model)
        self.examples: Examples = subject.examples("test", params.examples)
        self.oracle = self._oracle(params, journal)

    def _oracle(self, params: LandscapeParams, journal: StoredJournal) -> Oracle:
        oracle = Oracle(self.subject.threat, params)
        place = journal.section(f"images, {params.coupling}")
        oracle.freeze(self.model, self.examples, self.subject.workspace(place))
        return oracle

    def losses(self, *moves: tuple[float, Direction]) -> np.ndarray:
        """Loss of each example at w + sum of s D, float64 [N]."""
        nu = {name: sum(s * direction[name] for s, direction in moves) for name in self.space.layers}
        with self.space.moved(nu):  # type: ignore[arg-type]
            # Not a journal of its own: the caller's unit is the whole point, whose images nobody needs again.
            found = self.oracle.losses(self.model, self.examples, self.subject.workspace(Journal()))
        return found.cpu().numpy()

    def random(self, number: int) -> Direction:
        """The same z for every model of an architecture."""
        space = WeightSpace(self.model, ball=Ball(self.params.normalisation))
        return dict(space.on_sphere(self.params.random, self.subject.fixed.seed, "landscape", number))

    def adversarial(self, journal: StoredJournal) -> Direction:
        """One ascent from w; a layer whose gradient vanishes stays where it is."""
        size = self.params.adversarial
        coupling = "clean" if self.params.coupling == "clean" else "frozen"
        oracle = self._oracle(self.params.model_copy(update={"coupling": coupling}), journal)
        nu = self.space.zero()
        for _ in range(self.params.ascent):
            with self.space.moved(nu):
                _, gradient = oracle.gradient(self.model, self.examples, self.space.layers)
            nu = self.space.step(nu, gradient, size, size / 2)
        lengths = {name: norm(nu[name]) for name in nu}
        return {
            name: nu[name] * (size * self.space.norms[name] / lengths[name]) if lengths[name] > 0 else nu[name]
            for name in nu
        }
