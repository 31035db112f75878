r"""The path norm: squared weights multiplied along each path from inputs to logits, summed over all paths,

    log sum_paths prod_{l in path} w_l^2   =   log sum_k F_k(1),   F = the folded network, every weight squared

Paths start at inputs of 1, behind the constant that normalises pixels, and at biases, which are squared too (as
published). One forward pass of a copy in float64 sums them all. Nothing in it is negative, so ReLU is the identity; it
replaces other activations. Shortcuts add, pooling stays. Batch normalisation that no convolution absorbs is a diagonal
layer, scale^2 x + shift^2. Networks with a normalisation that depends on the input have no value.
Neyshabur et al.: COLT 2015; Jiang et al.: ICLR 2020.

Invariant to scaling a convolution that its normalisation undoes, and to multiplying a ReLU unit's inputs by a and its
outputs by 1/a. Multiplying the logits by c adds 2 log c.
Standard error: None, because no example is read. Cost: one forward pass.
"""

from __future__ import annotations

import math

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Passes, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION

with lazy_imports():
    import torch
    from torch import nn

    from robflat_bench.backbones.parts import ACTIVATIONS, Normalized
    from robflat_bench.numerics.folding import BATCH_NORMS, fold, scale_and_shift
    from robflat_bench.numerics.weight_space import NORMALISATION


INFO = MeasureInfo(
    name="path-norm",
    summary="log-sum of squared weights along all paths (normalisation folded in)",
    factory=f"{__name__}:PathNorm",
    citation="Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020",
    title="log path norm",
    passes={"": Passes()},
    powers=FUNCTION,
)


class PathNorm(Measure):
    """No arrays."""

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        network = fold(model, examples.x).double()
        with torch.no_grad():
            _square(network)
            total = float(network(torch.ones_like(examples.x[:1], dtype=torch.float64)).sum())
        float64 = torch.finfo(torch.float64)
        return Measurement(math.log(min(max(total, float64.tiny), float64.max)), standard_error=None, n=0)


def _square(network: nn.Module) -> None:
    """Square every weight; batch normalisation becomes the diagonal layer that it is."""
    for name, module in [*network.named_modules()]:
        if isinstance(module, Normalized):
            module.mean.zero_()
            module.std.fill_(1)
        elif isinstance(module, tuple(ACTIVATIONS.values())):
            network.set_submodule(name, nn.ReLU())
        elif isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            scale, shift = scale_and_shift(module)
            module.weight, module.bias = nn.Parameter(scale), nn.Parameter(shift)
            module.running_mean, module.running_var, module.eps = torch.zeros_like(shift), torch.ones_like(scale), 0.0
        elif isinstance(module, NORMALISATION):
            raise NoValue(
                f"path-norm is not defined for {type(module).__name__} ({name}): it depends on the input; "
                "measure networks with batch normalisation"
            )
    for parameter in network.parameters():
        parameter.square_()
