r"""AutoAugment:  each image through one of the 25 sub-policies found on CIFAR-10, two operations each.

The policy and its operations are torchvision's; the area outside a moved image takes the data set's mean colour.
Cubuk et al.: CVPR 2019.
"""

from __future__ import annotations

from robflat_bench.core import Modifier, ModifierInfo, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor
    from torchvision.transforms.v2 import AutoAugment as Policy
    from torchvision.transforms.v2 import AutoAugmentPolicy

    from robflat_bench.core.randomness import global_state


INFO = ModifierInfo(
    name="autoaugment",
    summary="the augmentation policy found on CIFAR-10, image by image",
    factory=f"{__name__}:AutoAugment",
    citation="Cubuk et al.: AutoAugment: Learning augmentation strategies from data. CVPR 2019",
    joints=("augment",),
    rank=10,
)


class AutoAugment(Modifier):
    """Image by image: torchvision draws one sub-policy for all that it is given at once."""

    def setup(self, training: Training) -> None:
        self.policy = Policy(AutoAugmentPolicy.CIFAR10, fill=[round(255 * mean) for mean in training.shape.mean])

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        with global_state(source):
            return torch.stack([self.policy(image) for image in images])
