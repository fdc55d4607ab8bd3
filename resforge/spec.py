"""The contract: what a job is asked to be.

A `JobSpec` is a frozen, complete value. All that can be told to be wrong from the spec alone is refused here and
nowhere else; what only the operator knows (which datasets exist) is checked by the API.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from resforge.networks import IMAGENET_BLOCKS, Network, describe

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9._/]{0,61}[a-z0-9])?$")]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9A-Z]([-a-zA-Z0-9._/]{0,61}[a-zA-Z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


class Part(BaseModel):
    """A frozen part of a spec that refuses unknown fields, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python's True is a 1 and YAML's `on` is True, so `epochs: on` would train for one epoch.
        if isinstance(value, bool) and info.field_name:
            accepted = cls.model_fields[info.field_name].annotation
            if {int, float} & {accepted, *get_args(accepted)}:
                raise PydanticCustomError("number", "expected a number, not true or false")
        return value


class ModelSpec(Part):
    """Which network to train (He et al. 2015, tables 1 and 6)."""

    family: Literal["cifar", "imagenet"] = Field(
        description="cifar: 6n+2 layers of 3x3 convolutions. imagenet: 18, 34, 50, 101 or 152 layers."
    )
    # The bound is against a typing error that would describe a network until the memory is full.
    depth: int = Field(le=20_000, description="Weighted layers, counted as in the paper.")
    shortcut: Literal["none", "A", "B", "C"] = Field(
        default_factory=lambda model: "A" if model["family"] == "cifar" else "B",
        description="none: plain. A: identity, zero-padded where channels grow. B: projection where the shape "
        "changes. C: projection everywhere. Left out: A for cifar, B for imagenet, as in the paper.",
    )
    variant: Literal["v1", "v1.5"] = Field(
        default="v1", description="Where a bottleneck strides: v1 on its first 1x1 (the paper), v1.5 on its 3x3."
    )
    width: int = Field(
        default_factory=lambda model: 16 if model["family"] == "cifar" else 64,
        ge=1,
        le=1024,
        description="Channels of the first stage. Left out: 16 for cifar, 64 for imagenet.",
    )

    @model_validator(mode="after")
    def _depth_exists(self) -> Self:
        if self.family == "cifar" and (self.depth < 8 or (self.depth - 2) % 6):
            below = max(8, (self.depth - 2) // 6 * 6 + 2)
            raise PydanticCustomError(
                "depth",
                "a cifar network has 6n+2 layers with n >= 1, and {depth} is not; the nearest are {below} and {above}",
                {"depth": self.depth, "below": below, "above": below + 6, "field": "depth"},
            )
        if self.family == "imagenet" and self.depth not in IMAGENET_BLOCKS:
            raise PydanticCustomError(
                "depth",
                "an imagenet network has {accepted} layers, not {depth}",
                {"depth": self.depth, "accepted": ", ".join(map(str, IMAGENET_BLOCKS)), "field": "depth"},
            )
        if self.variant == "v1.5" and not (self.family == "imagenet" and self.depth >= 50):
            raise PydanticCustomError(
                "variant",
                "v1.5 moves a bottleneck's stride, and this network has no bottleneck; v1 is accepted",
                {"field": "variant"},
            )
        return self

    @property
    def name(self) -> str:
        """The usual name, such as `cifar/resnet-20` or `imagenet/plain-34`."""
        kind = "plain" if self.shortcut == "none" else "resnet"
        default = "A" if self.family == "cifar" else "B"
        name = f"{self.family}/{kind}-{self.depth}"
        if self.variant != "v1":
            name += f"-{self.variant}"
        return name if self.shortcut in ("none", default) else f"{name}-{self.shortcut}"

    def network(self, *, channels: int, classes: int, image_size: int) -> Network:
        """Describe the network for images of `image_size` x `image_size` x `channels` and `classes` outputs.

        Raises:
            ValueError: the images are too small for the network.
        """
        return describe(
            self.family,
            self.depth,
            shortcut=self.shortcut,
            variant=self.variant,
            width=self.width,
            channels=channels,
            classes=classes,
            image_size=image_size,
        )


class AugmentSpec(Part):
    """What happens to a training image. The paper's CIFAR setting is `{pad: 4, flip: true}` (section 4.2)."""

    pad: int = Field(default=0, ge=0, le=64, description="Pixels of zero padding before a random crop of the old size.")
    flip: bool = Field(default=False, description="Mirror half of the images, left to right.")
    scale: tuple[int, int] | None = Field(
        default=None,
        description="Draw the shorter side, in pixels, from this range before the crop (the paper's [256, 480]).",
    )

    @model_validator(mode="after")
    def _scale_in_order(self) -> Self:
        if self.scale and not 1 <= self.scale[0] <= self.scale[1]:
            raise PydanticCustomError(
                "scale", "the range must be [least, most] with 1 <= least <= most", {"field": "scale"}
            )
        return self


class DataSpec(Part):
    """Which registered dataset to read and how an image becomes an input."""

    dataset: Name = Field(description="The name of a dataset that the operator has registered; never a path.")
    augment: AugmentSpec = Field(default_factory=AugmentSpec)
    mean: Literal["pixel", "channel"] = Field(
        default="pixel",
        description="Subtract the training set's mean image (the paper) or its mean per channel.",
    )
    train_limit: int | None = Field(
        default=None, ge=1, description="Train on this many images, drawn by the seed. Left out: all."
    )


class ScheduleSpec(Part):
    """The learning rate over the steps: a constant warm-up, then division at milestones, or a cosine."""

    kind: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = Field(
        default=(0.5, 0.75),
        description="Fractions of the whole run at which the rate is multiplied by gamma. "
        "The paper's 32k and 48k of 64k iterations are 0.5 and 0.75.",
    )
    gamma: float = Field(default=0.1, gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    warmup_lr: float | None = Field(
        default=None, gt=0, description="The constant rate of the warm-up. Left out: a linear ramp from 0."
    )

    @model_validator(mode="after")
    def _milestones_in_order(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)) or any(not 0 < m < 1 for m in self.milestones):
            raise PydanticCustomError(
                "milestones",
                "milestones must be rising fractions of the run, each above 0 and below 1",
                {"field": "milestones"},
            )
        return self


class OptimSpec(Part):
    """SGD with momentum, as in the paper (section 3.4)."""

    lr: float = Field(default=0.1, gt=0, le=1000)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0)
    clip_norm: float | None = Field(default=None, gt=0, description="Clip the gradient's global 2-norm to this.")
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("nesterov", "nesterov needs a momentum above 0", {"field": "nesterov"})
        return self


class TrainingSpec(Part):
    """How long to train and on what batches. Exactly one of `epochs` and `steps` is given."""

    global_batch: int = Field(ge=1, le=1_000_000, description="Images in one step, over all workers.")
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1, description="Optimiser steps (the paper's iterations).")
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast on a GPU, fp32 on a CPU."
    )
    log_every_steps: int = Field(default=10, ge=1)
    evaluate_every_epochs: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise PydanticCustomError(
                "length", "give exactly one of epochs and steps", {"field": "epochs" if self.epochs else "steps"}
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


class ScalingSpec(Part):
    """The gang of workers: all of them start together or none does."""

    workers: int = Field(default=1, ge=1, le=4096)
    cpus_per_worker: float = Field(default=1.0, gt=0, le=1024)
    gpus_per_worker: int = Field(default=0, ge=0, le=1, description="DDP workers use one GPU each, or none.")


class CheckpointSpec(Part):
    """When to write a checkpoint and which to keep. The last step always has one; the best is always kept."""

    every_epochs: int | None = Field(default=1, ge=1)
    every_steps: int | None = Field(default=None, ge=1)
    keep_last: int = Field(default=3, ge=1, le=1000)


class RetrySpec(Part):
    """How often to try again. A loss of infrastructure and a user's error have budgets of their own."""

    worker_restarts: int = Field(default=8, ge=0, le=1000, description="Dead workers replaced inside an attempt.")
    infrastructure: int = Field(default=8, ge=0, le=1000, description="New attempts after a driver or head was lost.")
    errors: int = Field(default=0, ge=0, le=100, description="New attempts after the training itself failed.")


class JobSpec(Part):
    """A training job, whole. `kind` will tell further kinds of job apart."""

    kind: Literal["train"] = "train"
    name: Name | None = None
    recipe: str | None = Field(default=None, description="The recipe that this spec came from, for the record.")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    model: ModelSpec
    data: DataSpec
    optim: OptimSpec = Field(default_factory=OptimSpec)
    training: TrainingSpec
    scaling: ScalingSpec = Field(default_factory=ScalingSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        batch, workers = self.training.global_batch, self.scaling.workers
        if batch % workers:
            near = sorted({max(1, batch // workers) * workers, (batch // workers + 1) * workers})
            raise PydanticCustomError(
                "global_batch",
                "a global batch of {batch} does not divide over {workers} workers; the nearest that do: {near}",
                {
                    "batch": batch,
                    "workers": workers,
                    "near": ", ".join(map(str, near)),
                    "field": "training.global_batch",
                },
            )
        return self


class FieldProblem(Part):
    """One thing wrong with a document: where (an RFC 6901 JSON pointer), what, and what was given."""

    pointer: str
    message: str
    given: str | None = None


MOST_PROBLEMS = 100


def field_problems(error: ValidationError) -> list[FieldProblem]:
    """Every bad field of a refused document at once, as JSON pointers with messages that say what is accepted.

    The first MOST_PROBLEMS of them: nobody reads more, and a document may hold a hundred thousand unknown fields.
    """
    problems = []
    for item in error.errors(include_url=False)[:MOST_PROBLEMS]:
        path, given = [str(step) for step in item["loc"]], item.get("input")
        if item["type"] == "default_factory_not_called":  # what it rests on is wrong, which is told of itself
            continue
        is_key = path[-1:] == ["[key]"]  # pydantic's mark for a bad key of a mapping
        if is_key:
            path.pop()
        # A model validator reports the model; it names the field itself.
        field = (item.get("ctx") or {}).get("field")
        if field:
            steps = str(field).split(".")
            path += steps
            given = _at(given, steps)
        pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in path)
        absent = item["type"] == "missing" or (field is not None and given is None)
        message = ("the key: " if is_key else "") + _message(item["type"], item["msg"], path)
        problems.append(FieldProblem(pointer=pointer, message=message, given=None if absent else _shorten(given)))
    return problems


def _message(kind: str, message: str, path: list[str]) -> str:
    """Pydantic's words, with what is accepted where they leave it out."""
    if kind == "extra_forbidden":
        accepted = list(_model(path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], accepted, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        return f"unknown field{hint} accepted here: {', '.join(accepted)}"
    if kind == "missing":
        parent, inner = _model(path[:-1]), _model(path)
        info = parent.model_fields.get(path[-1])
        if inner is not parent:
            return f"this field is required: {_fields_of(inner)}"
        return f"this field is required: {info.description}" if info and info.description else "this field is required"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected {_fields_of(_model(path))}"
    if kind == "string_pattern_mismatch":
        letters = "letters" if path[:1] == ["labels"] else "lower-case letters"
        return f"expected 1 to 63 {letters}, digits and inner - . _ / characters"
    return message


def _fields_of(model: type[BaseModel]) -> str:
    return f"a mapping with the fields {', '.join(model.model_fields)}"


def _model(path: list[str]) -> type[BaseModel]:
    """The model that a JobSpec has at `path`, or the nearest around it."""
    model: type[BaseModel] = JobSpec
    for step in path:
        info = model.model_fields.get(step)
        inner = info.annotation if info else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _at(document: object, steps: list[str]) -> object:
    for step in steps:
        document = document.get(step) if isinstance(document, dict) else getattr(document, step, None)
    return document


def _shorten(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


class SpecFileError(Exception):
    """{path} could not be read as a job: {detail}"""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(f"{path} could not be read as a job: {detail}")


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds one mapping.

    Raises:
        SpecFileError: the file is absent, is neither JSON nor YAML, or holds something else than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            document = json.loads(text)  # not by YAML, which takes 1e-4 for a string and refuses tabs
        except ValueError:
            document = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise SpecFileError(path, str(error)) from error
    if not isinstance(document, dict):
        raise SpecFileError(path, f"expected a mapping with the fields of a job, found {type(document).__name__}")
    return document
