"""What can be followed of a job: its events from the database, its logs and metrics from object storage."""

import json
import logging
from collections.abc import Sequence

from pydantic import BaseModel, TypeAdapter

from resforge.jobs import JobState
from resforge.resources import METRIC_ENTRY, EvalEntry, LogEntry, TrainEntry
from resforge.s3 import ObjectStore
from resforge.storage import Cursor, JobPrefix, Stream, read_stream
from services.api.tail import Item, Source
from services.store.store import JobStore

logger = logging.getLogger(__name__)

Entry = LogEntry | TrainEntry | EvalEntry
LOG_ENTRY: TypeAdapter[LogEntry] = TypeAdapter(LogEntry)


def job_events(store: JobStore, project: str, job_id: str) -> Source[int]:
    def read(after: int, limit: int) -> list[Item[int]]:
        events = store.events(project, job_id, after=after, limit=limit)
        return [Item(event.id, event) for event in events]

    return Source((project, job_id, "events"), read, lambda: _state(store, project, job_id))


def job_stream(store: JobStore, objects: ObjectStore, project: str, job_id: str, stream: Stream) -> Source[Cursor]:
    """The logs or the metrics of all attempts."""

    def read(after: Cursor, limit: int) -> list[Item[Cursor]]:
        attempts = range(1, store.job(project, job_id).attempts + 1)
        # One more than wanted, which tells whether the last one is the stream's last.
        lines = read_stream(objects, JobPrefix.of(project, job_id), stream, attempts, after=after, limit=limit + 1)
        return parse_lines(lines, LOG_ENTRY if stream is Stream.LOGS else METRIC_ENTRY)[:limit]

    return Source((project, job_id, str(stream)), read, lambda: _state(store, project, job_id))


def _state(store: JobStore, project: str, job_id: str) -> JobState:
    return store.job(project, job_id).state


def parse_lines(
    lines: Sequence[tuple[Cursor, bytes]], adapter: TypeAdapter[LogEntry] | TypeAdapter[TrainEntry | EvalEntry]
) -> list[Item[Cursor]]:
    """The records on these lines; one that can't be read gives an item without a record, so that the stream goes on.

    The very last line gets another chance: some servers show an object while it is being written.
    """
    items: list[Item[Cursor]] = []
    for index, (cursor, line) in enumerate(lines):
        record: BaseModel | None = None
        try:
            record = adapter.validate_python({**json.loads(line), "id": str(cursor)})
        except (ValueError, TypeError) as error:
            if index == len(lines) - 1:
                break
            logger.warning("a line at %s can't be read: %s", cursor, error)
        items.append(Item(cursor, record))
    return items
