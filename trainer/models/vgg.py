"""VGG networks as torch modules (Simonyan and Zisserman 2015), with torchvision's state-dict names: features.0,
features.2, ..., classifier.0, classifier.3, classifier.6. Weights pass both ways."""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resforge.networks import VggNetwork
from resforge.networks.vgg import POOLED
from trainer.models.residual import convolution


class Vgg(nn.Module):
    """(N, channels, image_size, image_size) float -> (N, classes) logits; images of any size from 8x8 pixels pass."""

    def __init__(self, network: VggNetwork) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in network.stages:
            for conv in stage:
                norm = [nn.BatchNorm2d(conv.out_channels)] if conv.norm == "after" else []
                layers += [convolution(conv), *norm, nn.ReLU(inplace=True)]
            layers.append(Pool())
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        hidden = network.hidden
        self.classifier = nn.Sequential(
            nn.Linear(network.stages[-1][-1].out_channels * POOLED**2, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Linear(hidden, network.classes),
        )  # fmt: skip
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Pool(nn.Module):
    """A 2x2 max pool; a map of one pixel's side stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x


@torch.no_grad()
def _initialise(network: Vgg) -> None:
    """He's normal initialisation, by fan-out; fully connected layers from a normal distribution of deviation 0.01
    (Simonyan and Zisserman 2015, section 3.1); biases 0."""
    for module in chain(network.features, network.classifier):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
