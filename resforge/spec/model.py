"""Which network: a choice of family, depth and shortcuts, and of what followed the paper."""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from resforge.networks import (
    GATE_BIAS,
    IMAGENET_BLOCKS,
    VGG_CONVS,
    Network,
    default_shortcut,
    describe,
    has_bottlenecks,
)
from resforge.spec.base import Part

OPTIONS = ("none", "A", "B", "C")


class ModelSpec(Part):
    """Which network to train (He et al. 2015, tables 1 and 6; 2016, table 1)."""

    family: Literal["cifar", "imagenet", "vgg"] = Field(
        description="cifar: 6n+2 layers of 3x3 convolutions, or 9n+2 with bottlenecks. imagenet: 18, 34, 50, 101, 152 "
        "or 200 layers. vgg: 11, 13, 16 or 19 layers."
    )
    # The bound is against a typing error that would describe a network until the memory is full.
    depth: int = Field(le=20_000, description="Weighted layers, counted as in the paper.")
    block: Literal["basic", "bottleneck"] | None = Field(
        default=None, description="Left out: basic, and bottleneck for imagenet from 50 layers."
    )
    tied: bool = Field(
        default=False,
        description="Blocks of a stage that keep the shape share their weights, and go y = x + step F(x): Euler's "
        "method for an ordinary differential equation.",
    )
    step: float = Field(default=1.0, gt=0, le=100, description="Of Euler's method, for a tied network.")
    order: Literal["post", "pre"] = Field(
        default_factory=lambda model: "pre" if model["tied"] else "post",
        description="post: batch norm and relu behind convolutions, and a relu behind the addition (2015). pre: both "
        "before each convolution, and nothing behind the addition (He et al. 2016). Left out: post; pre where tied.",
    )
    shortcut: Literal[
        "none", "A", "B", "C",
        "scaling", "exclusive-gating", "shortcut-gating", "conv1x1", "dropout", "highway",
    ] = Field(
        default_factory=lambda model: default_shortcut(
            model["family"], has_bottlenecks(model["family"], model["depth"], model["block"])
        ),
        description="none: plain. A: identity, zero-padded where channels grow. B: projection where the shape "
        "changes. C: projection everywhere. Left out: A for cifar, B for imagenet and bottlenecks, as in the paper. "
        "He et al. 2016, figure 2: scaling, exclusive-gating, shortcut-gating, conv1x1 (option C by its later name) "
        "and dropout, on what is otherwise left-out's shortcut. highway: each layer y = T(x) H(x) + (1 - T(x)) x with "
        "a 3x3 gate, plain where the shape changes (Srivastava et al. 2015).",
    )  # fmt: skip
    variant: Literal["v1", "v1.5"] = Field(
        default="v1", description="Where a bottleneck strides: v1 on its first 1x1 (the paper), v1.5 on its 3x3."
    )
    norm: Literal["batch", "none"] = Field(
        default_factory=lambda model: "none" if model["family"] == "vgg" else "batch",
        description="Batch normalisation, or none (vgg alone). Left out: none for vgg, as published.",
    )
    width: int = Field(
        default_factory=lambda model: 16 if model["family"] == "cifar" else 64,
        ge=1,
        le=1024,
        description="Channels of the first stage. Left out: 16 for cifar, 64 for imagenet and vgg.",
    )
    residual_scale: float = Field(default=1.0, gt=0, le=100, description="A constant factor of F(x).")
    shortcut_scale: float = Field(
        default=0.5, ge=0, le=100, description="For shortcut scaling: the constant factor of the shortcut."
    )
    gate_bias: float | None = Field(
        default=None,
        ge=-100,
        le=100,
        description="For gates: their first bias. Left out: -6 for exclusive and shortcut gating, -2 for highway.",
    )
    shortcut_dropout: float = Field(
        default=0.5, ge=0, lt=1, description="For shortcut dropout: the share of its values that is dropped."
    )
    survival: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Stochastic depth (Huang et al. 2016): the probability that the last block's F(x) is there in a "
        "step of training; the other blocks' fall linearly from 1. 1: off.",
    )

    @model_validator(mode="after")
    def _exists(self) -> Self:
        self._depth_exists()
        if self.family == "vgg":
            self._vgg_has_no_blocks()
            return self
        if self.norm == "none":
            raise _refusal("norm", "only a vgg network goes without batch normalisation; batch is accepted")
        if self.variant == "v1.5" and not self.bottleneck:
            raise _refusal(
                "variant", "v1.5 moves a bottleneck's stride, and this network has no bottleneck; v1 is accepted"
            )
        self._shortcut_fits()
        self._has_what_its_numbers_are_for()
        return self

    def _depth_exists(self) -> None:
        if self.family == "cifar":
            layers = 9 if self.bottleneck else 6
            if self.depth < layers + 2 or (self.depth - 2) % layers:
                below = max(layers + 2, (self.depth - 2) // layers * layers + 2)
                raise _refusal(
                    "depth",
                    "a cifar network has {layers}n+2 layers with n >= 1, and {depth} is not; "
                    "the nearest are {below} and {above}",
                    layers=layers,
                    depth=self.depth,
                    below=below,
                    above=below + layers,
                )
            return
        accepted = tuple(IMAGENET_BLOCKS if self.family == "imagenet" else VGG_CONVS)
        if self.depth not in accepted:
            raise _refusal(
                "depth",
                "{article} {family} network has {accepted} layers, not {depth}",
                article="an" if self.family == "imagenet" else "a",
                family=self.family,
                accepted=", ".join(map(str, accepted)),
                depth=self.depth,
            )
        usual = "bottleneck" if has_bottlenecks(self.family, self.depth) else "basic"
        if self.family == "imagenet" and self.block not in (None, usual):
            raise _refusal(
                "block", "an imagenet network of {depth} layers has {usual} blocks", depth=self.depth, usual=usual
            )

    def _vgg_has_no_blocks(self) -> None:
        for field, value in _OF_BLOCKS.items():
            given = getattr(self, field)
            if given != value:
                raise _refusal(
                    field,
                    "a vgg network has neither blocks nor shortcuts; {value} is accepted",
                    value=str(value).lower(),
                )

    def _shortcut_fits(self) -> None:
        if self.shortcut == "highway" and self.bottleneck:
            raise _refusal("shortcut", "a highway network has one 3x3 convolution a layer; bottlenecks have none")
        if self.tied and (self.order != "pre" or self.shortcut not in ("A", "B")):
            field, accepted = ("order", "pre") if self.order != "pre" else ("shortcut", "A and B")
            raise _refusal(
                field,
                "a tied network goes y = x + step F(x), in pre-activation order and with identity shortcuts; "
                "accepted here: {accepted}",
                accepted=accepted,
            )
        if self.order == "pre" and self.shortcut == "none":
            raise _refusal(
                "order",
                "without shortcuts pre- and post-activation are one network (He et al. 2016, section 4.1); "
                "post is accepted",
            )
        if self.order == "pre" and self.shortcut not in OPTIONS:
            raise _refusal(
                "shortcut",
                "the shortcut {shortcut} is one of post-activation; with order pre A, B and C are accepted",
                shortcut=self.shortcut,
            )

    def _has_what_its_numbers_are_for(self) -> None:
        for field, default, owner, has in (
            ("gate_bias", None, "a gating or highway shortcut", self.shortcut in GATE_BIAS),
            ("shortcut_scale", 0.5, "the shortcut scaling", self.shortcut == "scaling"),
            ("shortcut_dropout", 0.5, "the shortcut dropout", self.shortcut == "dropout"),
            ("residual_scale", 1.0, "a shortcut beside F(x)", self._adds),
            ("step", 1.0, "a tied network", self.tied),
            ("survival", 1.0, "a shortcut in every block", self._adds),
        ):
            if getattr(self, field) != default and not has:
                raise _refusal(field, "{field} needs {owner}, and this network has none", owner=owner)
        if self.tied and (self.residual_scale != 1 or self.survival != 1):
            field = "residual_scale" if self.residual_scale != 1 else "survival"
            hint = "step scales its F(x)" if field == "residual_scale" else "blocks that are one can't be dropped apart"
            raise _refusal(field, "a tied network has no {field}: {hint}; 1 is accepted", hint=hint)

    @property
    def _adds(self) -> bool:
        """Whether every block adds something to its shortcut."""
        return self.shortcut not in ("none", "highway")

    @property
    def bottleneck(self) -> bool:
        """Whether its blocks are bottlenecks."""
        return has_bottlenecks(self.family, self.depth, self.block)

    @property
    def grows(self) -> bool:
        """Whether identity blocks can be appended to its stages: those of identity shortcuts, and plain ones."""
        identities = self.shortcut in ("A", "B", "dropout") or (self.shortcut == "none" and not self.bottleneck)
        return self.family != "vgg" and not self.tied and self.survival == 1 and identities

    @property
    def name(self) -> str:
        """The usual name, such as `cifar/resnet-20`, `imagenet/plain-34` or `cifar/preact-110`.

        Numbers that may be anything (width, biases, factors) are not in it.
        """
        if self.family == "vgg":
            return f"vgg/vgg-{self.depth}" + ("-bn" if self.norm == "batch" else "")
        kind = "preact" if self.order == "pre" else {"none": "plain", "highway": "highway"}.get(self.shortcut, "resnet")
        name = f"{self.family}/{'euler' if self.tied else kind}-{self.depth}"
        if self.family == "cifar" and self.bottleneck:
            name += "-bottleneck"
        if self.variant != "v1":
            name += f"-{self.variant}"
        if self.shortcut not in ("none", "highway", default_shortcut(self.family, self.bottleneck)):
            name += f"-{self.shortcut}"
        return name if self.survival == 1 else f"{name}-stochastic"

    def network(self, *, channels: int, classes: int, image_size: int) -> Network:
        """Describe the network for images of `image_size` x `image_size` x `channels` and `classes` outputs.

        Raises:
            ValueError: the images are too small for the network.
        """
        return describe(**self.model_dump(), channels=channels, classes=classes, image_size=image_size)


# What a network without blocks has in the fields that are about them.
_OF_BLOCKS = {
    "block": None, "tied": False, "step": 1.0, "order": "post", "shortcut": "none", "variant": "v1",
    "residual_scale": 1.0, "shortcut_scale": 0.5, "gate_bias": None, "shortcut_dropout": 0.5, "survival": 1.0,
}  # fmt: skip


def _refusal(field: str, message: str, **context: object) -> PydanticCustomError:
    return PydanticCustomError(field, message, {**context, "field": field})
