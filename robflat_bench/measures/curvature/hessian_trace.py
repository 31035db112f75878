r"""The trace of the Hessian of the mean loss over the weights, by Hutchinson's estimator:

    tr H = \sum_j H_jj = E_v[ v' H v ],   H = d^2 L / dw^2,   v_j = +-1 at random

The curvature summed over all weights. Details: trace/NAME, the part of each layer (PyHessian issues 9 and 10 ask for
it). Yao, Gholami, Keutzer, Mahoney: PyHessian. IEEE BigData 2020.

Invariances: none. Scaling a layer by c, in front of a normalisation that undoes it, multiplies its part by c^-2.
Scaling the logits changes the value.
Standard error: over the probes v, given these examples.
Cost: `probes` products with H, each a backward pass of each image through its gradient. Every 25 probes share the
gradient, one forward and one backward pass.
"""

from __future__ import annotations

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import BLOCK, Probes, SlopesParams, passes_at_fixed_images

with lazy_imports():
    import numpy as np
    from torch import nn

    from robflat_bench.measures.curvature.hessian import Hessian, trace
    from robflat_bench.measures.oracle import given_images


class HessianTraceParams(SlopesParams):
    probes: Probes = 50


GRADIENTS = f"(probes + {BLOCK - 1}) // {BLOCK}"
"""How often the gradient of the loss is computed: once for each block of probes."""

INFO = MeasureInfo(
    name="hessian-trace",
    summary="trace of the Hessian of the loss over the weights, whole and per layer, by Hutchinson's estimator",
    factory=f"{__name__}:HessianTrace",
    params=HessianTraceParams,
    citation=cite("yao2020pyhessian"),
    title="Hessian trace ({coupling}), {probes} probes",
    example={"steps": 2, "probes": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images(GRADIENTS, f"{GRADIENTS} + probes"),
    powers={"layers": -2},
    estimate="probes",
)


class HessianTrace(Measure):
    """Arrays: `probes` [probes], `layers` [probes, L] (their parts, in the order of the details)."""

    params: HessianTraceParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        hessian = Hessian(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)
        return trace(hessian, np.ones(hessian.size), self.params.probes, workspace, INFO.name, "trace")
