"""Figures of He et al. 2015 and of torchvision's networks, typed in by hand, for tests to compare with."""

from typing import NamedTuple

from resforge.networks import Network
from resforge.spec import ModelSpec


class Row(NamedTuple):
    """A network and what is known of it. `macs` is in units of `unit`, rounded to the digits given."""

    family: str
    depth: int
    shortcut: str
    variant: str
    channels: int
    classes: int
    size: int
    parameters: int
    macs: float | None
    unit: float

    others: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        names = (self.family, self.depth, self.shortcut, self.variant, *(value for _, value in self.others))
        return f"{'-'.join(map(str, names))}-{self.size}x{self.channels}"

    @property
    def network(self) -> Network:
        fields = {name: getattr(self, name) for name in ("family", "depth", "shortcut", "variant")}
        model = ModelSpec.model_validate({**fields, **dict(self.others)})
        return model.network(channels=self.channels, classes=self.classes, image_size=self.size)


def _imagenet(depth: int, shortcut: str, variant: str, parameters: int, gmacs: float | None) -> Row:
    return Row("imagenet", depth, shortcut, variant, 3, 1000, 224, parameters, gmacs, 1e9)


def _cifar(depth: int, shortcut: str, parameters: int, macs: float, unit: float = 1e6) -> Row:
    return Row("cifar", depth, shortcut, "v1", 3, 10, 32, parameters, macs, unit)


def _vgg(depth: int, norm: str, parameters: int, gmacs: float) -> Row:
    """Parameters and multiply-adds as torchvision publishes them."""
    return Row("vgg", depth, "none", "v1", 3, 1000, 224, parameters, gmacs, 1e9, (("norm", norm),))


_CIFAR = (
    (20, 269_722, 40.55, 1e6),
    (32, 464_154, 68.86, 1e6),
    (44, 658_586, 97.17, 1e6),
    (56, 853_018, 125.49, 1e6),
    (110, 1_727_962, 252.89, 1e6),
    (1202, 19_421_274, 2.829, 1e9),
)

ROWS: tuple[Row, ...] = (
    _imagenet(18, "B", "v1", 11_689_512, 1.814),
    _imagenet(34, "B", "v1", 21_797_672, 3.664),
    _imagenet(50, "B", "v1.5", 25_557_032, 4.089),
    _imagenet(50, "B", "v1", 25_557_032, 3.858),
    _imagenet(101, "B", "v1.5", 44_549_160, 7.801),
    _imagenet(101, "B", "v1", 44_549_160, 7.570),
    _imagenet(152, "B", "v1.5", 60_192_808, 11.514),
    _imagenet(152, "B", "v1", 60_192_808, 11.282),
    *(_imagenet(18, shortcut, "v1", 11_515_688, None) for shortcut in ("none", "A")),
    *(_imagenet(34, shortcut, "v1", 21_623_848, None) for shortcut in ("none", "A")),
    _imagenet(34, "C", "v1", 22_716_840, None),
    *(_cifar(depth, shortcut, *figures) for depth, *figures in _CIFAR for shortcut in ("none", "A")),
    Row("cifar", 20, "A", "v1", 1, 10, 28, 269_434, None, 1e6),
    # As timm publishes it.
    _imagenet(200, "B", "v1.5", 64_673_832, 15.01),
    _vgg(11, "none", 132_863_336, 7.609),
    _vgg(11, "batch", 132_868_840, 7.609),
    _vgg(13, "none", 133_047_848, 11.308),
    _vgg(13, "batch", 133_053_736, 11.308),
    _vgg(16, "none", 138_357_544, 15.47),
    _vgg(16, "batch", 138_365_992, 15.47),
    _vgg(19, "none", 143_667_240, 19.632),
    _vgg(19, "batch", 143_678_248, 19.632),
)

# Published in millions (Zagoruyko and Komodakis 2016, table 5): fields, parameters.
MILLIONS: tuple[tuple[dict[str, object], float], ...] = (
    ({"family": "cifar", "depth": 110, "order": "pre"}, 1.7),
    ({"family": "cifar", "depth": 164, "block": "bottleneck", "order": "pre"}, 1.7),
)

# Recipe -> CIFAR-10 test errors in percent (He et al. 2015, table 6; 2016, tables 1 and 3).
ERRORS: dict[str, tuple[float, ...]] = {
    "cifar10/resnet-20": (8.75,),
    "cifar10/resnet-32": (7.51,),
    "cifar10/resnet-44": (7.17,),
    "cifar10/resnet-56": (6.97,),
    "cifar10/resnet-110": (6.43,),
    "cifar10/resnet-1202": (7.93,),
    "cifar10/highway-20": (7.54,),
    "cifar10/highway-32": (8.80,),
    "cifar10/preact-110": (6.37,),
    "cifar10/resnet-164": (5.93,),
    "cifar10/preact-164": (5.46,),
    "cifar10/resnet-1001": (7.61,),
    "cifar10/preact-1001": (4.92,),
    "cifar10/resnet-110-scaling": (12.35,),
    "cifar10/resnet-110-exclusive-gating": (8.70,),
    "cifar10/resnet-110-shortcut-gating": (6.91,),
    "cifar10/resnet-110-shortcut-gating-0": (12.86,),
    "cifar10/resnet-110-conv1x1": (12.22,),
    # Li et al. 2018, table 1, without shortcuts
    "cifar10/plain-20": (8.18,),
    "cifar10/plain-56": (13.31,),
    "cifar10/plain-110": (16.44,),
    "cifar10/resnet-110-stochastic": (5.23,),
}

# Network -> views -> top-1 and top-5 error in percent (He et al. 2015, tables 2 to 4).
IMAGENET_ERRORS: dict[str, dict[str, tuple[float, ...]]] = {
    "plain-18": {"ten-crop": (27.94,)},
    "resnet-18": {"ten-crop": (27.88,)},
    "plain-34": {"ten-crop": (28.54, 10.02)},
    "resnet-34-A": {"ten-crop": (25.03, 7.76)},
    "resnet-34": {"ten-crop": (24.52, 7.46), "multi-scale": (21.84, 5.71)},
    "resnet-34-C": {"ten-crop": (24.19, 7.40), "multi-scale": (21.53, 5.60)},
    "resnet-50": {"ten-crop": (22.85, 6.71), "multi-scale": (20.74, 5.25)},
    "resnet-101": {"ten-crop": (21.75, 6.05), "multi-scale": (19.87, 4.60)},
    "resnet-152": {"ten-crop": (21.43, 5.71), "multi-scale": (19.38, 4.49)},
    "vgg-16": {"ten-crop": (28.07, 9.33)},
}
# Network -> torchvision's accuracy with its first weights, in percent.
TORCHVISION = {"resnet-34": 73.314, "resnet-50": 76.130, "resnet-101": 77.374, "resnet-152": 78.312, "vgg-19": 72.376}
