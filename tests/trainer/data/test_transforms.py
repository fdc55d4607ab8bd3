"""Augmentation by given random numbers, the centre crop, and normalisation."""

from io import BytesIO
from typing import Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resforge.spec import AugmentSpec
from tests.trainer.data.files import info
from trainer.data.photographs import EncodedSet
from trainer.data.transforms import (
    COLOUR_AXES,
    COLOUR_SHIFTS,
    NUMBERS,
    Normalisation,
    area_box,
    colour_shifts,
    crop_and_flip,
    shorter_side,
    training_view,
)


class One(EncodedSet):
    """A set of one image, as a PNG."""

    def __init__(self, image: Image.Image, size: int) -> None:
        channels = 1 if image.mode == "L" else 3
        super().__init__(info("folder", channels=channels, image_size=size), np.zeros(1, dtype=np.int64))
        buffer = BytesIO()
        image.save(buffer, "PNG")
        self._data = buffer.getvalue()

    def encoded(self, index: int) -> bytes:
        return self._data

    def name(self, index: int) -> str:
        return "the image"

    def subset(self, indices: np.ndarray) -> Self:
        return self


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    return One(image, size).test_images([0])[0]


def scale_crop_and_flip(image: Image.Image, size: int, numbers: np.ndarray, augment: AugmentSpec) -> np.ndarray:
    return One(image, size).train_images([0], numbers[None], augment)[0]


UNIT = st.floats(0, 1, exclude_max=True, width=32)


def crop_by_hand(image: np.ndarray, numbers: np.ndarray, pad: int, flip: bool) -> np.ndarray:
    """What `crop_and_flip` says of one image, pixel by pixel."""
    size = image.shape[0]
    top, left = int(numbers[0] * (2 * pad + 1)) - pad, int(numbers[1] * (2 * pad + 1)) - pad
    out = np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            source_row, source_column = row + top, column + left
            if 0 <= source_row < size and 0 <= source_column < size:
                out[row, column] = image[source_row, source_column]
    return out[:, ::-1] if flip and numbers[2] < 0.5 else out


@settings(deadline=None)
@given(
    st.integers(0, 5),
    st.booleans(),
    st.integers(1, 3),
    st.lists(st.tuples(*[UNIT] * NUMBERS), min_size=1, max_size=6),
    st.integers(0, 100),
)
def test_crops_are_what_they_are_said_to_be(
    pad: int, flip: bool, channels: int, rows: list[tuple[float, ...]], seed: int
) -> None:
    numbers = np.array(rows, dtype=np.float32)
    images = np.random.default_rng(seed).integers(1, 256, (len(rows), 6, 6, channels), dtype=np.uint8)
    before = images.copy()
    out = crop_and_flip(images, numbers, AugmentSpec(pad=pad, flip=flip))
    assert out.dtype == np.uint8
    for image, row, cropped in zip(images, numbers, out, strict=True):
        assert np.array_equal(cropped, crop_by_hand(image, row.astype(np.float64), pad, flip))
    assert np.array_equal(images, before), "the data set's own pixels stay as they are"


def test_every_place_and_both_sides_are_drawn() -> None:
    numbers = np.random.default_rng(0).random((2000, NUMBERS), dtype=np.float32)
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    out = crop_and_flip(np.repeat(image, 2000, axis=0), numbers, AugmentSpec(pad=1, flip=True))
    assert len({crop.tobytes() for crop in out}) == 3 * 3 * 2


def test_without_augmentation_images_are_left_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    assert np.array_equal(crop_and_flip(images, np.zeros((3, NUMBERS)), AugmentSpec()), images)


def test_the_shorter_side_is_256_for_crops_of_224() -> None:
    assert (shorter_side(224), shorter_side(32), shorter_side(8)) == (256, 37, 9)


def marked(width: int, height: int) -> Image.Image:
    """A grey image whose brightness is the column, from 0 to 255."""
    return Image.fromarray(np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width)).copy())


def test_the_centre_crop_is_of_the_centre() -> None:
    pixels = centre_crop(marked(512, 256), 224)
    assert pixels.shape == (224, 224, 1)
    # columns 144 to 368 of 512
    assert abs(int(pixels[0, 0, 0]) - 255 * 144 / 511) <= 2
    assert abs(int(pixels[0, -1, 0]) - 255 * 367 / 511) <= 2


@pytest.mark.parametrize(("width", "height"), [(100, 30), (30, 100), (8, 8), (1, 300), (7, 5)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crops_of_any_image_have_one_size(width: int, height: int, mode: str) -> None:
    image = Image.new(mode, (width, height), 200 if mode == "L" else (200, 100, 50))
    channels = 1 if mode == "L" else 3
    assert centre_crop(image, 24).shape == (24, 24, channels)
    for corner in (0.0, 0.999):
        numbers = np.full(NUMBERS, corner, dtype=np.float32)
        for augment in (AugmentSpec(flip=True), AugmentSpec(scale=(24, 40)), AugmentSpec(pad=3)):
            pixels = scale_crop_and_flip(image, 24, numbers, augment)
            assert pixels.shape == (24, 24, channels)
            if not augment.pad:
                assert pixels.min() > 0, "no pixel from outside of the image"


def test_the_scale_is_drawn_from_its_range() -> None:
    """A larger scale shows less of the image: the difference across a crop of 32 from an image 64 wide."""
    spans = {}
    for number in (0.0, 0.5, 0.999):
        numbers = np.array([0, 0, 0.9, number], dtype=np.float32)
        pixels = scale_crop_and_flip(marked(64, 64), 32, numbers, AugmentSpec(scale=(32, 64), flip=True))
        spans[number] = int(pixels[0, -1, 0]) - int(pixels[0, 0, 0])
    assert spans[0.0] > 240
    assert abs(spans[0.5] - 255 * 32 / 48) < 8
    assert abs(spans[0.999] - 255 / 2) < 8


def test_both_ends_of_the_scales_range_are_drawn_alike() -> None:
    def crop(number: float, least: int, most: int) -> np.ndarray:
        numbers = np.array([0.4, 0.4, 0, number], dtype=np.float32)
        return scale_crop_and_flip(marked(64, 64), 32, numbers, AugmentSpec(scale=(least, most)))

    assert np.array_equal(crop(0.49, 40, 41), crop(0, 40, 40))
    assert np.array_equal(crop(0.5, 40, 41), crop(0, 41, 41))
    assert not np.array_equal(crop(0, 40, 40), crop(0, 41, 41))


def test_half_of_the_crops_are_mirrored() -> None:
    crop = lambda mirror: scale_crop_and_flip(  # noqa: E731
        marked(40, 40), 32, np.array([0, 0, mirror, 0], dtype=np.float32), AugmentSpec(flip=True)
    )
    assert np.array_equal(crop(0.49), crop(0.5)[:, ::-1])


@pytest.mark.parametrize("shape", [(4, 4, 3), (3,)])
def test_normalisation(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    mean = random.random(shape, dtype=np.float32) * 255
    std = np.array([50, 60, 70], dtype=np.float32)
    normalisation = Normalisation(torch.from_numpy(mean), torch.from_numpy(std))
    out = normalisation.normalise(torch.from_numpy(images))
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = ((images - mean.astype(np.float64)) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_normalisation_survives_being_saved() -> None:
    normalisation = Normalisation(torch.rand(4, 4, 1), torch.rand(1))
    again = Normalisation.from_state(normalisation.to("cpu").state())
    assert torch.equal(again.mean, normalisation.mean)
    assert torch.equal(again.std, normalisation.std)


def test_the_axes_of_colour_are_orthonormal() -> None:
    np.testing.assert_allclose(COLOUR_AXES.T @ COLOUR_AXES, np.eye(3), atol=2e-3)


def test_colours_are_shifted_as_published() -> None:
    """Krizhevsky et al. 2012: the shifts' covariance has the axes' directions, and their lengths times 0.1."""
    weights = 0.1 * np.random.default_rng(0).standard_normal((20_000, 3), dtype=np.float32)
    shifts = colour_shifts(weights) / 255
    expected = COLOUR_AXES @ np.diag((0.1 * COLOUR_SHIFTS) ** 2) @ COLOUR_AXES.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=1e-5)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=5e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 3), min_size=1, max_size=4), st.integers(0, 100))
def test_an_images_pixels_are_all_shifted_alike(rows: list[tuple[float, ...]], seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (len(rows), 3, 3, 3), dtype=np.uint8)
    normalisation = Normalisation(torch.tensor([10.0, 20.0, 30.0]), torch.tensor([50.0, 60.0, 70.0]))
    shifts = colour_shifts(np.array(rows, dtype=np.float32))
    out = normalisation.normalise(torch.from_numpy(images), torch.from_numpy(shifts)).numpy()
    for image, row, shifted in zip(images, rows, out, strict=True):
        colour = 255 * (COLOUR_AXES.astype(np.float64) @ (np.array(row) * COLOUR_SHIFTS))
        expected = (image + colour - [10, 20, 30]) / [50, 60, 70]
        np.testing.assert_allclose(shifted.transpose(1, 2, 0), expected, rtol=1e-4, atol=1e-3)


@given(st.integers(1, 900), st.integers(1, 900), st.tuples(UNIT, UNIT).map(sorted), st.integers(0, 2**32))
def test_a_part_drawn_by_its_area_lies_in_the_image(height: int, width: int, range_: list[float], seed: int) -> None:
    area = (max(1e-3, range_[0]), max(1e-3, range_[1]))
    left, top, right, bottom = area_box(height, width, area, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    if min(w, h) > 100:  # whole pixels move a small part's ratio and share
        assert 0.72 < w / h < 1.39
    assert w * h <= area[1] * height * width * 1.02 + w + h or min(w / h, h / w) < 0.77 or (w, h) == (width, height)


def test_areas_and_ratios_are_drawn_evenly() -> None:
    draws = np.random.default_rng(0)
    boxes = np.array([area_box(1000, 1000, (0.1, 0.5), draws) for _ in range(4000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, ratio = widths * heights / 1e6, np.log(widths / heights)
    # Uniform: the mean in the middle, and a standard deviation of the range over the root of 12.
    assert share.mean() == pytest.approx(0.3, abs=0.006)
    assert share.std() == pytest.approx(0.4 / 12**0.5, abs=0.004)
    assert ratio.mean() == pytest.approx(0, abs=0.012)
    assert ratio.std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, abs=0.006)
    places = boxes[:, 0] / (1000 - widths)
    assert places.mean() == pytest.approx(0.5, abs=0.02)


def test_an_image_too_long_for_any_part_gives_its_middle() -> None:
    assert area_box(100, 1000, (1.0, 1.0), np.random.default_rng(0)) == (433, 0, 566, 100)
    assert area_box(1000, 100, (1.0, 1.0), np.random.default_rng(0)) == (0, 433, 100, 566)


def test_parts_are_each_images_own_and_flips_are_those_of_other_crops() -> None:
    numbers = np.random.default_rng(3).random((50, NUMBERS), dtype=np.float32)
    area, scale = AugmentSpec(area=(0.08, 1.0), flip=True), AugmentSpec(scale=(256, 480), flip=True)
    views = [training_view(375, 500, 224, row, area) for row in numbers]
    assert views == [training_view(375, 500, 224, row.copy(), area) for row in numbers]
    assert len({view.box for view in views}) == len(views)
    assert [view.flip for view in views] == [training_view(375, 500, 224, row, scale).flip for row in numbers]


def test_a_part_drawn_by_its_area_fills_the_input() -> None:
    gradient = np.linspace(0, 255, 400, dtype=np.uint8)[None].repeat(300, axis=0)
    numbers = np.random.default_rng(1).random((20, NUMBERS), dtype=np.float32)
    augment = AugmentSpec(area=(0.2, 0.6))
    for row in numbers:
        left, _, right, _ = training_view(300, 400, 64, row, augment).box
        crop = scale_crop_and_flip(Image.fromarray(gradient), 64, row, augment)[:, :, 0]
        assert crop.shape == (64, 64)
        assert crop[0, 0] == pytest.approx(255 * left / 400, abs=3)
        assert crop[0, -1] == pytest.approx(255 * right / 400, abs=3)
