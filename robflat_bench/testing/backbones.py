"""What backbones promise, on two images of 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robflat_bench.backbones.parts import initialize
from robflat_bench.core import BackboneInfo, ImageShape
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import Probe, expect, gradient_reaches, keeps_random_state, remembered, same

SHAPE = ImageShape(channels=3, size=32, classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass
class Built:
    """A network, and what one forward pass in eval mode showed.

    Parameters
    ----------
    state : dict of str to Tensor
        Its weights and buffers before the pass.
    logits : Tensor
        Its logits [2,K] of two images.
    moved : list of str
        The weights and buffers that the pass changed.
    random_state_kept : bool
        Whether building it and the pass left torch's global random state as it was.
    """

    model: nn.Module
    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    moved: list[str]
    random_state_kept: bool


def _network(component: Component[BackboneInfo]) -> nn.Module:
    model: nn.Module = component.build(SHAPE, "relu")
    if not component.info.pretrained:
        initialize(model, generator("kit"))
    return model


@remembered
def _built(component: Component[BackboneInfo]) -> Built:
    random_state = torch.get_rng_state()
    model = _network(component).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, generator=generator("kit"))
    with torch.no_grad():
        logits = model(images)
    moved = [name for name, tensor in model.state_dict().items() if not same(tensor, state[name])]
    return Built(model, state, images, logits, moved, torch.equal(torch.get_rng_state(), random_state))


def check_logits(component: Component[BackboneInfo]) -> None:
    """Images float [B,C,H,W] in [0,1] give finite logits, float [B,K]."""
    logits = _built(component).logits
    expect(logits.shape == (2, SHAPE.classes), f"logits have the shape {tuple(logits.shape)}, not [B,K]")
    right = logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    expect(right, "logits are not float32, or not finite")


def check_images_are_alone(component: Component[BackboneInfo]) -> None:
    """In eval mode, the logits of an image do not depend on the other images of its batch."""
    built = _built(component)
    with torch.no_grad():
        alone = built.model(built.images[:1])
    expect(torch.allclose(alone, built.logits[:1], rtol=1e-3, atol=1e-4), "alone, an image has other logits")


def _in_train_mode(component: Component[BackboneInfo]) -> Probe:
    """The logits' differing weights make every class count; the images are among what is differentiated."""
    built = _built(component)
    images = built.images.clone().requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in built.model.named_buffers()}
    logits = torch.func.functional_call(built.model.train(), buffers, (images,))
    built.model.eval()
    objective = (logits * torch.linspace(-1, 1, logits.shape[1])).square().sum()
    return objective, {"the images": images, **dict(built.model.named_parameters())}, {}


check_gradient_reaches_every_module = gradient_reaches(_in_train_mode)
check_random_state_untouched = keeps_random_state(_built)


def check_seed_decides_the_weights(component: Component[BackboneInfo]) -> None:
    """Built twice and initialised from one seed, it has the same weights, whatever the global random state."""
    state = _built(component).state
    with global_state(generator("kit", 2)):
        again = _network(component).state_dict()
    differing = [name for name, tensor in state.items() if name not in again or not same(tensor, again[name])]
    expect(not differing and len(state) == len(again), f"built again, it differs in {', '.join(differing[:3])}")


def check_evaluation_moves_nothing(component: Component[BackboneInfo]) -> None:
    """A forward pass in eval mode changes no weight and no running statistic."""
    moved = _built(component).moved
    expect(not moved, f"changed: {', '.join(moved[:3])}")


def check_weights_are_everything(component: Component[BackboneInfo]) -> None:
    """Its logits depend on its weights and buffers alone: a second network that loads them has the same logits."""
    built = _built(component)
    other: nn.Module = component.build(SHAPE, "relu")
    load_weights(other, built.state, "what was saved")
    with torch.no_grad():
        logits = other.eval()(built.images)
    expect(same(logits, built.logits), "a second network with the same weights has other logits")
