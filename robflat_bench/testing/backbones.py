"""What backbones promise, on two images of 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robflat_bench.backbones.parts import initialize
from robflat_bench.core import ImageShape
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.world import expect, random_state_untouched, remembered, same

SHAPE = ImageShape(channels=3, size=32, classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass
class Built:
    """The network, its weights as they were at first, its logits of two images in eval mode, which weights these moved,
    and whether the global random state outlived it all."""

    model: nn.Module
    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    moved: list[str]
    random_state_kept: bool


def _network(component: Component) -> nn.Module:
    model: nn.Module = component.build(SHAPE, "relu")
    if not component.info.pretrained:  # type: ignore[attr-defined]
        initialize(model, generator("kit"))
    return model


@remembered
def _built(component: Component, registry: Registry) -> Built:
    random_state = torch.get_rng_state()
    model = _network(component).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, generator=generator("kit"))
    with torch.no_grad():
        logits = model(images)
    moved = [name for name, tensor in model.state_dict().items() if not same(tensor, state[name])]
    return Built(model, state, images, logits, moved, torch.equal(torch.get_rng_state(), random_state))


def check_logits(component: Component, registry: Registry) -> None:
    """Images float [B,C,H,W] in [0,1] give finite logits, float [B,K]."""
    logits = _built(component, registry).logits
    expect(logits.shape == (2, SHAPE.classes), f"logits have the shape {tuple(logits.shape)}, not [B,K]")
    expect(logits.dtype == torch.float32 and bool(torch.isfinite(logits).all()), "logits are no finite float32")


def check_images_are_alone(component: Component, registry: Registry) -> None:
    """In eval mode, the logits of an image do not depend on the others of its batch."""
    built = _built(component, registry)
    with torch.no_grad():
        alone = built.model(built.images[:1])
    expect(torch.allclose(alone, built.logits[:1], rtol=1e-3, atol=1e-4), "alone, an image has other logits")


def check_gradient_reaches_every_module(component: Component, registry: Registry) -> None:
    """In train mode, a gradient of the logits reaches every parameter, and the images."""
    built = _built(component, registry)
    images, parameters = built.images.clone().requires_grad_(), dict(built.model.named_parameters())
    logits = built.model.train()(images)
    objective = (logits * torch.linspace(-1, 1, logits.shape[1])).square().sum()
    built.model.eval()
    found = torch.autograd.grad(objective, [images, *parameters.values()], allow_unused=True)
    for name, buffer in built.model.named_buffers():
        buffer.copy_(built.state[name])
    names = ["the images", *parameters]
    blind = [name for name, gradient in zip(names, found, strict=True) if gradient is None or not gradient.any()]
    expect(not blind, f"no gradient reaches {', '.join(blind[:3])}")


def check_seed_decides_the_weights(component: Component, registry: Registry) -> None:
    """Built twice and initialised from one seed, it has the same weights, whatever the global random state."""
    state = _built(component, registry).state
    with global_state(generator("kit", 2)):
        again = _network(component).state_dict()
    differing = [name for name, tensor in state.items() if name not in again or not same(tensor, again[name])]
    expect(not differing and len(state) == len(again), f"another {', '.join(differing[:3])}")


def check_evaluation_moves_nothing(component: Component, registry: Registry) -> None:
    """A forward pass in eval mode moves no weight and no running statistic."""
    moved = _built(component, registry).moved
    expect(not moved, f"moved: {', '.join(moved[:3])}")


def check_weights_are_everything(component: Component, registry: Registry) -> None:
    """Its logits depend on its weights and buffers alone: another one with the same has the same."""
    built = _built(component, registry)
    other: nn.Module = component.build(SHAPE, "relu")
    load_weights(other, built.state, "what was saved")
    with torch.no_grad():
        logits = other.eval()(built.images)
    expect(same(logits, built.logits), "with the same weights, another one has other logits")


CHECKS = (
    check_logits,
    check_images_are_alone,
    check_gradient_reaches_every_module,
    random_state_untouched(_built),
    check_seed_decides_the_weights,
    check_evaluation_moves_nothing,
    check_weights_are_everything,
)
