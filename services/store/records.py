"""What the store hands to the controller: frozen values that carry what a compare-and-set needs."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from resforge.jobs import Attempt, DatasetInfo, Job, Reason


@dataclass(frozen=True)
class Lease:
    """The right to act as the controller. `epoch` rises each time that the holder changes, and fences old holders."""

    name: str
    holder: str
    epoch: int
    expires_at: datetime


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt, and what the controller remembers of it between ticks."""

    attempt: Attempt
    beat: int | None = None  # the last heartbeat number seen
    beat_seen_at: datetime | None = None  # when it moved, by the controller's clock
    stop_requested_at: datetime | None = None  # when the attempt was asked to stop
    stop_reason: Reason | None = None  # why it was asked to stop


@dataclass(frozen=True)
class JobRecord:
    """A live job: the public resource, its version for compare-and-set, and its newest attempt."""

    job: Job
    version: int
    dataset: DatasetInfo
    attempt: AttemptRecord | None = None
    error_failures: int = 0  # attempts that ended by a user's error
    infrastructure_failures: int = 0  # attempts that were lost
    events_cursor: str = "0.0.0"  # how far the trainer's events were copied


@dataclass(frozen=True)
class NewEvent:
    """An event to append in the same transaction as the change that it tells of."""

    type: str
    attempt: int | None = None
    before: str | None = None
    after: str | None = None
    reason: Reason | None = None
    message: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    at: datetime | None = None  # None: now
    source: str | None = None  # where it was copied from; a job keeps one event of each source


@dataclass(frozen=True)
class Change:
    """What one decision changes, written in one transaction or not at all.

    `job` and `attempt` hold new values of columns by name (the fields of Job, JobRecord, Attempt and AttemptRecord);
    `new_attempt` is a row to add. `dataset` is what the job has ingested, to be registered. The store refuses
    transitions that the state machines do not have.
    """

    job: dict[str, Any] = field(default_factory=dict)
    attempt: dict[str, Any] = field(default_factory=dict)
    new_attempt: Attempt | None = None
    events: tuple[NewEvent, ...] = ()
    dataset: DatasetInfo | None = None

    @property
    def quiet(self) -> bool:
        """Whether it only notes what a driver says of itself all the time, and so may be written with many others."""
        moves = self.job.keys() - {"progress"} or self.attempt.keys() - {"beat", "beat_seen_at", "restarts"}
        return self.new_attempt is None and self.dataset is None and not self.events and not moves
