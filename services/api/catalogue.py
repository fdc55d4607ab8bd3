"""Every network of the paper with what it costs, counted from its description."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from resforge.networks import BOTTLENECK_FROM, IMAGENET_BLOCKS, VGG_CONVS
from resforge.resources import ModelInfo, ModelInput
from resforge.spec import ModelSpec

# He et al. 2015, table 6.
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
SHORTCUTS = ("none", "A", "B", "C")
COUNTED_AT = {
    "cifar": ModelInput(image_size=32, channels=3, classes=10),
    "imagenet": ModelInput(image_size=224, channels=3, classes=1000),
    "vgg": ModelInput(image_size=224, channels=3, classes=1000),
}
# What followed the paper: He et al. 2016, tables 1, 3 and 5; highway networks; stochastic depth; Euler steps.
RELATIVES: tuple[dict[str, Any], ...] = (
    *(
        {"family": "cifar", "depth": depth, "block": "bottleneck", "order": order}
        for depth in (164, 1001)
        for order in ("post", "pre")
    ),
    *({"family": "cifar", "depth": depth, "order": "pre"} for depth in (20, 56, 110)),
    *(
        {"family": "cifar", "depth": 110, "shortcut": shortcut}
        for shortcut in ("scaling", "exclusive-gating", "shortcut-gating", "conv1x1", "dropout")
    ),
    *({"family": "cifar", "depth": depth, "shortcut": "highway"} for depth in (20, 32)),
    {"family": "cifar", "depth": 110, "survival": 0.5},
    *({"family": "cifar", "depth": depth, "tied": True} for depth in (20, 110)),
    *({"family": "imagenet", "depth": depth, "order": "pre"} for depth in (50, 101, 152, 200)),
    *({"family": "vgg", "depth": depth, "norm": norm} for depth in VGG_CONVS for norm in ("none", "batch")),
)


@cache
def models() -> tuple[ModelInfo, ...]:
    """The paper's families at its depths, plain and with each kind of shortcut, v1 and v1.5 where they differ; and what
    followed, at the published depths."""
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
    yield from map(ModelSpec.model_validate, RELATIVES)


def _info(spec: ModelSpec) -> ModelInfo:
    counted = COUNTED_AT[spec.family]
    network = spec.network(channels=counted.channels, classes=counted.classes, image_size=counted.image_size)
    return ModelInfo(
        name=spec.name,
        family=spec.family,
        depth=spec.depth,
        block="none" if spec.family == "vgg" else "bottleneck" if spec.bottleneck else "basic",
        order=spec.order,
        shortcut=spec.shortcut,
        variant=spec.variant,
        norm=spec.norm,
        width=spec.width,
        parameters=network.parameters,
        macs=network.macs,
        input=counted,
    )
