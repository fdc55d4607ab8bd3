"""Which network: a choice of family, depth and shortcuts."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from resforge.networks import IMAGENET_BLOCKS, Network, describe
from resforge.spec.base import Part


class ModelSpec(Part):
    """Which network to train (He et al. 2015, tables 1 and 6)."""

    family: Literal["cifar", "imagenet"] = Field(
        description="cifar: 6n+2 layers of 3x3 convolutions. imagenet: 18, 34, 50, 101 or 152 layers."
    )
    # The bound is against a typing error that would describe a network until the memory is full.
    depth: int = Field(le=20_000, description="Weighted layers, counted as in the paper.")
    shortcut: Literal["none", "A", "B", "C"] = Field(
        default_factory=lambda model: "A" if model["family"] == "cifar" else "B",
        description="none: plain. A: identity, zero-padded where channels grow. B: projection where the shape "
        "changes. C: projection everywhere. Left out: A for cifar, B for imagenet, as in the paper.",
    )
    variant: Literal["v1", "v1.5"] = Field(
        default="v1", description="Where a bottleneck strides: v1 on its first 1x1 (the paper), v1.5 on its 3x3."
    )
    width: int = Field(
        default_factory=lambda model: 16 if model["family"] == "cifar" else 64,
        ge=1,
        le=1024,
        description="Channels of the first stage. Left out: 16 for cifar, 64 for imagenet.",
    )

    @model_validator(mode="after")
    def _depth_exists(self) -> Self:
        if self.family == "cifar" and (self.depth < 8 or (self.depth - 2) % 6):
            below = max(8, (self.depth - 2) // 6 * 6 + 2)
            raise PydanticCustomError(
                "depth",
                "a cifar network has 6n+2 layers with n >= 1, and {depth} is not; the nearest are {below} and {above}",
                {"depth": self.depth, "below": below, "above": below + 6, "field": "depth"},
            )
        if self.family == "imagenet" and self.depth not in IMAGENET_BLOCKS:
            raise PydanticCustomError(
                "depth",
                "an imagenet network has {accepted} layers, not {depth}",
                {"depth": self.depth, "accepted": ", ".join(map(str, IMAGENET_BLOCKS)), "field": "depth"},
            )
        if self.variant == "v1.5" and not (self.family == "imagenet" and self.depth >= 50):
            raise PydanticCustomError(
                "variant",
                "v1.5 moves a bottleneck's stride, and this network has no bottleneck; v1 is accepted",
                {"field": "variant"},
            )
        return self

    @property
    def name(self) -> str:
        """The usual name, such as `cifar/resnet-20` or `imagenet/plain-34`."""
        kind = "plain" if self.shortcut == "none" else "resnet"
        default = "A" if self.family == "cifar" else "B"
        name = f"{self.family}/{kind}-{self.depth}"
        if self.variant != "v1":
            name += f"-{self.variant}"
        return name if self.shortcut in ("none", default) else f"{name}-{self.shortcut}"

    def network(self, *, channels: int, classes: int, image_size: int) -> Network:
        """Describe the network for images of `image_size` x `image_size` x `channels` and `classes` outputs.

        Raises:
            ValueError: the images are too small for the network.
        """
        return describe(
            self.family,
            self.depth,
            shortcut=self.shortcut,
            variant=self.variant,
            width=self.width,
            channels=channels,
            classes=classes,
            image_size=image_size,
        )
