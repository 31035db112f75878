r"""PGD with restarts (the iteration is in `engine`):

    x_adv = argmax over restarts r and iterates t of \ell(f(x_{r,t}), y),   x_{r,0} = x + \epsilon U(-1,1)

Restart r of example i starts from numbers keyed by (seed, r, i). Madry et al., ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import Attack, AttackInfo, Examples, Number, Params, Passes, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import Ascent, ascend, attacked, cross_entropy, margin
    from robflat_bench.core.randomness import per_example_uniform
    from robflat_bench.numerics.folding import folded


class PGDParams(Params):
    """step: size in pixels of [0,1], by default a quarter of the threat's epsilon. init: where restarts begin."""

    steps: PositiveInt = 20
    restarts: PositiveInt = 1
    step: Number | None = Field(default=None, gt=0)
    loss: Literal["ce", "margin"] = "ce"
    init: Literal["uniform", "zero"] = "uniform"


INFO = AttackInfo(
    name="pgd",
    summary="projected sign-gradient ascent with restarts; keeps the highest loss per example",
    factory=f"{__name__}:PGD",
    params=PGDParams,
    citation="Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018",
    title="PGD-{steps} x {restarts}",
    passes=Passes("restarts * (steps + 1)", "restarts * steps"),
)


class PGD(Attack):
    """Highest loss per example over all restarts and iterates."""

    params: PGDParams

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        return self.maximise(model, examples, seed).x

    def maximise(self, model: nn.Module, examples: Examples, seed: int, warm: Tensor | None = None) -> Ascent:
        """The adversarial images together with the objective loss they reach; warm: images to start from as well."""
        x, epsilon = examples.x, self.threat.epsilon
        step = epsilon / 4 if self.params.step is None else self.params.step
        objective = {"ce": cross_entropy, "margin": margin}[self.params.loss](examples.y)
        best = Ascent(x, torch.full_like(x[:, 0, 0, 0], -torch.inf))
        with attacked(model), folded(model, x):
            for start in [*self._starts(examples, seed), *([] if warm is None else [warm])]:
                found = ascend(model, x, start, objective, epsilon=epsilon, step=step, steps=self.params.steps)
                better = found.loss > best.loss
                best = Ascent(
                    torch.where(better[:, None, None, None], found.x, best.x),
                    torch.where(better, found.loss, best.loss),
                )
        return best

    def _starts(self, examples: Examples, seed: int) -> Iterator[Tensor]:
        """Of each restart."""
        x, epsilon = examples.x, self.threat.epsilon
        for restart in range(self.params.restarts):
            if self.params.init == "uniform":
                yield x + epsilon * per_example_uniform(x, examples.index, seed, "pgd", restart)
            else:
                yield x
