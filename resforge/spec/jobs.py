"""The kinds of job: train a network, evaluate checkpoints, read a trained network, ingest a data set. `kind` tells
them apart."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from resforge.spec.base import LabelKey, LabelValue, Name, Part
from resforge.spec.data import DataSpec
from resforge.spec.model import ModelSpec
from resforge.spec.readings import Reading
from resforge.spec.training import (
    CheckpointSpec,
    OptimSpec,
    RegularisationSpec,
    RetrySpec,
    ScalingSpec,
    TrainingSpec,
)

JobId = Annotated[str, StringConstraints(pattern=r"^job-[a-z2-7]{12}$")]


class CheckpointRef(Part):
    """A checkpoint of another job of the same project.

    `best` and `latest` wait until that job has ended, and want it to have succeeded. A step names a checkpoint that
    is there already.
    """

    job: JobId = Field(description="The job that left it.")
    which: Literal["best", "latest"] | Annotated[int, Field(ge=0)] = Field(
        default="best", description="best, latest, or the number of a step."
    )

    @field_validator("which", mode="before")
    @classmethod
    def _known(cls, which: Any) -> Any:
        known = which in ("best", "latest") if isinstance(which, str) else isinstance(which, int) and which >= 0
        if not known or isinstance(which, bool):
            raise PydanticCustomError("which", "expected best, latest, or the number of a step")
        return which

    @property
    def ends_first(self) -> bool:
        """Whether the job must have succeeded before the checkpoint is known."""
        return isinstance(self.which, str)

    def __str__(self) -> str:
        return f"{self.job}:{self.which}"


class InitSpec(Part):
    """Begin with the weights of a trained network instead of random ones."""

    checkpoint: CheckpointRef
    take: Literal["all", "backbone", "grow"] = Field(
        default="all",
        description="all: every weight, for the same network. backbone: all but the classifier, for other classes. "
        "grow: every weight of a shallower network; the blocks that it lacks begin as identities "
        "(He et al. 2015, section 1).",
    )
    freeze: bool = Field(
        default=False, description="Train the classifier alone: the backbone's weights and statistics stay as they are."
    )


class CommonSpec(Part):
    """What jobs of every kind have."""

    kind: Literal["train", "evaluate", "analyse", "ingest"]
    name: Name | None = None
    recipe: str | None = Field(default=None, description="The recipe that this spec came from, for the record.")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    scaling: ScalingSpec = Field(default_factory=ScalingSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)

    @property
    def sources(self) -> tuple[CheckpointRef, ...]:
        """The checkpoints of other jobs that this one needs."""
        return ()

    @property
    def subject(self) -> str:
        """What the job works on, in a word or two, for tables."""
        raise NotImplementedError


class TrainSpec(CommonSpec):
    """A training job, whole."""

    kind: Literal["train"] = "train"
    model: ModelSpec
    data: DataSpec
    init: InitSpec | None = Field(default=None, description="Left out: random weights, drawn by the seed.")
    optim: OptimSpec = Field(default_factory=OptimSpec)
    regularisation: RegularisationSpec = Field(default_factory=RegularisationSpec)
    training: TrainingSpec
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)

    @property
    def sources(self) -> tuple[CheckpointRef, ...]:
        return () if self.init is None else (self.init.checkpoint,)

    @property
    def subject(self) -> str:
        return self.model.name

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

    @model_validator(mode="after")
    def _compresses_on_gpus(self) -> Self:
        if self.training.gradient_compression != "none" and not self.scaling.gpus_per_worker:
            raise PydanticCustomError(
                "gradient_compression",
                "workers on CPUs add up their gradients as they are; without scaling.gpus_per_worker, none is accepted",
                {"field": "training.gradient_compression"},
            )
        return self

    @model_validator(mode="after")
    def _cuts_end_below_the_scaled_rate(self) -> Self:
        lr, least = self.optim.resolved(self.training.global_batch, 1).lr, self.optim.schedule.min_lr
        if least >= lr:
            raise PydanticCustomError(
                "min_lr",
                "cuts end below the rate that they begin at, {lr}, which is optim.lr scaled to the batch",
                {"lr": f"{lr:g}", "field": "optim.schedule.min_lr"},
            )
        return self

    @model_validator(mode="after")
    def _takes_small_images(self) -> Self:
        size = self.training.progressive_from
        if size is not None:
            try:
                self.model.network(channels=3, classes=10, image_size=size)
            except ValueError as error:
                raise PydanticCustomError(
                    "progressive_from",
                    "the network can't begin at {size} pixels: {reason}",
                    {"size": size, "reason": str(error), "field": "training.progressive_from"},
                ) from error
        return self


class EvalDataSpec(Part):
    """Which images a trained network is shown."""

    dataset: Name | None = Field(default=None, description="Left out: the data set that the network was trained on.")
    split: Literal["test", "train", "validation"] = Field(
        default="test", description="validation: the images that the training held back (`data.validation`)."
    )
    limit: int | None = Field(
        default=None, ge=1, description="At most so many images, spread evenly over the split. Left out: all."
    )


class ProtocolSpec(Part):
    """How an image becomes one or several views, whose class probabilities are averaged."""

    views: Literal["centre", "ten-crop", "multi-scale"] = Field(
        default="centre",
        description="centre: one centred crop. ten-crop: four corners and the centre, and their mirror images. "
        "multi-scale: the whole image at each of `scales` and mirrored, by a fully convolutional pass "
        "(He et al. 2015, section 3.4).",
    )
    scales: tuple[int, ...] = Field(
        default=(),
        max_length=16,
        description="Shorter sides in pixels, for multi-scale. Left out: 224, 256, 384, 480 and 640, or in proportion "
        "to the network's input where that is not 224.",
    )
    crop: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="For centre and ten-crop: the side of the crop in pixels, of an image whose shorter side is as "
        "long for centre, and in the usual proportion for ten-crop. Left out: the network's input, as in training.",
    )
    recompute_batch_norm: int = Field(
        default=0,
        ge=0,
        description="Before evaluating, take batch norm's statistics anew from so many training images.",
    )

    @model_validator(mode="after")
    def _scales_for_multi_scale(self) -> Self:
        if self.scales and self.views != "multi-scale":
            raise PydanticCustomError("scales", "scales go with views: multi-scale", {"field": "scales"})
        if self.crop is not None and self.views == "multi-scale":
            raise PydanticCustomError(
                "crop", "multi-scale shows whole images; crop goes with centre and ten-crop", {"field": "crop"}
            )
        if any(scale < 8 for scale in self.scales):
            raise PydanticCustomError("scales", "a shorter side has 8 pixels or more", {"field": "scales"})
        return self


class EvaluationSpec(CommonSpec):
    """How to evaluate: all of an evaluation but what is evaluated. It runs as one process."""

    kind: Literal["evaluate"] = "evaluate"
    data: EvalDataSpec = Field(default_factory=EvalDataSpec)
    protocol: ProtocolSpec = Field(default_factory=ProtocolSpec)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast on a GPU, fp32 on a CPU."
    )
    batch: int = Field(default=256, ge=1, le=1_000_000, description="Images at a time.")

    @field_validator("scaling")
    @classmethod
    def _one_process(cls, scaling: ScalingSpec) -> ScalingSpec:
        if scaling.workers != 1:
            raise PydanticCustomError(
                "workers", "an evaluation is one process; workers must be 1", {"field": "workers"}
            )
        return scaling


class EvaluateSpec(EvaluationSpec):
    """Evaluate a checkpoint, or an ensemble of several, under a protocol."""

    checkpoints: tuple[CheckpointRef, ...] = Field(
        min_length=1, max_length=32, description="One, or the members of an ensemble, whose probabilities are averaged."
    )

    @property
    def sources(self) -> tuple[CheckpointRef, ...]:
        return self.checkpoints

    @property
    def subject(self) -> str:
        what = str(self.checkpoints[0]) if len(self.checkpoints) == 1 else f"{len(self.checkpoints)} checkpoints"
        return f"{self.protocol.views} of {what}"


class AnalyseSpec(CommonSpec):
    """Read a trained network. It runs as one process; a loss landscape may be spread over several workers."""

    kind: Literal["analyse"] = "analyse"
    checkpoint: CheckpointRef
    reading: Reading
    data: EvalDataSpec = Field(default_factory=EvalDataSpec)
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of whatever the reading draws.")

    @property
    def sources(self) -> tuple[CheckpointRef, ...]:
        return (self.checkpoint,)

    @property
    def subject(self) -> str:
        return f"{self.reading.name} of {self.checkpoint}"

    @model_validator(mode="after")
    def _spread(self) -> Self:
        if self.scaling.workers > 1 and self.reading.name != "landscape":
            raise PydanticCustomError(
                "workers",
                "only a landscape is spread over several workers; the reading {reading} takes 1",
                {"reading": self.reading.name, "field": "scaling.workers"},
            )
        return self


_BUCKET = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9._]{1,61}[a-zA-Z0-9]")


def _address(value: str) -> str:
    """An s3:// address or an absolute path, which leads nowhere else by its dots or slashes."""
    in_s3 = value.startswith("s3://")
    start = "s3://" if in_s3 else "/"
    path = value.removeprefix(start).rstrip("/")
    if not value.startswith(start) or (in_s3 and not path):
        raise PydanticCustomError("address", "expected s3://bucket/prefix or an absolute path")
    parts = path.split("/") if path else []
    if in_s3 and not _BUCKET.fullmatch(parts[0]):
        raise PydanticCustomError("address", "{bucket} is no bucket's name", {"bucket": repr(parts[0])})
    if any(part in ("", ".", "..") or "\x00" in part for part in parts):
        raise PydanticCustomError("address", "no part between slashes may be empty, . or .., or hold a NUL")
    return start + path


class IngestSpec(CommonSpec):
    """Make a data set of shards out of class folders or class tars. Shards may be spread over several workers."""

    kind: Literal["ingest"] = "ingest"
    dataset: Name = Field(description="The name that the data set is to have.")
    source: Annotated[str, AfterValidator(_address)] = Field(
        max_length=1024,
        description="s3://bucket/prefix, or a folder on the workers, that holds train/CLASS/IMAGE or train/CLASS.tar, "
        "and val or test with the same classes.",
    )
    target: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None, max_length=1024, description="s3://bucket/prefix. Left out: a place in the service's own bucket."
    )
    image_size: int = Field(default=224, ge=8, le=4096, description="Side of a network's square input, in pixels.")
    channels: Literal[3] = Field(default=3, description="Images are decoded as RGB.")
    shorter_side: int | None = Field(
        default=None,
        ge=8,
        le=16384,
        description="Make larger images so large, in pixels, as JPEGs. Left out: every image keeps its bytes.",
    )
    quality: int = Field(default=90, ge=1, le=100, description="Of the JPEGs that are made.")
    shard_bytes: int = Field(
        default=64 << 20, ge=1 << 10, le=4 << 30, description="Bytes of the source that go into one shard, about."
    )

    @property
    def subject(self) -> str:
        return f"{self.dataset} from {self.source}"

    @field_validator("dataset")
    @classmethod
    def _is_a_key(cls, dataset: str) -> str:
        if any(part in ("", ".", "..") for part in dataset.split("/")):
            raise PydanticCustomError("dataset", "no part between slashes may be empty, . or ..")
        return dataset

    @field_validator("target")
    @classmethod
    def _in_s3(cls, target: str | None) -> str | None:
        if target is not None and "/" not in target.partition("s3://")[2]:
            raise PydanticCustomError("target", "expected s3://bucket/prefix, since shards lie in object storage")
        return target

    @field_validator("scaling")
    @classmethod
    def _no_gpus(cls, scaling: ScalingSpec) -> ScalingSpec:
        if scaling.gpus_per_worker:
            raise PydanticCustomError(
                "gpus_per_worker", "an ingest works on CPUs; gpus_per_worker must be 0", {"field": "gpus_per_worker"}
            )
        return scaling

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if self.shorter_side is not None and self.shorter_side < self.image_size:
            raise PydanticCustomError(
                "shorter_side",
                "a shorter side below the network's input of {size} pixels would have to be enlarged again",
                {"size": self.image_size, "field": "shorter_side"},
            )
        return self


AnySpec = TrainSpec | EvaluateSpec | AnalyseSpec | IngestSpec

SPECS: Mapping[str, type[AnySpec]] = {
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
    "analyse": AnalyseSpec,
    "ingest": IngestSpec,
}


def _kind(document: Any) -> Any:
    """A document's kind; train where it has none."""
    return document.get("kind", "train") if isinstance(document, dict) else getattr(document, "kind", "train")


JobSpec = Annotated[
    Annotated[TrainSpec, Tag("train")]
    | Annotated[EvaluateSpec, Tag("evaluate")]
    | Annotated[AnalyseSpec, Tag("analyse")]
    | Annotated[IngestSpec, Tag("ingest")],
    Discriminator(_kind),
]
JOB_SPEC: TypeAdapter[AnySpec] = TypeAdapter(JobSpec)


def parse_job(document: Any) -> AnySpec:
    """A document as the spec that its `kind` says; train where it says nothing.

    Raises:
        pydantic.ValidationError: it is none; its locations begin at the document's own fields.
    """
    kind = _kind(document)
    model = SPECS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ValidationError.from_exception_data(
            TrainSpec.__name__,
            [
                {
                    "type": PydanticCustomError("kind", f"expected one of {', '.join(SPECS)}"),
                    "loc": ("kind",),
                    "input": kind,
                }
            ],
        )
    return model.model_validate(document)
