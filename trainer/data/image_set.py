"""What a split of a data set is to the trainer: images by index, as uint8, and labels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Self

import numpy as np

from resforge.jobs import DatasetInfo
from resforge.spec import AugmentSpec
from trainer.data.sampler import epoch_order
from trainer.data.transforms import crop_and_flip
from trainer.errors import InvalidData

Indices = Sequence[int] | np.ndarray

# A mean over this many images is within a grey level and a half of the mean over all.
MEAN_IMAGES = 2048


class ImageSet(ABC):
    """One split of a data set. Images are (size, size, channels) uint8, labels whole numbers from 0.

    Attributes:
        info: the registration.
        labels: (N,) int64.
        in_memory: whether an image costs nothing to read, so that reading ahead in threads gains nothing.
    """

    in_memory: ClassVar[bool]

    def __init__(self, info: DatasetInfo, labels: np.ndarray) -> None:
        self.info = info
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, augment: AugmentSpec) -> None:
        """Return when this set's images can be augmented so.

        Raises:
            InvalidData: they can't.
        """
        if augment.colour and self.info.channels != 3:
            raise InvalidData(
                f"data.augment.colour shifts the colour of RGB images, and those of the data set {self.info.name} "
                f"have {self.info.channels} channel(s); leave it out, or give 0"
            )

    def order(self, _global_batch: int, seed: int) -> Callable[[int], np.ndarray]:
        """By an epoch's number, the order in which it visits the images: a read-only permutation, (N,) int64."""
        return partial(epoch_order, len(self), seed)

    def for_mean(self) -> np.ndarray:
        """The images that the input's mean is taken of, (n,) int64: all, or MEAN_IMAGES that are as good."""
        return np.arange(len(self))

    @abstractmethod
    def train_images(self, indices: Indices, numbers: np.ndarray, augment: AugmentSpec) -> np.ndarray:
        """Augmented images, (n, size, size, C) uint8, by their random numbers, (n, transforms.NUMBERS) in [0, 1)."""

    @abstractmethod
    def test_images(self, indices: Indices) -> np.ndarray:
        """Images as they are evaluated, (n, size, size, C) uint8: a single centred view."""

    @abstractmethod
    def subset(self, indices: np.ndarray) -> Self:
        """The images at these places alone."""

    @abstractmethod
    def downscaled(self, factor: int) -> Self:
        """The same images, average-pooled.

        Raises:
            InvalidData: they can't be.
        """


class ArraySet(ImageSet):
    """A split that fits in memory, of images of one size."""

    in_memory = True

    def __init__(self, info: DatasetInfo, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(info, labels)
        self.images = images

    def check(self, augment: AugmentSpec) -> None:
        super().check(augment)
        for name, what in (("scale", "draws the shorter side"), ("area", "draws a part")):
            if getattr(augment, name):
                raise InvalidData(
                    f"data.augment.{name} {what} of photographs, and the data set {self.info.name} holds images of "
                    "one size; leave it out, or give data.augment.pad instead"
                )

    def train_images(self, indices: Indices, numbers: np.ndarray, augment: AugmentSpec) -> np.ndarray:
        return crop_and_flip(self.images[indices], numbers, augment)

    def test_images(self, indices: Indices) -> np.ndarray:
        return self.images[indices]

    def subset(self, indices: np.ndarray) -> Self:
        return type(self)(self.info, self.images[indices], self.labels[indices])

    def downscaled(self, factor: int) -> Self:
        count, height, width, channels = self.images.shape
        if height % factor:
            raise InvalidData(f"images of {height} pixels can't be downscaled by {factor}, which does not divide it")
        info = self.info.model_copy(update={"image_size": height // factor})
        tiles = self.images.reshape(count, height // factor, factor, width // factor, factor, channels)
        return type(self)(info, np.rint(tiles.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8), self.labels)
