"""What the API answers with, besides jobs, attempts and events (resforge.jobs) and recipes (resforge.recipes)."""

from datetime import datetime
from typing import Annotated, Generic, TypeVar

from pydantic import Field, TypeAdapter

from resforge.jobs import TERMINAL, JobState, Reason, Resource
from resforge.metrics import EvalPoint, LogLine, Progress, TrainPoint
from resforge.reports import Report
from resforge.spec import FieldProblem
from resforge.storage import Manifest, Part
from resforge.studies.catalog import StudySpec
from resforge.studies.report import StudyMember

T = TypeVar("T")


class Page(Resource, Generic[T]):
    """Some items of a list, and where it goes on."""

    items: tuple[T, ...]
    next_cursor: str | None = Field(default=None, description="For the next page; null on the last one.")


class Problem(Resource):
    """An error (RFC 9457), sent as application/problem+json."""

    type: str = Field(default="about:blank", description="What went wrong; stable, made for programs.")
    title: str
    status: int
    detail: str = ""
    instance: str | None = Field(default=None, description="The path that was asked for.")
    errors: tuple[FieldProblem, ...] = Field(
        default=(),
        description="Every bad field. Pointers into a body are RFC 6901; /query/NAME, /path/NAME and /header/NAME "
        "point at the request's other parts.",
    )


class Readiness(Resource):
    """What the API says of its parts when all of them are ready."""

    parts: dict[str, str] = Field(description="The word `ready` by the name of the part.")


class NotReady(Problem):
    """What the API says of its parts when some are not ready."""

    parts: dict[str, str] = Field(description="`ready`, or what is wrong, by the name of the part.")


class LogEntry(LogLine):
    """A log line and its place in the stream."""

    id: str = Field(description="A cursor: `after` and Last-Event-ID take it.")


class TrainEntry(TrainPoint):
    """A training point and its place in the stream."""

    id: str = Field(description="A cursor: `after` and Last-Event-ID take it.")


class EvalEntry(EvalPoint):
    """An evaluation and its place in the stream."""

    id: str = Field(description="A cursor: `after` and Last-Event-ID take it.")


MetricEntry = Annotated[TrainEntry | EvalEntry, Field(discriminator="kind")]
METRIC_ENTRY: TypeAdapter[TrainEntry | EvalEntry] = TypeAdapter(MetricEntry)


class Checkpoint(Resource):
    """A checkpoint of a job, read from its manifest."""

    attempt: int
    step: int = Field(description="Optimiser steps done.")
    epoch: int = Field(description="The epoch in which the next step lies, from 0.")
    created_at: datetime
    final: bool = Field(description="Whether it was written after the last step.")
    best: bool = Field(description="Whether it has the highest top-1 accuracy on held-out data.")
    latest: bool = Field(description="Whether it has most steps.")
    evaluation: EvalPoint | None = None
    size: int = Field(description="Bytes of all parts.")
    parts: tuple[Part, ...]


class DownloadPart(Part):
    """One file of a checkpoint and an address to fetch it from, without keys, until it expires."""

    url: str
    expires_at: datetime


class CheckpointDownload(Resource):
    """Everything that is needed to fetch a checkpoint and to verify it."""

    checkpoint: Checkpoint
    manifest: Manifest
    parts: tuple[DownloadPart, ...]


class JobReport(Resource):
    """What an evaluation or a reading has found, and where its pictures are to be had."""

    report: Report
    pictures: tuple[DownloadPart, ...]


class StudyMemberInfo(StudyMember):
    """A job of a study, and where it is. A job that was deleted has no state."""

    state: JobState | None
    reason: Reason | None = None
    progress: Progress | None = None
    message: str = ""


class StudyInfo(Resource):
    """A study, as a person sees it. Its state follows from its jobs'."""

    id: str
    project: str
    name: str | None = None
    spec: StudySpec
    state: JobState
    counts: dict[str, int] = Field(description="How many of its jobs are in each state.")
    deleted: int = Field(default=0, description="How many of its jobs somebody has deleted.")
    done: float = Field(default=0.0, description="How far its jobs have come, in mean, from 0 to 1.")
    members: tuple[StudyMemberInfo, ...]
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether none of its jobs goes on."""
        return self.state in TERMINAL


class ModelInput(Resource):
    """What a network is counted at."""

    image_size: int = Field(description="Side of a square input, in pixels.")
    channels: int
    classes: int


class ModelInfo(Resource):
    """A network and what it costs, counted from its description."""

    name: str
    family: str
    depth: int
    block: str = Field(description="basic or bottleneck; none for networks without blocks.")
    order: str
    shortcut: str
    variant: str
    norm: str
    width: int
    parameters: int
    macs: int = Field(description="Multiply-adds of one image's forward pass, one for a product with its addition.")
    input: ModelInput


class Deleted(Resource):
    """What a deletion removed."""

    deleted: str = Field(description="The job's or the study's id, or the data set's name.")
    objects_removed: int


class RemovedDataset(Deleted):
    """What the removal of a data set removed."""

    location: str | None = Field(description="Where it lay, and where objects that were left lie still.")
    objects_left: bool = Field(
        description="Whether its objects were left, since they don't lie below the project's data sets in the "
        "service's own bucket."
    )
