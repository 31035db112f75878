r"""How strongly the loss depends on the pixels:

    mean_i || \nabla_x \ell(f(x), y_i) ||_p   at x = x_i (clean) or at its adversarial image x_i' (frozen)

p=1 is the dual of the l-inf threat: eps times it is the first-order rise of the loss within the ball; p=2 is the
length. Kim et al., NeurIPS 2023 (as a predictor); Simon-Gabriel et al., ICML 2019 (p as the threat's dual).

Invariant to every change of weights that keeps the function, folding included. Scaling the logits moves it, by no
fixed power, unless they are normalised. Cost: one forward and one backward of the inputs, after the frozen attack.
"""

from __future__ import annotations

from typing import Literal

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, differentiate

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.per_example import input_gradient, mean_of


class InputGradientNormParams(FixedImagesParams):
    """p: of the norm; 1 is the dual of the l-inf threat."""

    p: Literal[1, 2] = 1


INFO = MeasureInfo(
    name="input-gradient-norm",
    summary="mean length of the loss's gradient in the pixels",
    factory=f"{__name__}:InputGradientNorm",
    params=InputGradientNormParams,
    citation="Kim et al.: Fantastic robustness measures: the secrets of robust generalization. NeurIPS 2023",
    title="input-gradient l{p} norm ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=differentiate("1", "1"),
    powers=FUNCTION,
)


class InputGradientNorm(Measure):
    """Arrays: `per_example` [N]."""

    params: InputGradientNormParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle = Oracle(self.threat, self.params)
        oracle.freeze(model, examples, workspace)

        def length(part: Examples) -> Tensor:
            gradient = input_gradient(
                model, part.x, lambda x: oracle.cross_entropy(model, Examples(x, part.y, part.index))
            )
            lengths: Tensor = torch.linalg.vector_norm(gradient, self.params.p, dim=1)
            return lengths

        return mean_of(in_batches(oracle.points(examples), workspace, length, "gradient_norm").cpu().numpy())
