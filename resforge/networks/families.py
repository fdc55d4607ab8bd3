"""Describe a network by its choices."""

from typing import Literal

from resforge.networks.layers import Network, Order
from resforge.networks.residual import BOTTLENECK_FROM, Choices, describe_residual
from resforge.networks.vgg import describe_vgg


def has_bottlenecks(family: str, depth: int, block: str | None = None) -> bool:
    """Whether the blocks are bottlenecks: as told, else by the family and the depth."""
    return block == "bottleneck" if block else family == "imagenet" and depth >= BOTTLENECK_FROM


def default_shortcut(family: str, bottleneck: bool) -> Literal["none", "A", "B"]:
    """The shortcut of the published networks: A for basic CIFAR ones, B for all other residual ones."""
    if family == "vgg":
        return "none"
    return "A" if family == "cifar" and not bottleneck else "B"


def describe(
    family: str,
    depth: int,
    *,
    shortcut: str,
    block: str | None = None,
    order: Order = "post",
    variant: str = "v1",
    norm: str = "batch",
    width: int,
    gate_bias: float | None = None,
    residual_scale: float = 1.0,
    shortcut_scale: float = 0.5,
    shortcut_dropout: float = 0.5,
    survival: float = 1.0,
    tied: bool = False,
    step: float = 1.0,
    channels: int,
    classes: int,
    image_size: int,
) -> Network:
    """Describe a network of one of the families. ModelSpec says what each choice means and which go together.

    Raises:
        ValueError: images of `image_size` pixels are too small for the family's subsampling.
    """
    if family == "vgg":
        return describe_vgg(
            depth, norm=norm == "batch", width=width, channels=channels, classes=classes, image_size=image_size
        )
    bottleneck = has_bottlenecks(family, depth, block)
    option = {"conv1x1": "C"}.get(shortcut, shortcut)
    choices = Choices(
        shortcut=shortcut,
        option=option if option in ("A", "B", "C") else default_shortcut(family, bottleneck),
        bottleneck=bottleneck,
        order=order,
        variant=variant,
        gate_bias=gate_bias,
        residual_scale=residual_scale,
        shortcut_scale=shortcut_scale,
        dropout=shortcut_dropout,
    )
    return describe_residual(
        family,
        depth,
        choices=choices,
        width=width,
        survival=survival,
        step=step if tied else None,
        channels=channels,
        classes=classes,
        image_size=image_size,
    )
