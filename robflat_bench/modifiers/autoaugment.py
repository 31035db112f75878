r"""AutoAugment:  each image passes through one of the 25 sub-policies found on CIFAR-10, of two operations each.

Cubuk et al.: AutoAugment: Learning augmentation strategies from data. CVPR 2019.

The policy and its operations are torchvision's. The area outside a moved image takes the mean colour of the dataset.
"""

from __future__ import annotations

from robflat_bench.core import Modifier, ModifierInfo, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor
    from torchvision.transforms import v2

    from robflat_bench.core.randomness import global_state


INFO = ModifierInfo(
    name="autoaugment",
    summary="the augmentation policy found on CIFAR-10, image by image",
    factory=f"{__name__}:AutoAugment",
    citation=cite("cubuk2019autoaugment"),
    joints=("augment",),
    rank=10,
    sharded=True,
)


class AutoAugment(Modifier):
    """Augments image by image, because torchvision draws one sub-policy per call."""

    def setup(self, training: Training) -> None:
        colour = [round(255 * mean) for mean in training.shape.mean]
        self.policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=colour)

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        with global_state(source):
            return torch.stack([self.policy(image) for image in images])
