"""Every architecture as data, its parameters and multiply-adds counted from the description in pure Python.

The trainer builds its modules from these descriptions, so what is counted is what is trained. Multiply-adds (MAC) are
those of convolutions and fully connected layers, one for a multiplication with its addition, as the paper counts;
torch's FlopCounterMode counts two.
"""

from resforge.networks.families import default_shortcut, describe, has_bottlenecks
from resforge.networks.layers import Block, Conv, Linear, Network, Norm
from resforge.networks.residual import BOTTLENECK_FROM, GATE_BIAS, IMAGENET_BLOCKS, ResidualNetwork
from resforge.networks.vgg import VGG_CONVS, VggNetwork

__all__ = [
    "BOTTLENECK_FROM", "GATE_BIAS", "IMAGENET_BLOCKS", "VGG_CONVS", "Block", "Conv", "Linear", "Network", "Norm",
    "ResidualNetwork", "VggNetwork", "default_shortcut", "describe", "has_bottlenecks",
]  # fmt: skip
