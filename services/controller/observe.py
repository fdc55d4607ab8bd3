"""What the controller reads: the launcher and object storage, once a tick for each live job."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from resforge.metrics import Progress, Record
from resforge.s3 import ObjectStore, StorageError, StorageUnavailable
from resforge.storage import Cursor, Heartbeat, JobPrefix, Result, Stream, read_stream
from services.controller.decide import Observed
from services.launchers.base import Launcher, LauncherUnavailable, Node, Observation, PoolUnknown
from services.store.records import AttemptRecord, JobRecord, NewEvent

logger = logging.getLogger(__name__)

D = TypeVar("D", bound=BaseModel)


class TrainerEvent(Record):
    """A line of an attempt's events stream."""

    type: str = Field(min_length=1)
    message: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class Look:
    """One tick's look at the world. Safe to share between threads.

    What has not answered is not asked again in the same tick: with a hundred jobs and a dead server, each of them
    would wait for its own timeout.
    """

    def __init__(self, launcher: Launcher, objects: ObjectStore) -> None:
        self._launcher = launcher
        self._objects = objects
        self._launcher_error = ""
        self._storage_error = ""

    def nodes(self, pool: str) -> tuple[list[Node] | None, str]:
        """A pool's nodes, or None where gangs are queued elsewhere; and why there is no answer, or nothing."""
        if not self._launcher_error:
            try:
                return self._launcher.nodes(pool), ""
            except PoolUnknown as error:
                return None, str(error)
            except LauncherUnavailable as error:
                self._launcher_error = str(error)
        return None, self._launcher_error

    def storage(self) -> str:
        """Why storage does not answer; empty if it does."""
        if not self._storage_error:
            try:
                self._objects.check()
            except StorageError as error:
                self._storage_error = str(error)
        return self._storage_error

    def attempt(self, record: JobRecord, attempt: AttemptRecord) -> Observed:
        """What is to be seen of a job's live attempt; the launcher first, as `Observed` asks."""
        launcher, launcher_error = self._observe(attempt.attempt.external_name)
        observed = Observed(launcher=launcher, launcher_error=launcher_error, storage_error=self._storage_error)
        # What was taken and waits for room has no driver yet, so there is nothing to read.
        if observed.storage_error or (launcher is not None and launcher.queued and attempt.beat is None):
            return observed
        try:
            return self._read(record, attempt, observed)
        except _Unreadable as error:
            return replace(observed, storage_error=str(error))
        except StorageError as error:
            if isinstance(error, StorageUnavailable):
                self._storage_error = str(error)
            return replace(observed, storage_error=str(error))

    def _observe(self, name: str) -> tuple[Observation | None, str]:
        if not self._launcher_error:
            try:
                return self._launcher.observe(name), ""
            except LauncherUnavailable as error:
                self._launcher_error = str(error)
        return None, self._launcher_error

    def _read(self, record: JobRecord, attempt: AttemptRecord, observed: Observed) -> Observed:
        prefix = JobPrefix.of(record.job.project, record.job.id)
        keys = prefix.attempt(attempt.attempt.number)
        seen = replace(
            observed,
            result=self._document(Result, keys.result),
            heartbeat=self._document(Heartbeat, keys.heartbeat),
            progress=self._document(Progress, keys.progress),
        )
        # A live driver's beat moves all the time, so events are seen soon; the last ones come before the result.
        quiet = seen.heartbeat is None or seen.heartbeat.beat == attempt.beat
        lives = seen.launcher is None or seen.launcher.phase in ("pending", "running")
        if quiet and lives and seen.result is None and seen.progress == record.job.progress:
            return seen
        events, cursor = self._events(record, prefix)
        return replace(seen, events=events, events_cursor=cursor)

    def _document(self, model: type[D], key: str) -> D | None:
        data = self._objects.find(key)
        if data is None:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            # A small server may show an object half-written, so this too proves nothing yet.
            raise _Unreadable(f"{self._objects.uri(key)} can't be understood: {error.errors()[0]['msg']}") from error

    def _events(self, record: JobRecord, prefix: JobPrefix) -> tuple[tuple[NewEvent, ...], str | None]:
        lines = read_stream(
            self._objects,
            prefix,
            Stream.EVENTS,
            range(1, record.job.attempts + 1),
            after=Cursor.parse(record.events_cursor),
        )
        events, last = [], None
        for index, (cursor, line) in enumerate(lines, start=1):
            try:
                told = TrainerEvent.model_validate_json(line)
            except ValidationError as error:
                if index == len(lines):
                    break  # perhaps half-written: it is read again
                logger.warning("job %s: event %s can't be understood: %s", record.job.id, cursor, error.errors()[0])
            else:
                events.append(_copied(told, cursor))
            last = str(cursor)
        return tuple(events), last


class Watch:
    """Since when each job's attempt has been looked after without a gap, storage answering each time.

    Args:
        gap_s: where the controller is not heard from for longer, it, or the whole machine, had been away. A tick may
            take longer than that, so it is heard from in the middle of one too.
    """

    def __init__(self, gap_s: float) -> None:
        self._gap = timedelta(seconds=gap_s)
        self._awake: datetime | None = None
        self._since: dict[str, datetime] = {}

    def awake(self, now: datetime) -> None:
        """Note that the controller is at work."""
        if self._awake is None or not self._awake <= now <= self._awake + self._gap:
            self._since = {}
        self._awake = now

    def note(self, answered: Mapping[str, bool], now: datetime) -> dict[str, datetime]:
        """Note a tick's looks, whether storage answered by job, and give the beginnings of the spans that go on."""
        self.awake(now)
        self._since = {job: self._since.get(job, now) for job, storage_answered in answered.items() if storage_answered}
        return dict(self._since)

    def forget(self) -> None:
        """Begin anew, as after a time in which another controller acted."""
        self._awake, self._since = None, {}


class _Unreadable(Exception):
    """An object is not what it should be."""


def _copied(told: TrainerEvent, cursor: Cursor) -> NewEvent:
    return NewEvent(
        type=told.type,
        attempt=cursor.attempt,
        message=told.message,
        data=told.data,
        at=told.at,
        source=str(cursor),
    )
