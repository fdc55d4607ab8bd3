"""What the controller's tests play on: a store, an S3, a launcher in memory, a clock that tests turn, and drivers."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from resforge.jobs import Attempt, DatasetInfo, Event, Job, JobState, Reason
from resforge.metrics import EvalPoint, Progress
from resforge.s3 import ObjectStore
from resforge.spec import RetrySpec, ScalingSpec, TrainSpec
from resforge.storage import AttemptPrefix, Document, Heartbeat, JobPrefix, Result, Stream
from services.controller.loop import Controller
from services.controller.metrics import ControllerMetrics
from services.launchers.base import Launcher, LaunchRequest
from services.launchers.memory import MemoryLauncher
from services.settings import Settings
from services.store.store import JobStore


@dataclass
class Clock:
    """The real time, and what a test has added to it. Store and controllers share one."""

    added: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.added

    def turn(self, seconds: float) -> None:
        self.added += timedelta(seconds=seconds)


@dataclass
class Driver:
    """Plays the driver of an attempt: writes what a real one writes."""

    objects: ObjectStore
    keys: AttemptPrefix
    attempt: int
    beat: int = 0
    parts: int = 0

    def heartbeat(self, restarts: int = 0) -> None:
        self.beat += 1
        self._put(self.keys.heartbeat, Heartbeat(at=_now(), beat=self.beat, every_s=1, restarts=restarts))

    def progress(self, step: int) -> None:
        at = Progress(at=_now(), attempt=self.attempt, step=step, total_steps=100, epoch=0, total_epochs=1)
        self._put(self.keys.progress, at)

    def event(self, kind: str, **data: Any) -> None:
        line = {"at": _now().isoformat(), "type": kind, "message": f"{kind} happened", "data": data}
        self.part(json.dumps(line).encode() + b"\n")

    def part(self, lines: bytes) -> None:
        self.parts += 1
        self.objects.put(self.keys.stream_part(Stream.EVENTS, self.parts), lines)

    def succeed(self) -> None:
        point = EvalPoint(at=_now(), attempt=self.attempt, step=100, epoch=1, loss=0.1, top1=0.98, top5=1, images=360)
        self._put(self.keys.result, Result(at=_now(), outcome="succeeded", step=100, evaluation=point))

    def fail(self, reason: Reason, message: str = "it broke") -> None:
        self._put(self.keys.result, Result(at=_now(), outcome="failed", reason=reason, message=message, step=9))

    def stop(self) -> None:
        self._put(self.keys.result, Result(at=_now(), outcome="stopped", step=50))

    def _put(self, key: str, document: Document | Progress) -> None:
        self.objects.put(key, document.model_dump_json().encode())


@dataclass
class Stage:
    store: JobStore
    objects: ObjectStore
    launcher: MemoryLauncher
    project: str
    spec: TrainSpec
    dataset: DatasetInfo
    clock: Clock = field(default_factory=Clock)
    controllers: list[Controller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store._now = self.clock  # one clock for leases and for what the controllers write

    def settings(self, **changes: Any) -> Settings:
        return Settings(database_url="sqlite:///unused", s3_bucket=self.objects.bucket, **changes)

    def controller(
        self,
        holder: str | None = None,
        *,
        store: JobStore | None = None,
        objects: ObjectStore | None = None,
        launcher: Launcher | None = None,
        metrics: ControllerMetrics | None = None,
        **settings: Any,
    ) -> Controller:
        made = Controller(
            store or self.store,
            objects or self.objects,
            launcher or self.launcher,
            self.settings(**settings),
            clock=self.clock,
            holder=holder,
            metrics=metrics,
        )
        self.controllers.append(made)
        return made

    def close(self) -> None:
        for controller in self.controllers:
            controller._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, *, workers: int = 1, errors: int = 0, infrastructure: int = 8) -> Job:
        spec = self.spec.model_copy(
            update={
                "scaling": ScalingSpec(workers=workers),
                "retry": RetrySpec(errors=errors, infrastructure=infrastructure),
            }
        )
        return self.store.submit(self.project, spec, self.dataset)[0]

    def job(self, job: Job) -> Job:
        return self.store.job(self.project, job.id)

    def attempts(self, job: Job) -> list[Attempt]:
        return self.store.attempts(self.project, job.id)

    def events(self, job: Job) -> list[Event]:
        return self.store.events(self.project, job.id, limit=1000)

    def prefix(self, job: Job) -> JobPrefix:
        return JobPrefix.of(job.project, job.id)

    def driver(self, job: Job, attempt: int = 1) -> Driver:
        return Driver(self.objects, self.prefix(job).attempt(attempt), attempt)

    def finish(self, request: LaunchRequest) -> None:
        """Let an attempt succeed as soon as it starts; for the launcher's `on_start`."""
        job = JobPrefix(request.prefix_uri.removeprefix(self.objects.uri("")) + "/")
        driver = Driver(self.objects, job.attempt(request.attempt), request.attempt)
        driver.heartbeat()
        driver.progress(100)
        driver.succeed()

    def until(self, controller: Controller, job: Job, *states: JobState, ticks: int = 12) -> Job:
        """Tick until the job is in one of the states."""
        for _ in range(ticks):
            if (seen := self.job(job)).state in states:
                return seen
            controller.tick()
        raise AssertionError(f"still {self.job(job)} after {ticks} ticks")

    def running(self, controller: Controller, job: Job, attempt: int = 1) -> Driver:
        """Bring an attempt to RUNNING and give its driver."""
        driver = self.driver(job, attempt)
        driver.heartbeat()
        driver.progress(1)
        for _ in range(12):
            seen = self.job(job)
            if (seen.state, seen.attempts) == (JobState.RUNNING, attempt):
                return driver
            controller.tick()
        raise AssertionError(f"attempt {attempt} does not run: {self.job(job)}")


def _now() -> datetime:
    return datetime.now(UTC)
