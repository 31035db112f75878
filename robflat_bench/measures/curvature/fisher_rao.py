r"""The squared Fisher-Rao norm of the weights, <w, F(w) w>, with the Fisher information of the model's predictions:

    F = (1/N) \sum_i J_i' (diag p_i - p_i p_i') J_i,    J_i = dz_i/dw,
    <w, F w> = (1/N) \sum_i Var_{k ~ p_i} (J_i w)_k.

How much the predictions change, to second order, when all weights grow by one factor. Labels are drawn from the model,
so only images matter. J w is a Jacobian-vector product, computed as the derivative of u -> <u, J w>; every layer with a
second derivative will do. A bias-free ReLU network of depth L is homogeneous: J w = L z, and the sum needs no
derivative. Other implementations use that closed form (with the factor (L+1)^2, L hidden layers) for networks with
biases and normalisation too, where it is not the norm. The detail `empirical` takes the true label instead:
(1/N) \sum_i ((J_i w)_{y_i} - <p_i, J_i w>)^2.
Liang, Poggio, Rakhlin, Stokes: AISTATS 2019.

w: the layers of `WeightSpace`, without normalisation layers. Invariant to every element-wise rescaling of w that leaves
the function as it is, because (J w)_k = \sum_j w_j dz_k/dw_j. It grows with the scale of the logits. With
logits="normalised", z is the normalised logit, which scaling leaves unchanged; the norm of a homogeneous network is 0.
Standard error: over examples. Cost: one forward and two backward passes of each image.
"""

from __future__ import annotations

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION, SlopesParams, passes_at_fixed_images

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.curvature.hessian import twice_differentiable
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import mean_of
    from robflat_bench.numerics.weight_space import WeightSpace


INFO = MeasureInfo(
    name="fisher-rao",
    summary="squared Fisher-Rao norm of the weights: <w, F w>, exact by Jacobian-vector products",
    factory=f"{__name__}:FisherRao",
    params=SlopesParams,
    citation=cite("liang2019fisher"),
    title="Fisher-Rao norm, squared ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("1", "1"),
    powers=FUNCTION,
    estimate="examples",
)


class FisherRao(Measure):
    """Arrays: `per_example` [N]. Details: `empirical`."""

    params: SlopesParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, points = given_images(self, model, examples, workspace)
        layers = list(WeightSpace(model, exclude=self.params.exclude).layers.values())

        def both(part: Examples) -> Tensor:
            with twice_differentiable(model, layers):
                z = oracle.logits(model(part.x))
                moved = _product(z, layers, [layer.detach() for layer in layers]).double()
            p = z.detach().double().softmax(1)
            centred = moved - (p * moved).sum(1, keepdim=True)
            return torch.stack([(p * centred**2).sum(1), centred.gather(1, part.y[:, None])[:, 0] ** 2], 1)

        own, empirical = in_batches(points, workspace, both, "fisher-rao").cpu().numpy().T
        return mean_of(own, {"empirical": float(empirical.mean())})


def _product(z: Tensor, layers: list[nn.Parameter], direction: list[Tensor]) -> Tensor:
    """(dz/dw) v, [B,K]: the gradient of u' (dz/dw) v by u."""
    u = torch.zeros_like(z, requires_grad=True)
    if not layers:
        return u.detach()
    # The product instead of grad's third argument, for which torch imports a compiler's symbols.
    pulled = torch.autograd.grad((z * u).sum(), layers, create_graph=True, materialize_grads=True)
    total = torch.stack([(g * v).sum() for g, v in zip(pulled, direction, strict=True)]).sum()
    (product,) = torch.autograd.grad(total, u)
    return product
