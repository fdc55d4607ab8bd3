"""Which images, and how one becomes an input."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from resforge.spec.base import Name, Part


class AugmentSpec(Part):
    """What happens to a training image. The paper's CIFAR setting is `{pad: 4, flip: true}` (section 4.2)."""

    pad: int = Field(default=0, ge=0, le=64, description="Pixels of zero padding before a random crop of the old size.")
    flip: bool = Field(default=False, description="Mirror half of the images, left to right.")
    scale: tuple[int, int] | None = Field(
        default=None,
        description="Draw the shorter side, in pixels, from this range before the crop (the paper's [256, 480]).",
    )
    area: tuple[float, float] | None = Field(
        default=None,
        description="Crop a random share of the image's area within this range, its sides in a ratio from 3:4 to 4:3, "
        "and resize it to the input (Szegedy et al. 2015, section 6, has [0.08, 1]). Instead of scale and pad.",
    )
    colour: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Shift an RGB image's colour along the principal axes of natural images' colours, by weights of "
        "this standard deviation; the published one is 0.1 (Krizhevsky et al. 2012, section 4.1). 0: off.",
    )

    @model_validator(mode="after")
    def _scale_in_order(self) -> Self:
        if self.scale and not 1 <= self.scale[0] <= self.scale[1]:
            raise PydanticCustomError(
                "scale", "the range must be [least, most] with 1 <= least <= most", {"field": "scale"}
            )
        return self

    @model_validator(mode="after")
    def _area_in_order(self) -> Self:
        if self.area is None:
            return self
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise PydanticCustomError(
                "area", "the range must be [least, most] with 0 < least <= most <= 1", {"field": "area"}
            )
        if self.scale or self.pad:
            other = "scale" if self.scale else "pad"
            raise PydanticCustomError("area", "area and {other} are two ways to crop; give one", {
                "other": other, "field": "area",
            })  # fmt: skip
        return self


class DataSpec(Part):
    """Which registered dataset to read and how an image becomes an input."""

    dataset: Name = Field(description="The name of a dataset that the operator has registered; never a path.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec)
    mean: Literal["pixel", "channel"] = Field(
        default="pixel",
        description="Subtract the training set's mean image (the paper) or its mean per channel.",
    )
    train_limit: int | None = Field(
        default=None, ge=1, description="Train on this many images, drawn by the seed. Left out: all."
    )
    downscale: int = Field(
        default=1, ge=1, le=64, description="Average-pool images of one size by this factor: 2 makes 28x28 into 14x14."
    )
    validation: int = Field(
        default=0,
        ge=0,
        description="Hold back so many training images, drawn by the seed, and evaluate on them instead of the test "
        "images while training (the paper's 45k/5k split, section 4.2).",
    )

    def image_size(self, size: int) -> int:
        """The side in pixels of a network's input, for stored images of this side.

        Raises:
            ValueError: the side is no multiple of `downscale`.
        """
        if size % self.downscale:
            raise ValueError(
                f"images of {size} pixels can't be downscaled by {self.downscale}, which does not divide it"
            )
        return size // self.downscale
