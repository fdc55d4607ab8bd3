"""Every network of the paper with what it costs, counted from its description."""

from collections.abc import Iterator
from functools import cache

from resforge.networks import BOTTLENECK_FROM, IMAGENET_BLOCKS
from resforge.resources import ModelInfo, ModelInput
from resforge.spec import ModelSpec

# He et al. 2015, table 6.
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
SHORTCUTS = ("none", "A", "B", "C")
COUNTED_AT = {
    "cifar": ModelInput(image_size=32, channels=3, classes=10),
    "imagenet": ModelInput(image_size=224, channels=3, classes=1000),
}


@cache
def models() -> tuple[ModelInfo, ...]:
    """Both families at the paper's depths, plain and with each kind of shortcut, v1 and v1.5 where they differ."""
    return tuple(_info(spec) for spec in _specs())


def _specs() -> Iterator[ModelSpec]:
    for depth in CIFAR_DEPTHS:
        for shortcut in SHORTCUTS:
            yield ModelSpec.model_validate({"family": "cifar", "depth": depth, "shortcut": shortcut})
    for depth in IMAGENET_BLOCKS:
        for variant in ("v1", "v1.5") if depth >= BOTTLENECK_FROM else ("v1",):
            for shortcut in SHORTCUTS:
                fields = {"family": "imagenet", "depth": depth, "shortcut": shortcut, "variant": variant}
                yield ModelSpec.model_validate(fields)


def _info(spec: ModelSpec) -> ModelInfo:
    counted = COUNTED_AT[spec.family]
    network = spec.network(channels=counted.channels, classes=counted.classes, image_size=counted.image_size)
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        depth=spec.depth,
        shortcut=spec.shortcut,
        variant=spec.variant,
        width=spec.width,
        parameters=network.parameters,
        macs=network.macs,
        input=counted,
    )
