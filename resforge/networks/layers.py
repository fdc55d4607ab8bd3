"""What networks are made of, as data: layers with weights, blocks, and what every network has."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Shortcut = Literal["none", "identity", "pad", "projection"]
Gated = Literal["none", "shortcut", "both"]
Order = Literal["post", "pre"]


@dataclass(frozen=True)
class Conv:
    """A convolution, padded by half its kernel. `size` is its output's side in pixels.

    `norm` says where its batch normalisation is: behind it, before it (over its input's channels), or nowhere.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    size: int
    bias: bool = False
    norm: Literal["after", "before", "none"] = "after"

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weights(self) -> int:
        return self.in_channels * self.out_channels * self.kernel**2

    @property
    def parameters(self) -> int:
        """Weights, biases, and the scale and shift of the batch normalisation."""
        normalised = {"after": self.out_channels, "before": self.in_channels, "none": 0}[self.norm]
        return self.weights + self.bias * self.out_channels + 2 * normalised

    @property
    def macs(self) -> int:
        return self.weights * self.size**2


@dataclass(frozen=True)
class Linear:
    """A fully connected layer with biases."""

    name: str
    in_features: int
    out_features: int

    @property
    def parameters(self) -> int:
        return (self.in_features + 1) * self.out_features

    @property
    def macs(self) -> int:
        return self.in_features * self.out_features


@dataclass(frozen=True)
class Block:
    """y = F(x) + shortcut(x): the convolutions of F in order, what the shortcut does, and how the two are weighted.

    Attributes:
        order: post: y = relu(F(x) + shortcut(x)), with batch norm behind each convolution. pre: y = F(x) + shortcut(x),
            with batch norm and relu before each convolution.
        gate: the convolution whose sigmoid is g(x).
        gated: what g(x) weighs: "both": g(x) F(x) + (1 - g(x)) shortcut(x); "shortcut": F(x) is left as it is.
        gate_bias: what the gate's bias begins with.
        residual_scale, shortcut_scale: constant factors of F(x) and of the shortcut.
        dropout: the share of the shortcut's values that is set to 0 in training.
        survival: the probability with which F(x) is there in a step of training.
        shares: the block whose weights this one uses, where it has none of its own.
    """

    name: str
    convs: tuple[Conv, ...]
    shortcut: Shortcut
    projection: Conv | None = None
    order: Order = "post"
    gate: Conv | None = None
    gated: Gated = "none"
    gate_bias: float = 0.0
    residual_scale: float = 1.0
    shortcut_scale: float = 1.0
    dropout: float = 0.0
    survival: float = 1.0
    shares: str | None = None

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

    @property
    def changes_shape(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    def layers(self) -> Iterator[Conv]:
        """Its convolutions in the order of the forward pass; the shortcut's and the gate's behind F's."""
        yield from self.convs
        if self.projection:
            yield self.projection
        if self.gate:
            yield self.gate


@dataclass(frozen=True)
class Norm:
    """Batch normalisation that belongs to no convolution."""

    name: str
    channels: int
    macs: int = 0

    @property
    def parameters(self) -> int:
        return 2 * self.channels


@dataclass(frozen=True)
class Network(ABC):
    """A network, whole."""

    family: str
    depth: int
    channels: int
    classes: int
    image_size: int

    @property
    @abstractmethod
    def head(self) -> str:
        """The name of the layer that gives the logits; all before it is the backbone."""

    @abstractmethod
    def layers(self) -> Iterator[Conv | Norm | Linear]:
        """Every layer in the order of the forward pass; one that is passed twice comes twice, under one name."""

    def convs(self) -> Iterator[Conv]:
        """Every convolution, likewise."""
        return (layer for layer in self.layers() if isinstance(layer, Conv))

    @cached_property
    def parameters(self) -> int:
        return sum({layer.name: layer.parameters for layer in self.layers()}.values())

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return sum(layer.macs for layer in self.layers())


def halve(size: int) -> int:
    """A side behind a stride of 2."""
    return (size + 1) // 2
