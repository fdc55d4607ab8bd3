"""Residual and plain networks as torch modules, built from their descriptions (He et al. 2015).

Every block computes y = relu(F(x) + shortcut(x)); a plain network is the choice of no shortcut, not another network.
State-dict names are torchvision's (conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc), so weights of the
ImageNet family with option B pass both ways; the CIFAR family uses the same scheme with three stages.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resforge.networks import Block, Conv, Network


def build(network: Network) -> "ResNet":
    """Build the network that a description describes, initialised as in the paper.

    Weights are drawn from torch's global random state, in a fixed order: the same `torch.manual_seed` before the call
    gives the same weights to the last bit. Under `torch.device("meta")` nothing is drawn or allocated.
    """
    return ResNet(network)


class ResNet(nn.Module):
    """(N, channels, image_size, image_size) float -> (N, classes) logits.

    The global average lets other sizes through as well, from the family's least size up.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(network.stem), nn.BatchNorm2d(network.stem.out_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if network.stem_pool else nn.Identity()
        self.stages = tuple(f"layer{number}" for number, _ in enumerate(network.stages, start=1))
        for name, blocks in zip(self.stages, network.stages, strict=True):
            self.add_module(name, nn.Sequential(*map(_block, blocks)))
        self.fc = nn.Linear(network.features, network.classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))

    def blocks(self) -> list[tuple[str, "ResidualBlock"]]:
        """Every block with its name, such as layer1.0, in the order of the forward pass."""
        return [
            (f"{stage}.{number}", block)
            for stage in self.stages
            for number, block in enumerate(getattr(self, stage))
            if isinstance(block, ResidualBlock)
        ]


class ResidualBlock(nn.Module):
    """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        for number, conv in enumerate(block.convs, start=1):
            self.add_module(f"conv{number}", _convolution(conv))
            self.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
        self.downsample = _shortcut(block)  # torchvision's name for the shortcut
        self.plain = block.shortcut == "none"
        self.changes_shape = block.stride != 1 or block.in_channels != block.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual(x)
        if self.downsample is not None:  # a plain block has no shortcut to add
            y = y + self.downsample(x)
        return F.relu(y)

    def skip(self, x: Tensor) -> Tensor | None:
        """What the shortcut gives; None in a plain block."""
        return None if self.downsample is None else self.downsample(x)

    def residual(self, x: Tensor) -> Tensor:
        """F(x): what the block adds to its shortcut."""
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """F is two 3x3 convolutions."""

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(ResidualBlock):
    """F is a 1x1 convolution that narrows, a 3x3, and a 1x1 that widens."""

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class PadShortcut(nn.Module):
    """Option A: take every stride-th pixel and fill the new channels with zeros; no parameters."""

    def __init__(self, stride: int, extra_channels: int) -> None:
        super().__init__()
        self.stride, self.extra_channels = stride, extra_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra_channels={self.extra_channels}"


def _block(block: Block) -> ResidualBlock:
    return Bottleneck(block) if len(block.convs) == 3 else BasicBlock(block)


def _shortcut(block: Block) -> nn.Module | None:
    match block.shortcut:
        case "none":
            return None
        case "identity":
            return nn.Identity()
        case "pad":
            return PadShortcut(block.stride, block.out_channels - block.in_channels)
        case "projection":
            assert block.projection is not None
            return nn.Sequential(_convolution(block.projection), nn.BatchNorm2d(block.out_channels))


def _convolution(conv: Conv) -> nn.Conv2d:
    return nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, bias=False)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """He's normal initialisation of the convolutions, by fan-out; batch normalisation and fc keep torch's defaults,
    which are weight 1 and bias 0, and uniform in +-1/sqrt(features)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
