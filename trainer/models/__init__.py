"""The networks, built from their descriptions in resforge.networks."""

from resforge.networks import Network, ResidualNetwork, VggNetwork
from trainer.models.residual import ResNet
from trainer.models.vgg import Vgg

__all__ = ["ResNet", "Vgg", "build"]


def build(network: Network) -> ResNet | Vgg:
    """Build the network that a description describes, initialised as published.

    Weights are drawn from torch's global random state, in a fixed order: the same `torch.manual_seed` before the call
    gives the same weights to the last bit. Under `torch.device("meta")` nothing is drawn or allocated.
    """
    match network:
        case ResidualNetwork():
            return ResNet(network)
        case VggNetwork():
            return Vgg(network)
    raise TypeError(f"no network is built from {type(network).__name__}")
