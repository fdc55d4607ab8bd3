"""The residual family and its plain, gated and weight-sharing relatives: one description, y = F(x) + shortcut(x)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from resforge.networks.layers import Block, Conv, Gated, Linear, Network, Norm, Order, halve

# Blocks per stage (He et al. 2015, table 1; 200 layers: He et al. 2016, section 5).
IMAGENET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
BOTTLENECK_FROM = 50
EXPANSION = 4
# A gate's first bias: for 2016's gates the best of He et al. 2016, table 1; Srivastava et al. 2015 name -1 to -4.
GATE_BIAS = {"exclusive-gating": -6.0, "shortcut-gating": -6.0, "highway": -2.0}


@dataclass(frozen=True)
class ResidualNetwork(Network):
    """The stem, the blocks by stage, and the classifier over a global average.

    `last_norm`: a batch norm and a relu stand before the average, as pre-activation needs.
    """

    stem: Conv
    stem_pool: bool
    stages: tuple[tuple[Block, ...], ...]
    last_norm: bool = False

    @property
    def head(self) -> str:
        return "fc"

    @property
    def features(self) -> int:
        """Channels that reach the classifier."""
        return self.stages[-1][-1].out_channels

    def layers(self) -> Iterator[Conv | Norm | Linear]:
        yield self.stem
        for stage in self.stages:
            for block in stage:
                yield from block.layers()
        if self.last_norm:
            yield Norm("norm", self.features)
        yield Linear("fc", self.features, self.classes)


@dataclass(frozen=True)
class Choices:
    """What is the same in all blocks of a network; ModelSpec says what each is.

    `option` is A, B or C, upon which the variants of 2016 rest.
    """

    shortcut: str
    option: str
    bottleneck: bool
    order: Order
    variant: str
    gate_bias: float | None
    residual_scale: float
    shortcut_scale: float
    dropout: float


def describe_residual(
    family: str,
    depth: int,
    *,
    choices: Choices,
    width: int,
    survival: float,
    step: float | None,
    channels: int,
    classes: int,
    image_size: int,
) -> ResidualNetwork:
    """Describe a network of the CIFAR (section 4.2) or the ImageNet family (table 1).

    Args:
        survival: of the last block; the others' fall linearly from 1 (Huang et al. 2016, section 3).
        step: blocks of a stage that keep the shape share their weights and go y = x + step F(x). None: none do.

    Raises:
        ValueError: images of `image_size` pixels are too small for the family's subsampling.
    """
    cifar = family == "cifar"
    least = 8 if cifar else 32
    if image_size < least:
        raise ValueError(f"the {family} family takes images of {least}x{least} pixels or more, not {image_size}")
    layers = 3 if choices.bottleneck else 2
    if cifar:
        stem = Conv("conv1", channels, width, 3, 1, image_size)
        size = image_size
        counts: tuple[int, ...] = ((depth - 2) // (3 * layers),) * 3
    else:
        stem = Conv("conv1", channels, width, 7, 2, halve(image_size))
        size = halve(stem.size)  # a 3x3 max pool with stride 2
        counts = IMAGENET_BLOCKS[depth]
    if choices.shortcut == "highway":  # each of its layers has a gate of its own
        counts = tuple(layers * count for count in counts)

    stages, channels_in, number = [], width, 0
    for index, count in enumerate(counts):
        stage: list[Block] = []
        for position in range(count):
            stride = 2 if index > 0 and position == 0 else 1
            name = f"layer{index + 1}.{position}"
            number += 1
            block = _block(name, channels_in, width * 2**index, stride, size, choices)
            block = replace(block, survival=1 - number / sum(counts) * (1 - survival))
            # The stem's batch norm and relu are the first block's first activation.
            first = choices.order == "pre" and number == 1
            if step is not None and not block.changes_shape:
                block = replace(block, residual_scale=step)
                block, first = _shared(block, stage), False
            if first:
                block = replace(block, convs=(replace(block.convs[0], norm="none"), *block.convs[1:]))
            stage.append(block)
            channels_in, size = block.out_channels, block.convs[-1].size
        stages.append(tuple(stage))
    network = partial(ResidualNetwork, family, depth, channels, classes, image_size, stem, not cifar)
    return network(tuple(stages), last_norm=choices.order == "pre")


def _shared(block: Block, stage: list[Block]) -> Block:
    """The block with the weights of the first in its stage that keeps the shape; that one as it is."""
    owner = next((earlier for earlier in stage if not earlier.changes_shape), None)
    if owner is None:
        return block
    return replace(block, convs=owner.convs, shares=owner.name)


def _block(name: str, channels: int, planes: int, stride: int, size: int, choices: Choices) -> Block:
    if choices.shortcut == "highway":
        return _highway(name, channels, planes, stride, size, choices)
    convs = _residual(name, channels, planes, stride, size, choices)
    block = Block(name, convs, "none", order=choices.order, residual_scale=choices.residual_scale)
    if choices.shortcut == "none":
        return block
    return _varied(_with_shortcut(block, choices.option), choices)


def _residual(name: str, channels: int, planes: int, stride: int, size: int, choices: Choices) -> tuple[Conv, ...]:
    """The convolutions of F."""
    out = halve(size) if stride == 2 else size
    conv = partial(Conv, norm="before" if choices.order == "pre" else "after")
    if choices.bottleneck:
        # v1, the paper's, strides on the first 1x1; v1.5 on the 3x3, so its 1x1 still sees the larger map.
        first, second, seen = (stride, 1, out) if choices.variant == "v1" else (1, stride, size)
        return (
            conv(f"{name}.conv1", channels, planes, 1, first, seen),
            conv(f"{name}.conv2", planes, planes, 3, second, out),
            conv(f"{name}.conv3", planes, planes * EXPANSION, 1, 1, out),
        )
    return (
        conv(f"{name}.conv1", channels, planes, 3, stride, out),
        conv(f"{name}.conv2", planes, planes, 3, 1, out),
    )


def _varied(block: Block, choices: Choices) -> Block:
    """The block with what 2016's variants do to its shortcut."""
    match choices.shortcut:
        case "scaling":
            return replace(block, shortcut_scale=choices.shortcut_scale)
        case "dropout":
            return replace(block, dropout=choices.dropout)
        case "exclusive-gating":
            return _gated(block, "both", 1, choices)
        case "shortcut-gating":
            return _gated(block, "shortcut", 1, choices)
    return block


def _with_shortcut(block: Block, option: str) -> Block:
    """The block with option A, B or C."""
    if option == "C" or (option == "B" and block.changes_shape):
        # Before a pre-activated block the projection's input is normalised already, and nothing stands behind it.
        norm: Literal["after", "none"] = "after" if block.order == "post" else "none"
        name, size = f"{block.name}.downsample.0", block.convs[-1].size
        projection = Conv(name, block.in_channels, block.out_channels, 1, block.stride, size, norm=norm)
        return replace(block, shortcut="projection", projection=projection)
    return replace(block, shortcut="pad" if block.changes_shape else "identity")


def _gated(block: Block, gated: Gated, kernel: int, choices: Choices) -> Block:
    name, size = f"{block.name}.gate", block.convs[-1].size
    gate = Conv(name, block.in_channels, block.out_channels, kernel, block.stride, size, bias=True, norm="none")
    bias = GATE_BIAS[choices.shortcut] if choices.gate_bias is None else choices.gate_bias
    return replace(block, gate=gate, gated=gated, gate_bias=bias)


def _highway(name: str, channels: int, planes: int, stride: int, size: int, choices: Choices) -> Block:
    """One layer y = T(x) H(x) + (1 - T(x)) x, whose gate T has H's kernel; a plain layer where the shape changes
    (Srivastava et al. 2015, sections 2 and 3)."""
    out = halve(size) if stride == 2 else size
    block = Block(name, (Conv(f"{name}.conv1", channels, planes, 3, stride, out),), "none")
    if block.changes_shape:
        return block
    return _gated(replace(block, shortcut="identity"), "both", 3, choices)
