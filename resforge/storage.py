"""What lies where in object storage: the one source of every key, and the documents under a job's prefix.

    <project>/studies/<study>/study.json                      what a study consists of
    <project>/datasets/<name>/<job>/dataset.json              a data set that a job ingested (trainer/data/shards.py)
    <project>/<job>/spec.json                                 what to train, and on what data
                    control.json                              what the control plane wants: run or stop
                    attempts/<n>/attempt.json                 which attempts this one may resume from
                                 heartbeat.json               the driver's sign of life
                                 progress.json                where rank 0 is
                                 verdict.json                 how the workers say that it ended
                                 result.json                  the same, from the driver, as the last object of all
                                 checkpoints/<step>/...       parts, then manifest.json
                                 metrics|logs|events/<part>   streams: numbered objects of JSON lines
                                 report/...                   pictures, then report.json (evaluate and analyse)

Every key under `attempts/<n>` belongs to that attempt alone, so an attempt that was given up but still runs somewhere
can't overwrite its successor's. A checkpoint without a manifest does not exist; `best` and `latest` are computed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resforge.jobs import DatasetInfo, Reason, Resource
from resforge.metrics import EvalPoint
from resforge.spec import JobSpec, ModelSpec

if TYPE_CHECKING:
    from resforge.s3 import ObjectStore

MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"  # what a manifest is renamed to when its checkpoint turns out to be damaged
WEIGHTS = "weights.safetensors"
INPUT = "input.safetensors"
TRAINER_STATE = "trainer.pt"
REPORT = "report.json"


class Stream(StrEnum):
    """The append-only streams of an attempt."""

    METRICS = "metrics"
    LOGS = "logs"
    EVENTS = "events"


@dataclass(frozen=True)
class AttemptPrefix:
    """The keys of one attempt. `key` ends in a slash."""

    key: str

    @property
    def attempt(self) -> str:
        return f"{self.key}attempt.json"

    @property
    def heartbeat(self) -> str:
        return f"{self.key}heartbeat.json"

    @property
    def progress(self) -> str:
        return f"{self.key}progress.json"

    @property
    def verdict(self) -> str:
        return f"{self.key}verdict.json"

    @property
    def result(self) -> str:
        return f"{self.key}result.json"

    @property
    def checkpoints(self) -> str:
        return f"{self.key}checkpoints/"

    def checkpoint(self, step: int) -> str:
        return f"{self.checkpoints}{step:010d}/"

    @property
    def report(self) -> str:
        return f"{self.key}report/"

    def stream(self, stream: Stream) -> str:
        return f"{self.key}{stream}/"

    def stream_part(self, stream: Stream, part: int) -> str:
        """The key of a stream's part, from 1."""
        return f"{self.stream(stream)}{part:08d}.jsonl"


@dataclass(frozen=True)
class JobPrefix:
    """The keys of one job. `key` ends in a slash."""

    key: str

    @classmethod
    def of(cls, project: str, job: str) -> Self:
        return cls(f"{project}/{job}/")

    @property
    def spec(self) -> str:
        return f"{self.key}spec.json"

    @property
    def control(self) -> str:
        return f"{self.key}control.json"

    @property
    def attempts(self) -> str:
        return f"{self.key}attempts/"

    def attempt(self, number: int) -> AttemptPrefix:
        return AttemptPrefix(f"{self.attempts}{number}/")


def study_key(project: str, study: str) -> str:
    """The key of a study's document, which says what it consists of."""
    return f"{project}/studies/{study}/study.json"


def dataset_folder(project: str, name: str, job: str) -> str:
    """The key, ending in a slash, under which a job's data set lies, unless the job names another place."""
    return f"{datasets_folder(project)}{name}/{job}/"


def datasets_folder(project: str) -> str:
    """The key, ending in a slash, under which all data sets of a project lie in the service's own bucket."""
    return f"{project}/datasets/"


def own_folder(dataset: DatasetInfo, bucket: str) -> str | None:
    """The key, ending in a slash, of an ingested data set's folder where that lies below its project's data sets in
    the service's own bucket, `bucket`. None elsewhere: what lies there is not the service's to remove."""
    mine = f"s3://{bucket}/"
    if dataset.project is None or dataset.location is None or not dataset.location.startswith(mine):
        return None
    parts = dataset.location.removeprefix(mine).rstrip("/").split("/")
    # A worker wrote the location, and a server that keeps objects in files may follow `..` into another project.
    if any(part in ("", ".", "..") for part in parts):
        return None
    key, folder = f"{'/'.join(parts)}/", datasets_folder(dataset.project)
    return key if key.startswith(folder) and key != folder else None


def overlap(one: str, other: str) -> bool:
    """Whether one address is the other, or lies below it."""
    first, second = f"{one.rstrip('/')}/", f"{other.rstrip('/')}/"
    return first.startswith(second) or second.startswith(first)


def compiled_folder(project: str) -> str:
    """The key, ending in a slash, under which a project's compiled steps lie in the service's own bucket."""
    return f"{project}/compiled/"


class Document(BaseModel):
    """A JSON object of ours in storage; unknown fields are let through, so old and new versions can meet."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


class JobDocument(Document):
    """spec.json: everything that a driver needs to know of its job."""

    job: str
    project: str
    spec: JobSpec
    dataset: DatasetInfo


class AttemptDocument(Document):
    """attempt.json: what the controller tells one attempt."""

    number: int
    resume_from: tuple[int, ...] = Field(default=(), description="Attempts whose checkpoints may be resumed.")


class Heartbeat(Document):
    """heartbeat.json: `beat` moves while the driver lives; readers compare it by their own clock."""

    at: datetime
    beat: int
    every_s: float
    restarts: int = 0
    leaves: bool = Field(default=False, description="The driver's pod is to end, and the workers are to stop.")


class Control(Document):
    """control.json: what the control plane wants of the running attempt."""

    desired: Literal["run", "stop"]
    generation: int


class Result(Document):
    """verdict.json and result.json: how an attempt ended. What has a verdict is never run again.

    Workers write the verdict. The driver, which still ships what they printed, repeats it as the result when nothing
    more is to come, so whoever sees a result sees a complete attempt.
    """

    at: datetime
    outcome: Literal["succeeded", "failed", "stopped"]
    reason: Reason | None = None
    message: str = ""
    step: int = 0
    evaluation: EvalPoint | None = Field(default=None, description="The evaluation of the best checkpoint.")
    dataset: DatasetInfo | None = Field(default=None, description="What an ingest made.")


class Part(Resource):
    """One file of a checkpoint. `size` is in bytes, `sha256` in hex."""

    name: str
    size: int
    sha256: str


class Manifest(Document):
    """manifest.json: a checkpoint exists once this is written, after all its parts."""

    format: Literal[1] = 1
    job: str
    attempt: int
    step: int = Field(description="Optimiser steps done.")
    epoch: int = Field(description="The epoch in which the next step lies, from 0.")
    offset: int = Field(description="Global batches of that epoch already seen.")
    final: bool = False
    created_at: datetime
    workers: int
    model: ModelSpec
    channels: int
    classes: int
    image_size: int = Field(description="Side of the network's input, in pixels.")
    downscale: int = Field(default=1, description="The data set's images were average-pooled by this factor.")
    dataset: str
    dataset_format: str
    evaluation: EvalPoint | None = None
    parts: tuple[Part, ...]
    digest: str = Field(default="", description="SHA-256 over the other fields, so that the manifest guards itself.")

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def last_epoch(self) -> int:
        """The epoch that its last step belongs to, from 0, as evaluations on the way tell it."""
        return max(0, self.epoch - (self.offset == 0))

    def sealed(self) -> "Manifest":
        """The same manifest with its digest computed."""
        return self.model_copy(update={"digest": _digest(self.to_bytes())})

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            CorruptCheckpoint: it is not one, or its bytes changed since it was sealed.
        """
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            raise CorruptCheckpoint(f"its manifest can't be read: {error.errors()[0]['msg']}") from error
        if manifest.digest != _digest(data):
            raise CorruptCheckpoint("its manifest's bytes have changed since it was written")
        return manifest


def _digest(manifest: bytes) -> str:
    """SHA-256 over a manifest's fields as they stand in its JSON, known to this version or not, without the digest."""
    fields = json.loads(manifest)
    fields.pop("digest", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class CorruptCheckpoint(Exception):
    """The checkpoint is not what was written: {detail}"""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in storage: its manifest and the key, ending in a slash, under which its parts lie."""

    manifest: Manifest
    key: str


def list_checkpoints(store: "ObjectStore", prefix: JobPrefix, attempts: Iterable[int]) -> list[StoredCheckpoint]:
    """The checkpoints of the attempts named, by step and attempt. Ones whose manifest is damaged are left out.

    Only manifests are read here; `trainer.checkpoints` verifies the parts before it trusts them.
    """
    found = []
    for number in attempts:
        base = prefix.attempt(number).checkpoints
        for item in store.list_objects(base):
            if not item.key.endswith(f"/{MANIFEST}"):
                continue
            data = store.find(item.key)
            if data is None:  # removed by the job's own retention since it was listed
                continue
            try:
                found.append(StoredCheckpoint(Manifest.parse(data), item.key.removesuffix(MANIFEST)))
            except CorruptCheckpoint:
                continue
    return sorted(found, key=lambda item: (item.manifest.step, item.manifest.attempt))


def latest(checkpoints: Sequence[StoredCheckpoint]) -> StoredCheckpoint | None:
    """The one with most steps, of the newest attempt."""
    return max(checkpoints, key=lambda item: (item.manifest.step, item.manifest.attempt), default=None)


def best(checkpoints: Sequence[StoredCheckpoint]) -> StoredCheckpoint | None:
    """The evaluated one with the highest top-1 accuracy on held-out data; the earliest of equals."""
    evaluated = [item for item in checkpoints if item.manifest.evaluation is not None]

    def rank(item: StoredCheckpoint) -> tuple[float, int, int]:
        evaluation = item.manifest.evaluation
        assert evaluation is not None
        return (evaluation.top1, -item.manifest.step, item.manifest.attempt)

    return max(evaluated, key=rank, default=None)


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in a job's stream: behind line `line` (from 1) of part `part` of attempt `attempt`."""

    attempt: int = 0
    part: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}.{self.part}.{self.line}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ValueError: the text is no cursor.
        """
        pieces = text.split(".")
        if len(pieces) != 3 or not all(piece.isascii() and piece.isdigit() and len(piece) < 12 for piece in pieces):
            raise ValueError(f"{text!r} is no cursor; cursors look like 1.12.3")
        return cls(*map(int, pieces))


def read_stream(
    store: "ObjectStore",
    prefix: JobPrefix,
    stream: Stream,
    attempts: Iterable[int],
    *,
    after: Cursor | None = None,
    limit: int | None = None,
) -> list[tuple[Cursor, bytes]]:
    """The lines of a stream behind `after`, in order, each with the cursor that stands behind it; at most `limit`."""
    start = after or Cursor()
    lines: list[tuple[Cursor, bytes]] = []
    for number in sorted(attempts):
        if number < start.attempt:
            continue
        keys = prefix.attempt(number)
        begun = start if number == start.attempt else Cursor(number)
        # The part that the cursor stands in is listed again, since lines of it may be left.
        previous = keys.stream_part(stream, begun.part - 1) if begun.part > 1 else None
        for item in store.list_objects(keys.stream(stream), after=previous):
            part = int(item.key.rsplit("/", 1)[1].removesuffix(".jsonl"))
            for index, line in enumerate(store.get(item.key).splitlines(), start=1):
                cursor = Cursor(number, part, index)
                if cursor > start:
                    lines.append((cursor, line))
            if limit is not None and len(lines) >= limit:
                return lines[:limit]
    return lines
