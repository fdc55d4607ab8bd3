"""Every architecture as data, its parameters and multiply-adds counted from the description in pure Python.

The trainer builds its modules from these descriptions, so what is counted is what is trained. Multiply-adds (MAC) are
those of convolutions and the final linear layer, one for a multiplication with its addition, as the paper counts;
torch's FlopCounterMode counts two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# Blocks per stage (He et al. 2015, table 1).
IMAGENET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_FROM = 50
EXPANSION = 4

Shortcut = Literal["none", "identity", "pad", "projection"]


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, always followed by batch normalisation. `size` is its output's side in pixels."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weights(self) -> int:
        return self.in_channels * self.out_channels * self.kernel**2

    @property
    def parameters(self) -> int:
        """Weights, and the scale and shift of the batch normalisation behind."""
        return self.weights + 2 * self.out_channels

    @property
    def macs(self) -> int:
        return self.weights * self.size**2


@dataclass(frozen=True)
class Block:
    """y = F(x) + shortcut(x): the convolutions of F in order, and what the shortcut does."""

    name: str
    convs: tuple[Conv, ...]
    shortcut: Shortcut
    projection: Conv | None = None

    @property
    def stride(self) -> int:
        product = 1
        for conv in self.convs:
            product *= conv.stride
        return product

    @property
    def in_channels(self) -> int:
        return self.convs[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.convs[-1].out_channels


@dataclass(frozen=True)
class Network:
    """A network, whole: the stem, the blocks by stage, and the classifier over a global average."""

    family: str
    depth: int
    channels: int
    classes: int
    image_size: int
    stem: Conv
    stem_pool: bool
    stages: tuple[tuple[Block, ...], ...]

    @property
    def features(self) -> int:
        """Channels that reach the classifier."""
        return self.stages[-1][-1].out_channels

    def convs(self) -> Iterator[Conv]:
        """Every convolution, in the order of the forward pass; a projection after its block's own."""
        yield self.stem
        for stage in self.stages:
            for block in stage:
                yield from block.convs
                if block.projection:
                    yield block.projection

    @cached_property
    def parameters(self) -> int:
        return sum(conv.parameters for conv in self.convs()) + (self.features + 1) * self.classes

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return sum(conv.macs for conv in self.convs()) + self.features * self.classes


def describe(
    family: str,
    depth: int,
    *,
    shortcut: str,
    variant: str = "v1",
    width: int,
    channels: int,
    classes: int,
    image_size: int,
) -> Network:
    """Describe a network of the paper's CIFAR (section 4.2) or ImageNet family (table 1).

    Raises:
        ValueError: images of `image_size` pixels are too small for the family's subsampling.
    """
    cifar = family == "cifar"
    least = 8 if cifar else 32
    if image_size < least:
        raise ValueError(f"the {family} family takes images of {least}x{least} pixels or more, not {image_size}")
    if cifar:
        stem = Conv("conv1", channels, width, 3, 1, image_size)
        size = image_size
        blocks: tuple[int, ...] = ((depth - 2) // 6,) * 3
    else:
        stem = Conv("conv1", channels, width, 7, 2, _halve(image_size))
        size = _halve(stem.size)  # a 3x3 max pool with stride 2
        blocks = IMAGENET_BLOCKS[depth]
    bottleneck = not cifar and depth >= BOTTLENECK_FROM

    stages = []
    channels_in = width
    for index, count in enumerate(blocks):
        planes = width * 2**index
        stage = []
        for position in range(count):
            stride = 2 if index > 0 and position == 0 else 1
            name, out = f"layer{index + 1}.{position}", _halve(size) if stride == 2 else size
            if bottleneck:
                # v1, the paper's, strides on the first 1x1; v1.5 on the 3x3, so its 1x1 still sees the larger map.
                first, second, seen = (stride, 1, out) if variant == "v1" else (1, stride, size)
                convs: tuple[Conv, ...] = (
                    Conv(f"{name}.conv1", channels_in, planes, 1, first, seen),
                    Conv(f"{name}.conv2", planes, planes, 3, second, out),
                    Conv(f"{name}.conv3", planes, planes * EXPANSION, 1, 1, out),
                )
            else:
                convs = (
                    Conv(f"{name}.conv1", channels_in, planes, 3, stride, out),
                    Conv(f"{name}.conv2", planes, planes, 3, 1, out),
                )
            stage.append(_block(name, convs, shortcut))
            channels_in, size = convs[-1].out_channels, out
        stages.append(tuple(stage))
    return Network(family, depth, channels, classes, image_size, stem, not cifar, tuple(stages))


def _halve(size: int) -> int:
    return (size + 1) // 2


def _block(name: str, convs: tuple[Conv, ...], option: str) -> Block:
    if option == "none":
        return Block(name, convs, "none")
    first, last = convs[0], convs[-1]
    stride = max(conv.stride for conv in convs)
    changes = stride != 1 or first.in_channels != last.out_channels
    if option == "C" or (option == "B" and changes):
        projection = Conv(f"{name}.downsample.0", first.in_channels, last.out_channels, 1, stride, last.size)
        return Block(name, convs, "projection", projection)
    return Block(name, convs, "pad" if changes else "identity")
