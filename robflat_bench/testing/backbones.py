"""What backbones promise, on two images of 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robflat_bench.backbones.parts import built
from robflat_bench.core import BackboneInfo, ImageShape
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import (
    Probe,
    Skipped,
    expect,
    gradient_reaches,
    keeps_random_state,
    remembered,
    same,
)

SHAPE = ImageShape(channels=3, size=32, classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass
class Built:
    """A network, and what one forward pass in eval mode showed.

    Parameters
    ----------
    model : nn.Module
        With the initial weights of seed 0.
    other : nn.Module
        Built once more, and not initialised.
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
    other: nn.Module
    state: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    moved: list[str]
    random_state_kept: bool


@remembered
def _built(component: Component[BackboneInfo]) -> Built:
    model = built(component, SHAPE, "relu", seed=0).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, generator=generator("kit"))
    random_state = torch.get_rng_state()
    other: nn.Module = component.build(SHAPE, "relu")
    with torch.no_grad():
        logits = model(images)
    kept = torch.equal(torch.get_rng_state(), random_state)
    moved = [name for name, tensor in model.state_dict().items() if not same(tensor, state[name])]
    return Built(model, other, state, images, logits, moved, kept)


def check_logits(component: Component[BackboneInfo]) -> None:
    """Images float [B,C,H,W] in [0,1] give finite logits, float [B,K]."""
    logits = _built(component).logits
    expect(logits.shape == (2, SHAPE.classes), f"logits have the shape {tuple(logits.shape)}, not [B,K]")
    right = logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    expect(right, "logits are not float32, or not finite")


def check_images_are_alone(component: Component[BackboneInfo]) -> None:
    """In eval mode, the logits of an image do not depend on the other images of its batch."""
    made = _built(component)
    with torch.no_grad():
        alone = made.model(made.images[:1])
    expect(torch.allclose(alone, made.logits[:1], rtol=1e-3, atol=1e-4), "alone, an image has other logits")


def _in_train_mode(component: Component[BackboneInfo]) -> Probe:
    """A sum over the logits in which every class has another weight, and everything that it depends on."""
    made = _built(component)
    images = made.images.clone().requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in made.model.named_buffers()}
    logits = torch.func.functional_call(made.model.train(), buffers, (images,))
    made.model.eval()
    objective = (logits * torch.linspace(-1, 1, logits.shape[1])).square().sum()
    return objective, {"the images": images, **dict(made.model.named_parameters())}, {}


check_gradient_reaches_every_module = gradient_reaches(_in_train_mode)
check_random_state_untouched = keeps_random_state(_built)


def check_seed_decides_the_weights(component: Component[BackboneInfo]) -> None:
    """Built twice from one seed, it has the same weights, whatever the global random state."""
    state = _built(component).state
    with global_state(generator("kit", 2)):
        again = built(component, SHAPE, "relu", seed=0).state_dict()
    differing = [name for name, tensor in state.items() if name not in again or not same(tensor, again[name])]
    expect(not differing and len(state) == len(again), f"built again, it differs in {', '.join(differing[:3])}")


def check_another_seed_moves_every_weight(component: Component[BackboneInfo]) -> None:
    """Two seeds give two values of every trained parameter, except of one that is a constant, such as biases of 0."""
    if component.info.pretrained:
        raise Skipped("its weights are its own")
    one, two = (built(component, SHAPE, "relu", seed).named_parameters() for seed in (0, 1))
    alike = [
        name
        for (name, first), (_, second) in zip(one, two, strict=True)
        if first.requires_grad and torch.equal(first, second) and len(first.unique()) > 1
    ]
    why = "two seeds start from the same values of"
    expect(not alike, f"{why} {', '.join(alike[:3])}: draw them from torch's global generator while it is built")


def check_evaluation_moves_nothing(component: Component[BackboneInfo]) -> None:
    """A forward pass in eval mode changes no weight and no running statistic."""
    moved = _built(component).moved
    expect(not moved, f"changed: {', '.join(moved[:3])}")


def check_weights_are_everything(component: Component[BackboneInfo]) -> None:
    """Its logits depend on its weights and buffers alone, also where these change in eval mode, as measures do it."""
    made = _built(component)
    other, images = made.other, made.images
    load_weights(other.train(), made.state, "what was saved")
    with torch.no_grad():
        expect(same(other.eval()(images), made.logits), "a second network with the same weights has other logits")
        parameters = made.model.named_parameters(remove_duplicate=False)
        moved = {name: parameter + 0.1 * parameter.roll(1) + 1e-3 for name, parameter in parameters}
        load_weights(other, made.state | moved, "moved weights")
        stale, fresh = other(images), other.train().eval()(images)
    why = "in eval mode its logits do not follow its weights: compute in forward() what it derives from them"
    expect(same(stale, fresh), why)


def check_resume_is_bitwise(component: Component[BackboneInfo]) -> None:
    """In train mode, weights, buffers and the global random state decide logits and gradients, bit for bit."""
    made = _built(component)
    trained = built(component, SHAPE, "relu", seed=0).train()
    trained(made.images)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    load_weights(made.other, state, "the saved state")
    one, other = (_pass(network.train(), made.images) for network in (trained, made.other))
    why = "a resumed training goes on otherwise: draw from torch's global generators, keep what it remembers in buffers"
    expect(all(map(same, one, other)), why)


def _pass(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The logits, and the gradients of their squares in the parameters."""
    with global_state(generator("kit", "pass")):
        logits = network(images)
        wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(logits.square().sum(), wanted, allow_unused=True)
    return [logits, *(gradient for gradient in gradients if gradient is not None)]
