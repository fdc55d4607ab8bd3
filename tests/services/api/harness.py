"""A real API on a free port over a real database and a real S3 server, and jobs in it as controller and trainer would
leave them."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import BaseModel

from resforge import recipes
from resforge.client import Client
from resforge.jobs import Attempt, AttemptState, Job, JobState
from resforge.metrics import EvalPoint, LogLine, TrainPoint
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import MANIFEST, WEIGHTS, JobPrefix, Manifest, Part, Stream
from services.api.app import create_app
from services.api.server import Server
from services.settings import Settings
from services.store import connect, migrate
from services.store.builtin import BUILTIN
from services.store.records import Change, JobRecord
from services.store.store import JobStore
from tests.s3 import S3Server, free_port

PROJECT = "demo"
SPEC = recipes.get("digits/resnet-20").spec
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POLL_S = 0.05


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


def new_store(folder: Path) -> JobStore:
    """A migrated SQLite database with the project."""
    engine = connect(f"sqlite:///{folder / 'api.db'}")
    migrate(engine)
    store = JobStore(engine)
    store.create_project(PROJECT)
    return store


@dataclass
class Api:
    """A running API, and hands on what lies behind it."""

    url: str
    key: str
    store: JobStore
    objects: ObjectStore
    server: Server

    def http(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def client(self, **options: Any) -> Client:
        return Client(self.url, self.key, **options)

    # As the controller would

    def submit(self, spec: TrainSpec = SPEC, project: str = PROJECT) -> Job:
        return self.store.submit(project, spec, BUILTIN[0])[0]

    def change(self, job: Job, change: Callable[[JobRecord], Change]) -> Job:
        lease = self.store.acquire_lease("controller", "test", 600)
        assert lease is not None
        [record] = [record for record in self.store.live_jobs() if record.job.id == job.id]
        return self.store.apply(lease, record, change(record)).job

    def to(self, job: Job, *states: JobState) -> Job:
        for state in states:
            job = self.change(job, lambda _, state=state: Change(job={"state": state}))
        return job

    def start(self, job: Job) -> Job:
        """To STARTING, with a new attempt."""
        attempt = Attempt(job=job.id, number=job.attempts + 1, state=AttemptState.PENDING, created_at=AT)
        return self.change(job, lambda _: Change(job={"state": JobState.STARTING}, new_attempt=attempt))

    def running(self, spec: TrainSpec = SPEC) -> Job:
        return self.to(self.start(self.submit(spec)), JobState.RUNNING)

    def ended(self) -> Job:
        return self.to(self.running(), JobState.SUCCEEDED)

    def retry(self, job: Job) -> Job:
        """A second attempt, running."""
        return self.to(self.start(self.to(job, JobState.RECOVERING)), JobState.RUNNING)

    # As the trainer would

    def prefix(self, job: Job) -> JobPrefix:
        return JobPrefix.of(job.project, job.id)

    def append(
        self, job: Job, stream: Stream, part: int, records: Iterable[BaseModel | bytes], *, attempt: int = 1
    ) -> None:
        lines = [item if isinstance(item, bytes) else item.model_dump_json().encode() for item in records]
        key = self.prefix(job).attempt(attempt).stream_part(stream, part)
        self.objects.put(key, b"".join(line + b"\n" for line in lines))

    def checkpoint(
        self, job: Job, step: int, *, attempt: int = 1, top1: float | None = None, weights: bytes = b"", **fields: Any
    ) -> Manifest:
        data = {WEIGHTS: weights or f"weights {attempt} {step}".encode() * 100, "trainer.pt": b"state"}
        base = self.prefix(job).attempt(attempt).checkpoint(step)
        manifest = Manifest(
            job=job.id, attempt=attempt, step=step, epoch=step // 10, offset=step % 10, created_at=AT, workers=2,
            model=job.spec.model, channels=1, classes=10, image_size=8, dataset="digits", dataset_format="digits",
            evaluation=None if top1 is None else evaluation(step, top1, attempt=attempt),
            parts=tuple(
                Part(name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
                for name, content in data.items()
            ),
            **fields,
        ).sealed()  # fmt: skip
        for name, content in data.items():
            self.objects.put(base + name, content)
        self.objects.put(base + MANIFEST, manifest.to_bytes())
        return manifest


def evaluation(step: int, top1: float, *, attempt: int = 1) -> EvalPoint:
    return EvalPoint(at=AT, attempt=attempt, step=step, epoch=step // 10, loss=0.5, top1=top1, top5=1.0, images=360)


def point(step: int, *, attempt: int = 1) -> TrainPoint:
    return TrainPoint(
        at=AT, attempt=attempt, step=step, epoch=0, loss=1.0 / (step + 1), top1=0.5, top5=0.9, lr=0.1,
        images_per_second=100.0, step_time_s=0.1, data_wait_s=0.0, eta_s=1.0,
    )  # fmt: skip


def line(text: str, *, attempt: int = 1) -> LogLine:
    return LogLine(at=AT, attempt=attempt, source="driver", line=text)


def settings_for(s3: S3Server, **changes: Any) -> Settings:
    fields = {"database_url": "sqlite:///unused", "s3_bucket": s3.bucket, "s3_endpoint": s3.endpoint}
    return Settings.model_validate({**fields, **changes})


@contextmanager
def serve(
    store: JobStore, s3: S3Server, *, objects: ObjectStore | None = None, app_options: Any = None, **settings: Any
) -> Iterator[Api]:
    """A real API in a thread of this process, until the block ends."""
    objects = objects or s3.store(attempts=1)
    options = {"poll_s": POLL_S, **(app_options or {})}
    with serve_app(create_app(settings_for(s3, **settings), store=store, objects=objects, **options)) as (server, url):
        yield Api(url, store.create_key(PROJECT)[1], store, objects, server)


@contextmanager
def serve_app(app: FastAPI) -> Iterator[tuple[Server, str]]:
    """An app in a thread of this process on a free port, and its URL."""
    port = free_port()
    server = Server(app, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), "the API's start")
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the API did not stop"


@dataclass(frozen=True)
class Sse:
    """An event as a plain reader of the wire finds it."""

    id: str | None
    event: str | None
    data: Any


def read_sse(response: httpx.Response) -> Iterator[Sse]:
    """The events of a response, parsed without the client's own reader."""
    text = b""
    for chunk in response.iter_raw():
        text += chunk
        while b"\n\n" in text:
            block, _, text = text.partition(b"\n\n")
            pairs = [row.split(b": ", 1) for row in block.split(b"\n")]
            fields = {name.decode(): value.decode() for name, value in pairs}
            if "data" in fields:
                yield Sse(fields.get("id"), fields.get("event"), json.loads(fields["data"]))
