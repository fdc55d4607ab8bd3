"""Images that grow over the epochs."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resforge.spec import TrainSpec
from trainer.data.progressive import Sizes, scaled
from trainer.errors import InvalidData


def sizes(first: int | None, full: int, *, family: str = "imagenet", epochs: int = 9, per_epoch: int = 10) -> Sizes:
    model: dict[str, Any] = {"family": family, "depth": 18 if family == "imagenet" else 20}
    training = {"global_batch": 64, "epochs": epochs, "progressive_from": first}
    spec = TrainSpec.model_validate({"model": model, "data": {"dataset": "digits"}, "training": training})
    return Sizes.of(spec, full=full, steps_per_epoch=per_epoch, total_steps=epochs * per_epoch)


@pytest.mark.parametrize(
    ("growing", "by_epoch"),
    [
        (sizes(128, 224), [128, 128, 160, 160, 192, 192, 224, 224, 224]),
        (sizes(100, 224), [100, 100, 128, 160, 160, 192, 224, 224, 224]),
        (sizes(16, 32, family="cifar"), [16, 16, 20, 24, 24, 28, 32, 32, 32]),
        (sizes(8, 8, family="cifar"), [8] * 9),
        (sizes(None, 28, family="cifar"), [28] * 9),
        (sizes(8, 28, family="cifar", epochs=1), [8]),
    ],
)
def test_sides_by_epoch(growing: Sizes, by_epoch: list[int]) -> None:
    assert [growing.at(10 * epoch) for epoch, _ in enumerate(by_epoch)] == by_epoch
    assert [growing.at(10 * epoch + 9) for epoch, _ in enumerate(by_epoch)] == by_epoch


@given(st.integers(8, 300), st.integers(0, 300), st.integers(1, 100), st.sampled_from([4, 32]))
def test_sides_grow_from_the_first_to_the_full(first: int, more: int, epochs: int, grid: int) -> None:
    growing = Sizes(first, first + more, grid, steps_per_epoch=3, epochs=epochs)
    sides = [growing.at(step) for step in range(3 * epochs)]
    assert sides == sorted(sides)
    assert sides[0] == first
    assert all(side == growing.full for step, side in enumerate(sides) if step // 3 >= epochs * 2 / 3)
    assert all(side % grid == 0 for side in sides if side not in (first, growing.full))


def test_more_pixels_than_there_are_are_refused() -> None:
    with pytest.raises(InvalidData, match=r"begins at 64 pixels, and the network's input has 32; 32 or less is accept"):
        sizes(64, 32)


def test_scaled_images_keep_their_means_and_their_memorys_order() -> None:
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    assert scaled(images, 32) is images
    small = scaled(images, 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), atol=0.01, rtol=0)
