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

    @property
    def id(self) -> str:
        return f"{self.family}-{self.depth}-{self.shortcut}-{self.variant}-{self.size}x{self.channels}"

    @property
    def network(self) -> Network:
        fields = {name: getattr(self, name) for name in ("family", "depth", "shortcut", "variant")}
        model = ModelSpec.model_validate(fields)
        return model.network(channels=self.channels, classes=self.classes, image_size=self.size)


def _imagenet(depth: int, shortcut: str, variant: str, parameters: int, gmacs: float | None) -> Row:
    return Row("imagenet", depth, shortcut, variant, 3, 1000, 224, parameters, gmacs, 1e9)


def _cifar(depth: int, shortcut: str, parameters: int, macs: float, unit: float = 1e6) -> Row:
    return Row("cifar", depth, shortcut, "v1", 3, 10, 32, parameters, macs, unit)


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
)

# Recipe -> the error published for it, in percent.
ERRORS: dict[str, float] = {
    "cifar10/resnet-20": 8.75,
    "cifar10/resnet-32": 7.51,
    "cifar10/resnet-44": 7.17,
    "cifar10/resnet-56": 6.97,
    "cifar10/resnet-110": 6.43,
    "cifar10/resnet-1202": 7.93,
    "imagenet/plain-18": 27.94,
    "imagenet/plain-34": 28.54,
    "imagenet/resnet-18": 27.88,
    "imagenet/resnet-34-A": 25.03,
    "imagenet/resnet-34": 24.52,
    "imagenet/resnet-34-C": 24.19,
    "imagenet/resnet-50": 22.85,
    "imagenet/resnet-101": 21.75,
    "imagenet/resnet-152": 21.43,
}
