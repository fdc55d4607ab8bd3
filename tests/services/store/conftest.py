"""A store whose time a test moves, and short ways to a job in a state."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import Engine

from resforge.jobs import Attempt, AttemptState, DatasetInfo, Job, JobState
from resforge.spec import TrainSpec
from services.store.records import Change, JobRecord, Lease
from services.store.store import JobStore


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def clocked(engine: Engine, clock: Clock, project: str) -> JobStore:
    """A store with a project, on each kind of database, whose time is `clock`."""
    store = JobStore(engine, clock=clock)
    store.create_project(project)
    return store


def first_attempt(job: Job, state: AttemptState = AttemptState.PENDING) -> Attempt:
    return Attempt(job=job.id, number=1, state=state, created_at=job.created_at)


def record_of(store: JobStore, job: Job) -> JobRecord:
    [record] = [record for record in store.live_jobs() if record.job.id == job.id]
    return record


@dataclass
class Harness:
    """A store with a lease, and jobs in it."""

    store: JobStore
    lease: Lease
    project: str
    spec: TrainSpec
    dataset: DatasetInfo

    def submit(self, **labels: str) -> JobRecord:
        spec = self.spec.model_copy(update={"labels": labels})
        job, _ = self.store.submit(self.project, spec, self.dataset)
        return record_of(self.store, job)

    def to(self, record: JobRecord, state: JobState) -> JobRecord:
        return self.store.apply(self.lease, record, Change(job={"state": state}))

    def start(self, record: JobRecord) -> JobRecord:
        """To STARTING, with a first attempt."""
        change = Change(job={"state": JobState.STARTING}, new_attempt=first_attempt(record.job))
        return self.store.apply(self.lease, record, change)


@pytest.fixture
def harness(store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo) -> Harness:
    lease = store.acquire_lease("controller", "one", 600)
    assert lease is not None
    return Harness(store, lease, project, spec, digits)


def in_threads(work: Callable[[int], object], count: int) -> list[object]:
    """Run `work(0)` .. `work(count - 1)` at the same time; what each returned or raised."""
    barrier = Barrier(count)

    def run(number: int) -> object:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:  # noqa: BLE001  # handed to the test, which looks at it
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
