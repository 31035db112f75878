"""The inputs of a training, and what the loop derives from them: batches, training attacks, and setup's `Training`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.config.recipe import Recipe
from robflat_bench.core import Attack, Batch, Moment, ThreatNorm, Training
from robflat_bench.core.batching import MEMORY_BATCH, cuts
from robflat_bench.core.randomness import global_state
from robflat_bench.data.augment import AUGMENTATIONS
from robflat_bench.data.splits import Splits
from robflat_bench.training.composition import Composition
from robflat_bench.training.processes import ALONE, Processes


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that one training needs.

    Parameters
    ----------
    model: the network to train, on `device` and in `dtype`.
    composition: method and modifiers, built anew for this run.
    helpers: networks that the method needs, trained and frozen, by the names its row gives them.
    recipe: optimizer, schedule, epochs, batch size, augmentation and training attack.
    splits: the data.
    seed: keys all random numbers of training.
    selection: attack on the held-out examples, which decides the best epoch.
    check_every: epochs between two checks on the held-out examples; the last epoch is always checked.
    evaluation_seed: keys the random numbers of these checks.
    folder: where checkpoints and saved states go.
    device: "cpu" or "cuda".
    dtype: precision of weights and images.
    reduced: train under autocast to bfloat16.
    keep_every: also keep the weights of every so many epochs; 0 keeps none but the best and the last.
    processes: the processes among which the shards of each batch are divided.
    norm: norm of the training attack: the protocol's.
    """

    model: nn.Module
    composition: Composition
    helpers: Mapping[str, nn.Module]
    recipe: Recipe
    splits: Splits
    seed: int
    selection: Attack
    check_every: int
    evaluation_seed: int
    folder: Path
    device: str
    dtype: torch.dtype
    reduced: bool = False
    keep_every: int = 0
    processes: Processes = ALONE
    norm: ThreatNorm = "linf"

    def training(self, x: Tensor) -> Training:
        """What `setup` of the method and its modifiers receives; x: the training images, uint8 [N,C,H,W]."""
        return Training(
            model=self.model,
            shape=self.splits.shape,
            count=len(x),
            epsilon=self.recipe.epsilon,
            helpers=self.helpers,
            images=lambda: (part.to(self.dtype) / 255 for part in x.tensor_split(cuts(len(x), MEMORY_BATCH))),
            spare=lambda: self.splits.spare_images(self.device),
            seed=self.seed,
            norm=self.norm,
        )

    def prepared(self, x: Tensor, y: Tensor, rows: Tensor, number: int, first: Moment) -> Batch:
        """One training batch as methods receive it, arguments as of `batch`; `first`: the first update with it."""
        with global_state(first.random("global state of the batch")):  # replays must see the same batch
            return self.composition.prepare(self.batch(x, y, rows, number, first))

    def batch(self, x: Tensor, y: Tensor, rows: Tensor, number: int, now: Moment) -> Batch:
        """One training batch, augmented.

        Parameters
        ----------
        x, y: all training images, uint8 [N,C,H,W], and their labels, int64 [N].
        rows: int64 [B], positions of the batch's examples.
        number: the batch's place in its epoch, which keys its random numbers.
        now: epoch, update and shard.
        """

        def augment(images: Tensor, purpose: str) -> Tensor:
            source = replace(now, update=number).random(purpose)
            if not self.composition.replaces_augmentation:
                images = AUGMENTATIONS[self.recipe.augmentation](images, source)
            return self.composition.augment(images, source).to(self.dtype) / 255

        images, labels = x[rows], y[rows]
        return Batch(
            index=rows,
            x=augment(images, "augment"),
            y=labels,
            target=nn.functional.one_hot(labels, self.splits.shape.classes).to(self.dtype),
            weight=torch.ones(len(rows), dtype=self.dtype, device=self.device),
            moment=now,
            views=lambda which: augment(images, f"augment {which}"),
            augment=augment,
        )

    def autocast(self) -> torch.autocast:
        """The precision of an update, without a cache of cast weights: it would miss that modifiers move the weights
        within a step."""
        device = torch.device(self.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.reduced, cache_enabled=False)

    def attack(self, now: Moment) -> TrainingAttack:
        """The recipe's training attack with the random numbers of one update."""
        recipe = self.recipe
        return TrainingAttack(
            epsilon=recipe.epsilon,
            step=recipe.attack_step,
            steps=recipe.attack_steps,
            start=recipe.attack_start,
            bn=recipe.attack_bn,
            source=now.random("attack"),
            norm=self.norm,
        )
