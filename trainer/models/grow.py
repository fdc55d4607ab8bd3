"""A deeper network that computes what a shallower one does: the construction of He et al. 2015, section 1.

Blocks are appended to each stage as identities. In evaluation mode the logits stay equal to the last bit; in training
mode only a residual network's do, since batch statistics are never those that a plain identity was built for.
"""

import math

import torch
from torch import Tensor

from resforge.networks import Block, Network, ResidualNetwork

EPS = 1e-5  # of batch normalisation


def grow(shallow: dict[str, Tensor], before: Network, after: Network) -> dict[str, Tensor]:
    """The state dict of a deeper network whose first blocks of each stage are the shallow one's.

    A residual block is an identity when the last batch norm's weight is 0: F(x) = 0, and what a post-activation block
    sees is a relu's output, so relu(x + 0) = x. A plain one is when its kernels are Dirac's and its batch norm undoes
    nothing.

    Args:
        shallow: the state dict of the network `before`.
        before, after: descriptions of the shallow and of the deeper network.

    Raises:
        ValueError: the networks differ in more than in blocks at the end of stages, or the added blocks can't be
            identities.
    """
    if not isinstance(before, ResidualNetwork) or not isinstance(after, ResidualNetwork):
        raise ValueError("only networks of blocks grow; those of the cifar and imagenet families are accepted")
    if before.stem != after.stem or before.classes != after.classes or len(before.stages) != len(after.stages):
        raise ValueError("only networks of the same family, width, images and classes grow into each other")
    state = dict(shallow)
    for old, new in zip(before.stages, after.stages, strict=True):
        if len(new) < len(old) or new[: len(old)] != old:
            raise ValueError(
                f"the network of {after.depth} layers does not begin as the one of {before.depth} in each of its stages"
            )
        for block in new[len(old) :]:
            state |= _identity(block)
    return state


def _identity(block: Block) -> dict[str, Tensor]:
    if block.changes_shape or block.shortcut not in ("identity", "none"):
        raise ValueError(f"the block {block.name} can't be an identity: its shortcut is {block.shortcut}")
    if block.gated != "none" or block.shortcut_scale != 1 or block.shares:
        how = "shares its weights" if block.shares else "weighs its shortcut"
        raise ValueError(f"the block {block.name} can't be an identity: it {how}")
    plain = block.shortcut == "none"
    if plain and any(conv.kernel == 1 for conv in block.convs):
        raise ValueError(f"the plain bottleneck {block.name} can't be an identity: it narrows")
    state: dict[str, Tensor] = {}
    for number, conv in enumerate(block.convs, start=1):
        shape = (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel)
        norm = f"{block.name}.bn{number}"
        channels = conv.in_channels if conv.norm == "before" else conv.out_channels
        if plain:
            kernel = torch.nn.init.dirac_(torch.empty(shape))
            # A variance of 1 - eps makes the divisor sqrt(1 - eps + eps) = 1, exactly.
            gamma, variance = torch.ones(channels), torch.full((channels,), _variance())
        else:
            kernel = torch.nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", nonlinearity="relu")
            last = number == len(block.convs)
            gamma, variance = torch.full((channels,), 0.0 if last else 1.0), torch.ones(channels)
        state[f"{conv.name}.weight"] = kernel
        state |= {
            f"{norm}.weight": gamma,
            f"{norm}.bias": torch.zeros(channels),
            f"{norm}.running_mean": torch.zeros(channels),
            f"{norm}.running_var": variance,
            f"{norm}.num_batches_tracked": torch.tensor(0),
        }
    return state


def _variance() -> float:
    """A float32 variance v with v + eps = 1 in float32, so that nothing is rounded."""
    value = torch.tensor(1.0) - torch.tensor(EPS)
    while value + torch.tensor(EPS) < 1:
        value = torch.nextafter(value, torch.tensor(math.inf))
    return float(value)
