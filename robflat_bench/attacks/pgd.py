r"""PGD with restarts (`engine` holds the iteration):

    x_adv = argmax over restarts r and iterates t of \ell(f(x_{r,t}), y),   x_{r,0} = x + \epsilon U(-1,1)

Under l2 the start is uniform in the l2 ball (`norms`), and a step has l2 length. The start of restart r for example i
is keyed by (seed, r, i). Madry, Makelov, Schmidt, Tsipras, Vladu: Towards deep learning models resistant to adversarial
attacks. ICLR 2018, arXiv 1706.06083.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import ENGINE_NORMS, Attack, AttackInfo, Examples, Number, Params, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.climbers import Ascent
    from robflat_bench.attacks.engine import ascend, attacked, cross_entropy, margin, probability_margin
    from robflat_bench.attacks.norms import climbed
    from robflat_bench.numerics.folding import folded


class PGDParams(Params):
    norms = ENGINE_NORMS

    steps: PositiveInt = Field(default=20, description="Number of gradient steps of each restart.")
    restarts: PositiveInt = Field(default=1, description="Number of restarts; the best of them counts.")
    step: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Size of a step in pixels of [0,1]; by default a quarter of the threat's epsilon, and under l2 2.5 "
        "epsilon / steps.",
    )
    loss: Literal["ce", "margin", "probability-margin"] = Field(
        default="ce",
        description="Loss to maximise: cross-entropy, or the best wrong class minus the label, of logits (`margin`) or "
        "of probabilities.",
    )
    init: Literal["uniform", "zero"] = Field(
        default="uniform", description="Start of a restart: uniform in the ball, or the image itself."
    )


INFO = AttackInfo(
    name="pgd",
    summary="projected gradient ascent with restarts; keeps the highest loss per example",
    factory=f"{__name__}:PGD",
    params=PGDParams,
    citation=cite("madry2018towards"),
    title="PGD-{steps} x {restarts}",
    passes=Passes("restarts * (steps + 1)", "restarts * steps", at_most=True),
)


class PGD(Attack):
    """Keeps the highest loss of each example over all restarts and iterates."""

    params: PGDParams

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self.maximise(model, examples, seed).x

    def maximise(self, model: nn.Module, examples: Examples, seed: int, warm: Tensor | None = None) -> Ascent:
        """The adversarial images and the losses they reach.

        Parameters
        ----------
        model
            Images -> logits [B,K].
        examples
            B images with labels and indices.
        seed
            Key of the random starts.
        warm
            Images [B,C,H,W] of one additional restart.
        """
        x, threat = examples.x, self.threat
        losses = {"ce": cross_entropy, "margin": margin, "probability-margin": probability_margin}
        objective = losses[self.params.loss](examples.y)
        settings: Any = {"epsilon": threat.epsilon, "norm": threat.norm, "step": self.step}
        settings |= {"steps": self.params.steps, "rest": True}
        best = Ascent.begin(x)
        with attacked(model), folded(model, x):
            for start in [*self._starts(examples, seed), *([] if warm is None else [warm])]:
                best = best.improved_by(ascend(model, x, start, objective, **settings))
        return best

    @property
    def step(self) -> float:
        """The size of a step, in pixels of [0,1]."""
        usual: Any = climbed(self.threat.norm).step(self.threat.epsilon, self.params.steps)
        return usual if self.params.step is None else self.params.step

    def _starts(self, examples: Examples, seed: int) -> Iterator[Tensor]:
        for restart in range(self.params.restarts):
            if self.params.init == "zero":
                yield examples.x
            else:
                draws = climbed(self.threat.norm).noise(examples.x, examples.index, seed, "pgd", restart)
                yield examples.x + self.threat.epsilon * draws
