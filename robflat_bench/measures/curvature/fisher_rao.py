r"""Fisher-Rao norm, squared: <w, F(w) w> with the Fisher information of the model's own predictions,

    F = (1/N) \sum_i J_i' (diag p_i - p_i p_i') J_i,    J_i = dz_i/dw,
    <w, F w> = (1/N) \sum_i Var_{k ~ p_i} (J_i w)_k.

The labels are drawn from the model, so only images matter. J w is a Jacobian-vector product, read as
the derivative of u -> <u, J w>, so that every layer with a second derivative will do.
A bias-free ReLU network of depth L is homogeneous: J w = L z, and the sum needs no derivative; peers take that
closed form (with the factor (L+1)^2, L hidden layers) for networks with biases and normalisation too, where it is
not the norm. details["empirical"] has the true label instead: (1/N) \sum_i ((J_i w)_{y_i} - <p_i, J_i w>)^2.
Liang, Poggio, Rakhlin, Stokes: AISTATS 2019.

w: the layers of `WeightSpace`; normalisation layers do not move. Invariant to every element-wise rescaling of w that
leaves the function as it is, as (J w)_k = \sum_j w_j dz_k/dw_j. It grows with the scale of the logits; with
logits="normalised" z is the normalised one, unchanged by scaling, and the norm of a homogeneous network is 0.
Cost: one forward and two backward passes of each image. Standard error: over examples.
"""

from __future__ import annotations

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, differentiate

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.curvature.hessian import twice_differentiable
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.per_example import mean_of
    from robflat_bench.numerics.weight_space import WeightSpace


class FisherRaoParams(FixedImagesParams):
    """Those of the loss alone: the product with the Fisher matrix is exact."""


INFO = MeasureInfo(
    name="fisher-rao",
    summary="squared Fisher-Rao norm of the weights: <w, F w>, exact by Jacobian-vector products",
    factory=f"{__name__}:FisherRao",
    params=FisherRaoParams,
    citation=(
        "Liang, Poggio, Rakhlin, Stokes: Fisher-Rao metric, geometry, complexity of neural networks. AISTATS 2019"
    ),
    title="Fisher-Rao norm, squared ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=differentiate("1", "1"),
    powers=FUNCTION,
)


class FisherRao(Measure):
    """Arrays: `per_example` [N]. Details: `empirical`."""

    params: FisherRaoParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle = Oracle(self.threat, self.params)
        oracle.freeze(model, examples, workspace)
        layers = list(WeightSpace(model).layers.values())

        def both(part: Examples) -> Tensor:
            with twice_differentiable(model, layers):
                z = oracle.logits(model(part.x))
                moved = _along(z, layers, [layer.detach() for layer in layers]).double()
            p = z.detach().double().softmax(1)
            centred = moved - (p * moved).sum(1, keepdim=True)
            return torch.stack([(p * centred**2).sum(1), centred.gather(1, part.y[:, None])[:, 0] ** 2], 1)

        own, empirical = in_batches(oracle.points(examples), workspace, both, "fisher-rao").cpu().numpy().T
        return mean_of(own, {"empirical": float(empirical.mean())})


def _along(z: Tensor, layers: list[nn.Parameter], direction: list[Tensor]) -> Tensor:
    """(dz/dw) v, [B,K]: u -> u' (dz/dw) v is linear, and its gradient is the product."""
    u = torch.zeros_like(z, requires_grad=True)
    if not layers:
        return u.detach()
    pulled = torch.autograd.grad(z, layers, u, create_graph=True, materialize_grads=True)
    total = torch.stack([(g * v).sum() for g, v in zip(pulled, direction, strict=True)]).sum()
    (product,) = torch.autograd.grad(total, u)
    return product
