r"""Relative flatness of the last linear layer z = W h + b, W [K,d] with rows w_s, at its features h:

    \kappa_Tr  = \sum_{s,s'} <w_s, w_s'> tr H_{s,s'}
    \kappa_max = \sum_{s,s'} <w_s, w_s'> \lambda_max(H_{s,s'})  (in the details)
    H_{s,s'}   = d^2 L / dw_s dw_s' = (1/N) \sum_i (M_i)_{s,s'} h_i h_i'

M_i = d^2 \ell / dz^2 at example i; for cross-entropy of plain logits it is diag p - p p'. So the value is exact:
\kappa_Tr = (1/N) \sum_i ||h_i||^2 tr(W W' M_i), which is ||h||^2 times the variance of w_s under s ~ p. W moves alone,
without its bias.
Petzka, Kamp, Adilova, Sminchisescu, Boley: NeurIPS 2021.

Invariant to rescaling a layer against the one before it (W by c, h by 1/c). Not invariant to rescaling single features,
for which the authors' code divides by the features' standard deviations. Scaling the logits changes it, unless they are
normalised. Standard error of \kappa_Tr: over examples.
Cost: one forward pass of each image, and K (K + 1) / 2 spectra of d x d matrices for \kappa_max. The released code
builds the dense Hessian of the layer, (K d)^2 entries.
"""

from __future__ import annotations

import itertools

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FixedImagesParams, passes_at_fixed_images

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import mean_of
    from robflat_bench.measures.recording import recorded
    from robflat_bench.numerics.passes import uncounted


INFO = MeasureInfo(
    name="relative-flatness",
    summary="relative flatness of the last linear layer: traces of its Hessian times products of its weights, exact",
    factory=f"{__name__}:RelativeFlatness",
    params=FixedImagesParams,
    citation=cite("petzka2021relative"),
    title="relative flatness ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("1", "0"),
    powers={"layers": 0, "filters": 0},
    estimate="examples",
)


class RelativeFlatness(Measure):
    """Arrays: `per_example` [N]. Details: `kappa_max`."""

    params: FixedImagesParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, points = given_images(self, model, examples, workspace)
        found = in_batches(points, workspace, lambda part: head_pass(model, part)[1], "features").double()
        with uncounted():
            head = head_pass(model, points[:1])[0]
        classes = head.out_features
        features, logits = found[:, :-classes], found[:, -classes:]

        z = logits.clone().requires_grad_()
        loss = F.cross_entropy(oracle.logits(z), points.y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        rows = [torch.autograd.grad(column.sum(), z, retain_graph=True)[0] for column in slope.T]
        curvature = torch.stack(rows, 1)  # M, [N,K,K]
        weight = head.weight.detach().double()
        gram = weight @ weight.T
        per_example = features.square().sum(1) * (curvature * gram).sum((1, 2))
        return mean_of(per_example.cpu().numpy(), {"kappa_max": _kappa_max(features, curvature, gram)})


def _kappa_max(features: Tensor, curvature: Tensor, gram: Tensor) -> float:
    """\\kappa_max. Blocks are symmetric in (s, s'), so a block above the diagonal counts twice."""
    total = 0.0
    for s, t in itertools.combinations_with_replacement(range(len(gram)), 2):
        block = (features * curvature[:, s, t, None]).T @ features / len(features)
        total += (1 if s == t else 2) * float(gram[s, t] * torch.linalg.eigvalsh(block)[-1])
    return total


def head_pass(model: nn.Module, part: Examples) -> tuple[nn.Linear, Tensor]:
    """The linear layer whose output is the logits; its features and the logits, [B, d + K]. NoValue without one."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with recorded(linear) as calls, attacked(model), torch.no_grad():
        logits = model(part.x)
    if not calls or not torch.equal(calls[-1][2], logits):
        raise NoValue("relative-flatness needs a linear layer whose output is the logits; this model has none")
    head, features, _ = calls[-1]
    assert isinstance(head, nn.Linear)
    if not torch.allclose(F.linear(features, head.weight, head.bias), logits, rtol=1e-3, atol=1e-3):
        raise NoValue(
            f"relative-flatness cannot read the weight of {type(head).__name__}: its forward uses another one"
        )
    return head, torch.cat([features, logits], 1)
