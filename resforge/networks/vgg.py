"""The VGG networks (Simonyan and Zisserman 2015, table 1: A, B, D and E), the paper's baseline without shortcuts."""

from collections.abc import Iterator
from dataclasses import dataclass

from resforge.networks.layers import Conv, Linear, Network, Norm

# Convolutions per stage. Behind each stage stands a 2x2 max pool.
VGG_CONVS: dict[int, tuple[int, int, int, int, int]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
POOLED = 7  # the side of the map that the classifier sees, whatever the images' size
LEAST_IMAGE = 8


@dataclass(frozen=True)
class VggNetwork(Network):
    """Stages of 3x3 convolutions, each with a max pool behind it, and three fully connected layers."""

    stages: tuple[tuple[Conv, ...], ...]
    hidden: int

    @property
    def head(self) -> str:
        return "classifier.6"

    def layers(self) -> Iterator[Conv | Norm | Linear]:
        for stage in self.stages:
            yield from stage
        yield Linear("classifier.0", self.stages[-1][-1].out_channels * POOLED**2, self.hidden)
        yield Linear("classifier.3", self.hidden, self.hidden)
        yield Linear("classifier.6", self.hidden, self.classes)


def describe_vgg(depth: int, *, norm: bool, width: int, channels: int, classes: int, image_size: int) -> VggNetwork:
    """Describe a VGG network, whose hidden layers have 64 * width units (4096 at the published width of 64).

    A map of one pixel is not pooled further, so that small images pass; the weights have the same names and shapes for
    images of any size.

    Raises:
        ValueError: the images are smaller than 8x8.
    """
    if image_size < LEAST_IMAGE:
        raise ValueError(f"the vgg family takes images of {LEAST_IMAGE}x{LEAST_IMAGE} pixels or more, not {image_size}")
    stages, size, channels_in, place = [], image_size, channels, 0
    for index, count in enumerate(VGG_CONVS[depth]):
        planes = width * min(2**index, 8)
        stage = []
        for _ in range(count):
            stage.append(Conv(f"features.{place}", channels_in, planes, 3, 1, size, True, "after" if norm else "none"))
            channels_in = planes
            place += 3 if norm else 2  # the batch norm and the relu behind have places of their own
        stages.append(tuple(stage))
        size, place = max(size // 2, 1), place + 1
    return VggNetwork("vgg", depth, channels, classes, image_size, tuple(stages), 64 * width)
