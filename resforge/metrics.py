"""Every metric once: its name, kind, help and labels, and the records that training appends to a job's prefix.

Prometheus sees the trainer's metrics through Ray's agent, which puts `ray_` before each name. A job's label is
`job_id`, since `job` is the scraper's own. Accuracies are fractions from 0 to 1.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


@dataclass(frozen=True)
class Metric:
    """One metric as Prometheus knows it."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Record(BaseModel):
    """A line of a stream in object storage."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    at: datetime


class TrainPoint(Record):
    """Means over the optimiser steps since the point before, over all workers."""

    kind: Literal["train"] = "train"
    attempt: int
    step: int = Field(description="Optimiser steps done, counted from the job's first attempt.")
    epoch: int = Field(description="The epoch that the step belongs to, from 0.")
    loss: float | None = Field(description="Mean cross-entropy, in nats. Null where it was not finite.")
    top1: float
    top5: float
    lr: float
    grad_norm: float | None = Field(default=None, description="2-norm of the whole gradient at this step.")
    images_per_second: float = Field(description="Over all workers.")
    step_time_s: float
    data_wait_s: float = Field(description="Seconds of each step spent waiting for data.")
    eta_s: float


class EvalPoint(Record):
    """One evaluation: every image of a split exactly once."""

    kind: Literal["eval"] = "eval"
    attempt: int
    step: int
    epoch: int
    split: Literal["train", "validation", "test"] = "test"
    loss: float | None
    top1: float
    top5: float
    images: int


Point = Annotated[TrainPoint | EvalPoint, Field(discriminator="kind")]
POINT: TypeAdapter[Point] = TypeAdapter(Point)


class LogLine(Record):
    """A line that the driver or a worker printed."""

    attempt: int
    source: str = Field(description="driver, or worker with its process id.")
    line: str


class Progress(BaseModel):
    """Where a running attempt is. Rank 0 overwrites it; it is a view, never a source for resuming."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    at: datetime
    attempt: int
    restarts: int = 0
    step: int
    total_steps: int
    epoch: int
    total_epochs: float
    loss: float | None = None
    top1: float | None = None
    test_top1: float | None = None
    images_per_second: float | None = None
    eta_s: float | None = None


_JOB = ("job_id", "attempt")

TRAIN_LOSS = Metric("resforge_train_loss", "gauge", "Mean training cross-entropy since the last report, in nats.", _JOB)
TRAIN_TOP1 = Metric("resforge_train_top1", "gauge", "Training top-1 accuracy since the last report, 0 to 1.", _JOB)
TRAIN_TOP5 = Metric("resforge_train_top5", "gauge", "Training top-5 accuracy since the last report, 0 to 1.", _JOB)
TEST_TOP1 = Metric("resforge_test_top1", "gauge", "Top-1 accuracy of the last evaluation, 0 to 1.", _JOB)
TEST_LOSS = Metric("resforge_test_loss", "gauge", "Mean cross-entropy of the last evaluation, in nats.", _JOB)
LEARNING_RATE = Metric("resforge_learning_rate", "gauge", "Learning rate of the last step.", _JOB)
GRAD_NORM = Metric("resforge_gradient_norm", "gauge", "2-norm of the gradient at the last report.", _JOB)
IMAGES_PER_SECOND = Metric("resforge_images_per_second", "gauge", "Training throughput over all workers.", _JOB)
STEP_SECONDS = Metric("resforge_step_seconds", "gauge", "Seconds for one optimiser step.", _JOB)
DATA_WAIT_SECONDS = Metric("resforge_data_wait_seconds", "gauge", "Seconds of a step spent waiting for data.", _JOB)
STEP = Metric("resforge_step", "gauge", "Optimiser steps done.", _JOB)
EPOCH = Metric("resforge_epoch", "gauge", "The current epoch, from 0.", _JOB)
ETA_SECONDS = Metric("resforge_eta_seconds", "gauge", "Seconds until the training ends, as estimated.", _JOB)
CHECKPOINT_SECONDS = Metric("resforge_checkpoint_seconds", "gauge", "Seconds that the last checkpoint took.", _JOB)
CHECKPOINTS = Metric("resforge_checkpoints", "gauge", "Checkpoints committed by this attempt's workers.", _JOB)
RESTARTS = Metric("resforge_restarts", "gauge", "Times that the workers of this attempt were replaced.", _JOB)

TRAINER_METRICS: tuple[Metric, ...] = (
    TRAIN_LOSS, TRAIN_TOP1, TRAIN_TOP5, TEST_TOP1, TEST_LOSS, LEARNING_RATE, GRAD_NORM, IMAGES_PER_SECOND,
    STEP_SECONDS, DATA_WAIT_SECONDS, STEP, EPOCH, ETA_SECONDS, CHECKPOINT_SECONDS, CHECKPOINTS, RESTARTS,
)  # fmt: skip

HTTP_REQUESTS = Metric("resforge_http_requests_total", "counter", "Requests answered.", ("method", "route", "status"))
HTTP_SECONDS = Metric(
    "resforge_http_request_seconds",
    "histogram",
    "Seconds until a request's answer began.",
    ("method", "route"),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HTTP_STREAMS = Metric("resforge_http_streams", "gauge", "Event streams open now.")
JOBS = Metric("resforge_jobs", "gauge", "Jobs by state.", ("state",))
CONTROLLER_TICK_AGE = Metric(
    "resforge_controller_tick_age_seconds", "gauge", "Seconds since a controller last finished a tick."
)

SERVICE_METRICS: tuple[Metric, ...] = (HTTP_REQUESTS, HTTP_SECONDS, HTTP_STREAMS, JOBS, CONTROLLER_TICK_AGE)
