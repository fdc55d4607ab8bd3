"""Jobs, attempts and events, and their state machines as data.

A state says where a thing is; a reason says why. A terminal state never changes: a retry is a new attempt, or a new
job. These models are also what the API answers with.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from resforge.metrics import EvalPoint, Progress
from resforge.spec import JobSpec


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class AttemptState(StrEnum):
    PENDING = "PENDING"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    LOST = "LOST"
    STOPPED = "STOPPED"


class Reason(StrEnum):
    """Why a job or an attempt is in its state."""

    TRAINING_ERROR = "TrainingError"
    OUT_OF_MEMORY = "OutOfMemory"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    HEAD_LOST = "HeadLost"
    DRIVER_LOST = "DriverLost"
    HEARTBEAT_EXPIRED = "HeartbeatExpired"
    COLLECTIVE_TIMEOUT = "CollectiveTimeout"
    NON_FINITE_LOSS = "NonFiniteLoss"
    CHECKPOINT_UPLOAD_FAILED = "CheckpointUploadFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NO_CAPACITY = "NoCapacity"
    UNSCHEDULABLE = "Unschedulable"
    LAUNCHER_UNAVAILABLE = "LauncherUnavailable"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    INVALID_DATA = "InvalidData"
    WAITS_FOR_SOURCE = "WaitsForSource"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    UNREADABLE = "Unreadable"
    CANCELLED_BY_USER = "CancelledByUser"


# Reasons that trying again cannot cure, whatever the budget: the job's own numbers or data are wrong.
PERMANENT = frozenset({Reason.NON_FINITE_LOSS, Reason.INVALID_DATA, Reason.SOURCE_UNAVAILABLE, Reason.UNREADABLE})

# Reasons that a person's code or numbers cause; every other loss counts against the infrastructure's budget.
USER_ERRORS = frozenset({Reason.TRAINING_ERROR, Reason.OUT_OF_MEMORY}) | PERMANENT

JOB_TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.CANCELLED, JobState.FAILED}),
    JobState.STARTING: frozenset(
        {JobState.RUNNING, JobState.RECOVERING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING}
    ),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.RECOVERING, JobState.PAUSING, JobState.CANCELLING}
    ),
    JobState.RECOVERING: frozenset({JobState.STARTING, JobState.FAILED, JobState.CANCELLING, JobState.CANCELLED}),
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

ATTEMPT_TRANSITIONS: Mapping[AttemptState, frozenset[AttemptState]] = {
    AttemptState.PENDING: frozenset(
        {
            AttemptState.SUBMITTED,
            AttemptState.RUNNING,
            AttemptState.SUCCEEDED,
            AttemptState.FAILED,
            AttemptState.LOST,
            AttemptState.STOPPED,
        }
    ),
    AttemptState.SUBMITTED: frozenset(
        {
            AttemptState.RUNNING,
            AttemptState.SUCCEEDED,
            AttemptState.FAILED,
            AttemptState.LOST,
            AttemptState.STOPPED,
        }
    ),
    AttemptState.RUNNING: frozenset(
        {AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.LOST, AttemptState.STOPPED}
    ),
    AttemptState.SUCCEEDED: frozenset(),
    AttemptState.FAILED: frozenset(),
    AttemptState.LOST: frozenset(),
    AttemptState.STOPPED: frozenset(),
}

TERMINAL: frozenset[JobState] = frozenset(state for state, after in JOB_TRANSITIONS.items() if not after)
ATTEMPT_TERMINAL: frozenset[AttemptState] = frozenset(
    state for state, after in ATTEMPT_TRANSITIONS.items() if not after
)


class Resource(BaseModel):
    """What the API answers with. An older client meets a newer server, so unknown fields are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DatasetInfo(Resource):
    """A data set that an operator has registered, or that a job of a project has ingested. Jobs name it; only
    operators see where it lies."""

    name: str
    format: Literal["digits", "synthetic", "idx", "cifar10", "folder", "shards"]
    location: str | None = Field(
        default=None, description="A folder or an s3:// prefix; none where the data come with the trainer."
    )
    channels: int = Field(ge=1, le=3)
    classes: int = Field(ge=2)
    image_size: int = Field(ge=8, description="Side of a square input, in pixels.")
    train_images: int | None = Field(default=None, description="Training images, where known.")
    test_images: int | None = Field(default=None, description="Held-out images, where known.")
    description: str = ""
    project: str | None = Field(default=None, description="Whose it is; none: everybody's, by the operator.")
    job: str | None = Field(default=None, description="The job that ingested it, if one did.")


class Job(Resource):
    """A job, as a person sees it."""

    id: str
    project: str
    name: str | None = None
    state: JobState
    reason: Reason | None = None
    message: str = ""
    spec: JobSpec
    dataset: str = Field(default="", description="The data set that it works on.")
    labels: dict[str, str] = Field(default_factory=dict)
    generation: int = Field(default=1, description="Moves when a person changes the job; for If-Match.")
    attempts: int = Field(default=0, description="Attempts made so far.")
    cancel_requested: bool = False
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    result: EvalPoint | None = Field(default=None, description="The best evaluation, once the job has succeeded.")


class Attempt(Resource):
    """One try at a job: one driver with one gang of workers, whose dead workers may be replaced."""

    job: str
    number: int = Field(ge=1)
    state: AttemptState
    reason: Reason | None = None
    message: str = ""
    resume_from: tuple[int, ...] = Field(default=(), description="Attempts whose checkpoints this one may resume.")
    restarts: int = Field(default=0, description="Times that the workers were replaced inside this attempt.")
    created_at: datetime
    submitted_at: datetime | None = None
    admitted_at: datetime | None = Field(default=None, description="When no queue of the cluster's held it any more.")
    running_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def external_name(self) -> str:
        """The name that launchers know this attempt by, the same on every try."""
        return f"{self.job}-{self.number}"


class Event(Resource):
    """Something that happened to a job. Ids rise within a job."""

    id: int
    job: str
    at: datetime
    type: str = Field(description="A transition (JobStateChanged, AttemptStateChanged) or what the trainer reports.")
    attempt: int | None = None
    before: str | None = Field(default=None, description="The state before, of a transition.")
    after: str | None = None
    reason: Reason | None = None
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
