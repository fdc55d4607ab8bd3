"""From stored pixels to a network's input: crops and flips of uint8 images, and on the device colour and normalisation.

Augmentation takes each image's random numbers as an argument. They depend on (seed, epoch, index) alone, so an image
is cropped the same way whatever the number of workers, the batch that it lies in, and where a run was resumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from resforge.spec import AugmentSpec

# The principal axes of ImageNet's RGB values between 0 and 1: as columns, and how far the colour is shifted along each
# for a weight of 1. The constants are those of the reference implementation of these networks (fb.resnet.torch).
COLOUR_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=np.float32
)
COLOUR_SHIFTS = np.array([0.2175, 0.0188, 0.0045], dtype=np.float32)

# Random numbers that one image takes: where its crop lies (down, across), whether it is mirrored, and its scale.
NUMBERS = 4

AREA_RATIO = 4 / 3  # of the longer to the shorter side of a part drawn by its area, at most
AREA_TRIES = 10


def crop_and_flip(images: np.ndarray, numbers: np.ndarray, augment: AugmentSpec) -> np.ndarray:
    """Random crops of the old size after zero padding, half of them mirrored (He et al. 2015, section 4.2).

    Args:
        images: (N, H, W, C) uint8.
        numbers: (N, NUMBERS) in [0, 1).
        augment: how far to pad and whether to mirror; its scale is not for images of one size.

    Returns:
        (N, H, W, C) uint8.
    """
    if not augment.pad and not augment.flip:
        return images
    count, height, width, _ = images.shape
    pad = augment.pad
    top, left = (_pick(numbers[:, axis], 2 * pad + 1)[:, None] for axis in (0, 1))
    rows = top + np.arange(height)
    columns = left + np.arange(width)
    if augment.flip:
        columns = np.where(_mirrored(numbers)[:, None], columns[:, ::-1], columns)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else images
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class View:
    """The part of an image that a network sees.

    Attributes:
        box: left, top, right, bottom, in pixels of the image as it is stored; fractions are meant.
        inside: the rows and columns of the input that this part fills, where the rest is zero.
        flip: the whole input is mirrored.
    """

    box: tuple[float, float, float, float]
    inside: tuple[slice, slice]
    size: int
    flip: bool = False

    @property
    def whole(self) -> bool:
        """Whether it fills the input."""
        return all(part == slice(0, self.size) for part in self.inside)


def training_view(height: int, width: int, size: int, numbers: np.ndarray, augment: AugmentSpec) -> View:
    """A random crop of an image whose shorter side was drawn from `augment.scale` (He et al. 2015, section 3.4).

    Without a scale the shorter side is that of the test. `pad` widens where the crop may lie, over zeros. With `area`
    it is a random share of the image instead (Szegedy et al. 2015, section 6).

    Args:
        height, width: the image's.
        size: side of the crop.
        numbers: (NUMBERS,) in [0, 1).
    """
    flip = augment.flip and bool(_mirrored(numbers))
    if augment.area:
        box = area_box(height, width, augment.area, np.random.Generator(np.random.Philox(key=_key(numbers))))
        return View(box, (slice(0, size), slice(0, size)), size, flip)
    if augment.scale:
        least, most = augment.scale
        side = least + int(_pick(numbers[3], most - least + 1))
    else:
        side = shorter_side(size)
    resized, pad = resized_to(height, width, side), augment.pad
    top, left = (int(_pick(numbers[axis], resized[axis] + 2 * pad - size + 1)) - pad for axis in (0, 1))
    return _view((height, width), resized, top, left, size, flip=flip)


def area_box(
    height: int, width: int, area: tuple[float, float], draws: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of an image: left, top, right, bottom in whole pixels.

    Its area is a share of the image's, uniform within `area`; the ratio of its sides lies between 3:4 and 4:3, the
    logarithm uniform. What does not fit into the image is drawn again, ten times at most, as is usual; then it is the
    largest centred part whose sides are in a ratio within these bounds.
    """
    for share, exponent, down, across in draws.random((AREA_TRIES, 4)):
        wanted = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = AREA_RATIO ** (2 * exponent - 1)
        w, h = round((wanted * ratio) ** 0.5), round((wanted / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * AREA_RATIO)), min(height, round(width * AREA_RATIO))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_view(height: int, width: int, size: int) -> View:
    """The centre of an image whose shorter side is made `shorter_side(size)`."""
    resized = resized_to(height, width, shorter_side(size))
    top, left = ((length - size) // 2 for length in resized)
    return _view((height, width), resized, top, left, size)


def _view(
    stored: tuple[int, int], resized: tuple[int, int], top: int, left: int, size: int, *, flip: bool = False
) -> View:
    """A square crop of the resized image, of which some may lie outside, in terms of the stored one."""
    spans = []
    for length, before, start in zip(resized, stored, (top, left), strict=True):
        first, last = max(0, start), min(length, start + size)
        spans.append((first * before / length, last * before / length, slice(first - start, last - start)))
    (upper, lower, rows), (near, far, columns) = spans
    return View((near, upper, far, lower), (rows, columns), size, flip)


def colour_shifts(weights: np.ndarray) -> np.ndarray:
    """The colour to add to all pixels of an image, drawn along the principal axes (Krizhevsky et al. 2012, section
    4.1); `Normalisation.normalise` adds it.

    The axes are ImageNet's whatever the data set, so that none has to be computed, kept and agreed on by the workers:
    natural images share them (brightness, then blue against yellow).

    Args:
        weights: (N, 3), of each axis; drawn from a normal distribution whose standard deviation is `augment.colour`.

    Returns:
        (N, 3) float32, in units of uint8 pixels.
    """
    shifts: np.ndarray = 255 * (weights * COLOUR_SHIFTS) @ COLOUR_AXES.T
    return shifts.astype(np.float32)


def shorter_side(size: int) -> int:
    """The shorter side before the centre crop: 256 for crops of 224, and so in proportion."""
    return round(size * 256 / 224)


def _pick(numbers: np.ndarray, choices: int) -> np.ndarray:
    """Whole numbers from 0 to choices - 1."""
    return (numbers.astype(np.float64) * choices).astype(np.intp)


def _key(numbers: np.ndarray) -> int:
    """An image's numbers of an epoch as a key of 128 bits, for draws that take more numbers than these."""
    return int.from_bytes(np.asarray(numbers, dtype="<f4").tobytes(), "little")


def _mirrored(numbers: np.ndarray) -> np.ndarray:
    return numbers[..., 2] < 0.5


def resized_to(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is made `side`, the ratio of the sides kept."""
    shorter = min(height, width)
    return max(side, round(height * side / shorter)), max(side, round(width * side / shorter))


def resize(image: Image.Image, side: int) -> Image.Image:
    """Resize so that the shorter side has `side` pixels."""
    height, width = resized_to(image.height, image.width, side)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8, with C = 1 for grey."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@dataclass(frozen=True)
class Normalisation:
    """x = (image - mean) / std, in units of uint8 pixels.

    The paper subtracts the mean alone. Dividing by a constant a channel as well is absorbed by the batch normalisation
    behind the first convolution, and keeps inputs near 1 whatever the data.

    Attributes:
        mean: (H, W, C) float32, the training set's mean image, or (C,), its mean a channel.
        std: (C,) float32, the standard deviation of a channel's pixels.
    """

    mean: Tensor
    std: Tensor

    def normalise(self, images: Tensor, shifts: Tensor | None = None) -> Tensor:
        """(N, H, W, C) uint8 -> (N, C, H, W) float32, in channels_last memory, on the images' device.

        `shifts`, (N, C), are added to the pixels first.
        """
        mean = self.mean if shifts is None else self.mean - shifts[:, None, None, :]
        return ((images.to(torch.float32) - mean) / self.std).permute(0, 3, 1, 2)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.mean.to(device), self.std.to(device))

    def resized(self, height: int, width: int) -> Self:
        """The same for images of another size: a mean image is resized with them."""
        if self.mean.dim() == 1 or self.mean.shape[:2] == (height, width):
            return self
        mean = functional.interpolate(
            self.mean.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", align_corners=False
        )
        return type(self)(mean[0].permute(1, 2, 0), self.std)

    def state(self) -> dict[str, Tensor]:
        """The tensors to be saved, by name."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        return cls(state["mean"], state["std"])
