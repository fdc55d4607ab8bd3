"""Every metric once: its name, kind, help and labels, and the records that training appends to a job's prefix.

Prometheus sees the trainer's metrics through Ray's agent, which puts `ray_` before each name. A job's label is
`job_id`, since `job` is the scraper's own. Accuracies are fractions from 0 to 1.

All of the trainer's are gauges, also those that only rise: Ray's agents forget a gauge soon after its worker has gone,
and a counter never, so that those of a long-lived cluster would grow with every job. `rate()` takes either.
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
_WORKER = (*_JOB, "rank")

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
TOTAL_STEPS = Metric("resforge_total_steps", "gauge", "Optimiser steps that the job consists of.", _JOB)
EPOCH = Metric("resforge_epoch", "gauge", "The current epoch, from 0.", _JOB)
ETA_SECONDS = Metric("resforge_eta_seconds", "gauge", "Seconds until the training ends, as estimated.", _JOB)
CHECKPOINT_SECONDS = Metric("resforge_checkpoint_seconds", "gauge", "Seconds that the last checkpoint took.", _JOB)
CHECKPOINT_BYTES = Metric("resforge_checkpoint_bytes", "gauge", "Bytes of the last checkpoint.", _JOB)
CHECKPOINTS = Metric("resforge_checkpoints", "gauge", "Checkpoints committed by this attempt's workers.", _JOB)
CHECKPOINT_FAILURES = Metric(
    "resforge_checkpoint_failures", "gauge", "Checkpoints that this attempt's workers could not write.", _JOB
)
RESTARTS = Metric("resforge_restarts", "gauge", "Times that the workers of this attempt were replaced.", _JOB)
JOB_INFO = Metric(
    "resforge_job_info",
    "gauge",
    "1, and what is trained, for joining by job_id.",
    (*_JOB, "project", "model", "dataset"),
)

PHASES = ("data", "compute", "evaluation", "checkpoint")

WORKER_IMAGES_PER_SECOND = Metric(
    "resforge_worker_images_per_second", "gauge", "Training throughput of one worker.", _WORKER
)
WORKER_SECONDS = Metric(
    "resforge_worker_seconds",
    "gauge",
    "Seconds since this worker began to train, by what they went into. Rank 0 writes checkpoints; waiting for other "
    "workers counts as compute.",
    (*_WORKER, "phase"),
)
GPU_UTILISATION = Metric(
    "resforge_gpu_utilisation",
    "gauge",
    "Share of the last moments in which the worker's GPU ran a kernel, 0 to 1.",
    _WORKER,
)
GPU_MEMORY_USED = Metric(
    "resforge_gpu_memory_used_bytes", "gauge", "GPU memory that the worker's torch has reserved.", _WORKER
)
GPU_MEMORY = Metric("resforge_gpu_memory_bytes", "gauge", "Memory of the worker's GPU in all.", _WORKER)

GPU_METRICS: tuple[Metric, ...] = (GPU_UTILISATION, GPU_MEMORY_USED, GPU_MEMORY)

TRAINER_METRICS: tuple[Metric, ...] = (
    TRAIN_LOSS, TRAIN_TOP1, TRAIN_TOP5, TEST_TOP1, TEST_LOSS, LEARNING_RATE, GRAD_NORM, IMAGES_PER_SECOND,
    STEP_SECONDS, DATA_WAIT_SECONDS, STEP, TOTAL_STEPS, EPOCH, ETA_SECONDS, CHECKPOINT_SECONDS, CHECKPOINT_BYTES,
    CHECKPOINTS, CHECKPOINT_FAILURES, RESTARTS, JOB_INFO, WORKER_IMAGES_PER_SECOND, WORKER_SECONDS, *GPU_METRICS,
)  # fmt: skip

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds
_HOUR = 3600.0

BUILD_INFO = Metric("resforge_build_info", "gauge", "1, and the version that runs.", ("component", "version"))
S3_SECONDS = Metric(
    "resforge_s3_seconds",
    "histogram",
    "Seconds for one operation on object storage, with its retries.",
    ("operation", "outcome"),
    _QUICK,
)
DATABASE_SECONDS = Metric(
    "resforge_database_seconds", "histogram", "Seconds for one transaction.", ("kind", "outcome"), _QUICK
)

_BOTH = (BUILD_INFO, S3_SECONDS, DATABASE_SECONDS)

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
QUEUE_OLDEST = Metric(
    "resforge_queue_oldest_seconds",
    "gauge",
    "Age of the oldest job that waits for its first attempt, in QUEUED or in Kueue's queue; 0 where none does.",
)
CONTROLLER_TICK_AGE = Metric(
    "resforge_controller_tick_age_seconds", "gauge", "Seconds since a controller last finished a tick."
)

API_METRICS: tuple[Metric, ...] = (
    *_BOTH, HTTP_REQUESTS, HTTP_SECONDS, HTTP_STREAMS, JOBS, QUEUE_OLDEST, CONTROLLER_TICK_AGE,
)  # fmt: skip

CONTROLLER_LEADER = Metric("resforge_controller_leader", "gauge", "1 while this controller acts, else 0.")
CONTROLLER_TICK_SECONDS = Metric(
    "resforge_controller_tick_seconds",
    "histogram",
    "Seconds for one look at every live job.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
CONTROLLER_ACTIONS = Metric(
    "resforge_controller_actions_total", "counter", "Decisions that were carried out.", ("action",)
)
CONTROLLER_ERRORS = Metric(
    "resforge_controller_errors_total", "counter", "Ticks and jobs that were given up with an error.", ("where",)
)
LAUNCHER_SECONDS = Metric(
    "resforge_launcher_seconds", "histogram", "Seconds for one call of the launcher.", ("operation", "outcome"), _QUICK
)
QUEUE_SECONDS = Metric(
    "resforge_job_queue_seconds",
    "histogram",
    "Seconds from a job's submission until its first attempt was started, and no queue of Kueue's held it any more.",
    buckets=(1, 5, 15, 60, 300, 900, _HOUR, 4 * _HOUR, 12 * _HOUR, 24 * _HOUR, 72 * _HOUR),
)
FIRST_STEP_SECONDS = Metric(
    "resforge_job_first_step_seconds",
    "histogram",
    "Seconds from the start of a job's first attempt, outside of any queue, to its first reported step.",
    buckets=(5, 10, 20, 30, 60, 120, 300, 600, 1200, _HOUR),
)
JOBS_ENDED = Metric("resforge_jobs_ended_total", "counter", "Jobs that ended.", ("state", "reason"))
ATTEMPTS_ENDED = Metric("resforge_attempts_ended_total", "counter", "Attempts that ended.", ("state", "reason"))
RESOURCES_CAPACITY = Metric(
    "resforge_resources_capacity", "gauge", "CPUs and GPUs of the nodes that the launcher sees.", ("resource",)
)
RESOURCES_ALLOCATED = Metric(
    "resforge_resources_allocated", "gauge", "CPUs and GPUs of attempts that have not ended.", ("resource",)
)
RESOURCES_WANTED = Metric(
    "resforge_resources_wanted", "gauge", "CPUs and GPUs that waiting jobs ask for.", ("resource",)
)

CONTROLLER_METRICS: tuple[Metric, ...] = (
    *_BOTH, CONTROLLER_LEADER, CONTROLLER_TICK_SECONDS, CONTROLLER_ACTIONS, CONTROLLER_ERRORS, LAUNCHER_SECONDS,
    QUEUE_SECONDS, FIRST_STEP_SECONDS, JOBS_ENDED, ATTEMPTS_ENDED, RESOURCES_CAPACITY, RESOURCES_ALLOCATED,
    RESOURCES_WANTED,
)  # fmt: skip

METRICS: tuple[Metric, ...] = (*TRAINER_METRICS, *dict.fromkeys((*API_METRICS, *CONTROLLER_METRICS)))


def scraped_name(metric: Metric) -> str:
    """The name under which Prometheus has the metric."""
    return f"ray_{metric.name}" if metric in TRAINER_METRICS else metric.name


def series_names(metric: Metric) -> tuple[str, ...]:
    """The names of the metric's series: a histogram has three."""
    name = scraped_name(metric)
    return tuple(name + end for end in ("_bucket", "_sum", "_count")) if metric.kind == "histogram" else (name,)
