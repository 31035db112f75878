"""What modifiers promise on top of the method `at`, beside what `methods_and_modifiers` holds."""

from __future__ import annotations

from typing import get_args

import torch

from robflat_bench.core import Joint, Modifier, ModifierInfo, Moment
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import expect, expect_in_box, same
from robflat_bench.testing.fixtures import COUNT, World, inner, training_world
from robflat_bench.testing.trial_training import composed, set_up
from robflat_bench.training.composition import Composition


def _composition(component: Component[ModifierInfo]) -> tuple[Composition, World]:
    place = training_world()
    return set_up(composed(component), place), place


def check_joints(component: Component[ModifierInfo]) -> None:
    """It overrides exactly the joints that it declares."""
    made, declared = type(component.build()), {*component.info.joints}
    taken = {joint for joint in get_args(Joint) if getattr(made, joint) is not getattr(Modifier, joint)}
    expect(taken == declared, f"it overrides {sorted(taken)}, and declares {sorted(declared)}")


def check_augmented_images(component: Component[ModifierInfo]) -> None:
    """Images that it augments stay uint8 [B,C,H,W], and equal random numbers give equal images."""
    made = []
    for _ in range(2):
        composition, place = _composition(component)
        images = (255 * place.batch.x).to(torch.uint8)
        made.append(composition.augment(images, torch.Generator().manual_seed(3)))
    expect(made[0].shape == images.shape and made[0].dtype == torch.uint8, "augmented images are not uint8 [B,C,H,W]")
    expect(torch.equal(*made), "equal random numbers give other images")


def check_prepared_batch(component: Component[ModifierInfo]) -> None:
    """The batch that it makes has the given size, images in [0,1], targets whose rows sum to 1, and weights >= 0."""
    composition, place = _composition(component)
    made = composition.prepare(place.batch)
    expect(made.x.shape == place.batch.x.shape, "the images have another shape")
    sizes = {len(part) for part in (made.y, made.index, made.weight, made.target)}
    expect(sizes == {COUNT}, "the batch has another size")
    expect_in_box(made.x)
    expect(torch.allclose(made.target.sum(1), torch.ones(COUNT)), "a row of the targets does not sum to 1")
    expect(bool((made.weight >= 0).all()), "a weight is negative")


def check_choosing_weights_moves_none(component: Component[ModifierInfo]) -> None:
    """Choosing the weights to evaluate leaves the network's own weights unchanged."""
    composition, place = _composition(component)
    optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
    composition.update(place.model, composition.prepare(place.batch), inner(), optimizer)
    before = place.state
    composition.evaluated(place.model, Moment(update=1, progress=1.0))
    kept = all(same(tensor, before[name]) for name, tensor in place.model.state_dict().items())
    expect(kept, "choosing the weights to evaluate changes the network's own")
