"""An exponential moving average of a network's weights, which is evaluated in their stead."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a network's parameters over the optimiser steps, on their device.

    Behind step t it is d * average + (1 - d) * weights, with d the lower of `decay` and (1 + t) / (10 + t): a short
    run's average would else be its random first weights (as TensorFlow's ExponentialMovingAverage has it). Buffers,
    which are batch norm's running statistics, are averages already, and the network's own are used.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.values = [parameter.detach().clone() for parameter in network.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that the network has after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self._parameters(), 1 - decay)

    @torch.no_grad()
    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from the parameters of a state dict."""
        for value, (name, _) in zip(self.values, self.network.named_parameters(), strict=True):
            value.copy_(weights[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the network has the average for its weights; behind, its own again to the last bit."""
        own = [parameter.clone() for parameter in self._parameters()]
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The network's state dict with the average for its weights, copied."""
        with self.applied():
            return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.network.parameters()]

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters(), values, strict=True):
            parameter.copy_(value)
