"""Images that grow over the epochs: a run begins with small ones, which cost less."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from resforge.spec import TrainSpec
from trainer.errors import InvalidData

# Sides are multiples of what a family's strides and pools divide an image by.
GRID = {"cifar": 4, "imagenet": 32, "vgg": 32}


@dataclass(frozen=True)
class Sizes:
    """The side of the training images by the step: a pure function, so that a resumed run sees the same.

    From `first` it grows linearly with the epochs, in multiples of `grid`, and is `full` from two thirds of them on:
    a network sees the size that it is evaluated at for long enough to get used to it (Touvron et al. 2019, who found
    that training at a smaller size and a short time at the larger one cost little accuracy).

    Attributes:
        first, full: in pixels.
        grid: sides between the two are multiples of it.
        steps_per_epoch, epochs: of the whole run; an epoch that the run breaks off counts as one.
    """

    first: int
    full: int
    grid: int
    steps_per_epoch: int
    epochs: int

    @classmethod
    def of(cls, spec: TrainSpec, *, full: int, steps_per_epoch: int, total_steps: int) -> Self:
        """The sizes that a job asks for, whose images have the side `full`; always that, where it asks for none.

        Raises:
            InvalidData: the images are smaller than the size to begin with.
        """
        first = spec.training.progressive_from
        if first is not None and first > full:
            raise InvalidData(
                f"training.progressive_from begins at {first} pixels, and the network's input has {full}; "
                f"{full} or less is accepted"
            )
        return cls(
            first=full if first is None else first,
            full=full,
            grid=GRID[spec.model.family],
            steps_per_epoch=steps_per_epoch,
            epochs=-(-total_steps // steps_per_epoch),
        )

    @property
    def count(self) -> int:
        """How many sides there are over the whole run."""
        return len({self.at(epoch * self.steps_per_epoch) for epoch in range(self.epochs)})

    def at(self, step: int) -> int:
        """The side in pixels for optimiser step `step`, from 0."""
        epoch = step // self.steps_per_epoch
        if 3 * epoch >= 2 * self.epochs:
            return self.full
        grown = self.first + (self.full - self.first) * 3 * epoch // (2 * self.epochs)
        return max(self.first, grown // self.grid * self.grid)


def scaled(images: Tensor, side: int) -> Tensor:
    """(N, C, H, H) float -> (N, C, side, side), in channels_last memory; the same tensor where it has that side."""
    if images.shape[-1] == side:
        return images
    small = functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)
