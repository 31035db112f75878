r"""FGSM:  x_adv = \Pi_{[0,1]} ( x + \epsilon sign \nabla_x \ell_CE(f(x), y) ).   Goodfellow et al., ICLR 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked, cross_entropy, project
from robflat_bench.core.examples import Examples
from robflat_bench.core.interfaces import Attack


class FGSM(Attack):
    """The single full step; it returns that step even where it lowers the loss."""

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        with attacked(model):
            variable = examples.x.detach().clone().requires_grad_()
            loss = cross_entropy(examples.y)(model(variable)).sum()
            (gradient,) = torch.autograd.grad(loss, variable)
        epsilon = self.threat.epsilon
        return project(examples.x + epsilon * gradient.sign(), examples.x, epsilon)
