"""Residual networks and their relatives as torch modules, built from their descriptions.

Every block computes y = F(x) + shortcut(x), and all else is a choice in it: no shortcut (plain), batch norm and relu
behind the convolutions or before them (He et al. 2016), gates, factors and dropout on the shortcut, an F that is there
in some steps of training only, an F that many blocks share.

State-dict names are torchvision's (conv1, bn1, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc), so weights of the
ImageNet family with option B pass both ways; the CIFAR family uses the same scheme with three stages.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resforge.networks import Block, Conv, ResidualNetwork


class ResNet(nn.Module):
    """(N, channels, image_size, image_size) float -> (N, classes) logits.

    The global average lets other sizes through as well, from the family's least size up.
    """

    def __init__(self, network: ResidualNetwork) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(network.stem), nn.BatchNorm2d(network.stem.out_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if network.stem_pool else nn.Identity()
        self.stages = tuple(f"layer{number}" for number, _ in enumerate(network.stages, start=1))
        built: dict[str, ResidualBlock] = {}
        for name, blocks in zip(self.stages, network.stages, strict=True):
            for block in blocks:
                kind = _KINDS[len(block.convs)]
                built[block.name] = Repeated(block, built[block.shares]) if block.shares else kind(block)
            self.add_module(name, nn.Sequential(*(built[block.name] for block in blocks)))
        self.norm = nn.BatchNorm2d(network.features) if network.last_norm else None
        self.fc = nn.Linear(network.features, network.classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.head(x)

    def stem(self, images: Tensor) -> Tensor:
        """What the first block sees of images."""
        return self.maxpool(F.relu(self.bn1(self.conv1(images))))

    def head(self, x: Tensor) -> Tensor:
        """The logits of what the last block gives."""
        if self.norm is not None:
            x = F.relu(self.norm(x))
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
        for number, conv in enumerate(() if block.shares else block.convs, start=1):
            self.add_module(f"conv{number}", convolution(conv))
            if conv.norm != "none":
                channels = conv.in_channels if conv.norm == "before" else conv.out_channels
                self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
        self.downsample = _shortcut(block)  # torchvision's name for the shortcut
        if block.gate:
            self.gate = convolution(block.gate)
            self.gate_bias = block.gate_bias
        self.plain = block.shortcut == "none"
        self.changes_shape = block.changes_shape
        self.pre = block.order == "pre"
        self.gated = block.gated
        self.residual_scale, self.shortcut_scale = block.residual_scale, block.shortcut_scale
        self.dropout, self.survival = block.dropout, block.survival

    def forward(self, x: Tensor) -> Tensor:
        seen = self.before(x)
        return self.join(x, self.layers(seen), self.shortcut(x, seen))

    def before(self, x: Tensor) -> Tensor:
        """What F's first convolution sees of the block's input: in pre-activation order, its first activation."""
        return F.relu(self.bn1(x)) if self.pre and hasattr(self, "bn1") else x

    def layers(self, seen: Tensor) -> Tensor:
        """F, behind its first activation."""
        raise NotImplementedError

    def shortcut(self, x: Tensor, seen: Tensor) -> Tensor | None:
        """What the shortcut gives; None in a plain block. A projection shares F's first activation."""
        if self.downsample is None:
            return None
        return self.downsample(seen if isinstance(self.downsample, nn.Sequential) else x)

    def residual(self, x: Tensor) -> Tensor:
        """F(x), before any factor."""
        return self.layers(self.before(x))

    def skip(self, x: Tensor) -> Tensor | None:
        """The shortcut of x, before any factor; None in a plain block."""
        return self.shortcut(x, self.before(x))

    def join(self, x: Tensor, residual: Tensor | None, skipped: Tensor | None) -> Tensor:
        """The block's output.

        Args:
            x: its input, which the gate looks at.
            residual: F(x); None: as if it were 0.
            skipped: what the shortcut gives; None: as if it were 0.
        """
        if skipped is not None:
            residual, skipped = self._weighed(x, residual, skipped)
        match residual, skipped:
            case None, Tensor():
                y = skipped
            case Tensor(), None:
                y = residual
            case Tensor(), Tensor():
                y = residual + skipped
            case _:
                raise ValueError("a plain block without F has no output")
        return y if self.pre else F.relu(y)

    def _weighed(self, x: Tensor, residual: Tensor | None, skipped: Tensor) -> tuple[Tensor | None, Tensor]:
        """F(x) and the shortcut, each with its factor."""
        if self.gated != "none":
            gate = torch.sigmoid(self.gate(x))
            skipped = skipped * (1 - gate)
            if residual is not None and self.gated == "both":
                residual = residual * gate
        if self.shortcut_scale != 1:
            skipped = skipped * self.shortcut_scale
        if self.dropout:
            skipped = F.dropout(skipped, self.dropout, self.training)
        if residual is not None and self.residual_scale != 1:
            residual = residual * self.residual_scale
        if residual is not None and self.survival != 1:
            # A factor of 0 leaves every weight its gradient, which DDP waits for.
            residual = residual * (_survives(self.survival, x) if self.training else self.survival)
        return residual, skipped


def _survives(probability: float, like: Tensor) -> Tensor:
    """1 with this probability, else 0: one draw for the whole batch (Huang et al. 2016, section 3)."""
    return (torch.rand((), device=like.device) < probability).to(like.dtype)


class HighwayLayer(ResidualBlock):
    """F is one 3x3 convolution with its relu; no relu is needed behind a mean of two relus' outputs."""

    def layers(self, seen: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(seen)))


class BasicBlock(ResidualBlock):
    """F is two 3x3 convolutions."""

    def layers(self, seen: Tensor) -> Tensor:
        if self.pre:
            return self.conv2(F.relu(self.bn2(self.conv1(seen))))
        x = F.relu(self.bn1(self.conv1(seen)))
        return self.bn2(self.conv2(x))


class Bottleneck(ResidualBlock):
    """F is a 1x1 convolution that narrows, a 3x3, and a 1x1 that widens."""

    def layers(self, seen: Tensor) -> Tensor:
        if self.pre:
            x = self.conv2(F.relu(self.bn2(self.conv1(seen))))
            return self.conv3(F.relu(self.bn3(x)))
        x = F.relu(self.bn1(self.conv1(seen)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class Repeated(ResidualBlock):
    """A block whose F is another's: one more step of Euler's method. It has no weights of its own."""

    def __init__(self, block: Block, owner: ResidualBlock) -> None:
        super().__init__(block)
        self._owner = (owner,)  # not as a submodule, whose weights would be in the state dict twice

    @property
    def owner(self) -> ResidualBlock:
        """The block whose F this is."""
        return self._owner[0]

    def before(self, x: Tensor) -> Tensor:
        return self.owner.before(x)

    def layers(self, seen: Tensor) -> Tensor:
        return self.owner.layers(seen)


_KINDS: dict[int, type[ResidualBlock]] = {1: HighwayLayer, 2: BasicBlock, 3: Bottleneck}


class PadShortcut(nn.Module):
    """Option A: take every stride-th pixel and fill the new channels with zeros; no parameters."""

    def __init__(self, stride: int, extra_channels: int) -> None:
        super().__init__()
        self.stride, self.extra_channels = stride, extra_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, extra_channels={self.extra_channels}"


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
            behind = [nn.BatchNorm2d(block.out_channels)] if block.projection.norm == "after" else []
            return nn.Sequential(convolution(block.projection), *behind)


def convolution(conv: Conv) -> nn.Conv2d:
    """The convolution alone, without its batch normalisation."""
    return nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel, conv.stride, conv.padding, bias=conv.bias)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """He's normal initialisation of the convolutions, by fan-out; batch normalisation and fc keep torch's defaults,
    which are weight 1 and bias 0, and uniform in +-1/sqrt(features). A gate's bias is its block's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, ResidualBlock) and module.gated != "none":
            nn.init.constant_(cast(nn.Conv2d, module.gate).bias, module.gate_bias)
