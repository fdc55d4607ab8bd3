"""What the parts of the store share: the engine, a clock, transactions and the rows of jobs as public values."""

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from resforge.jobs import Attempt, Event, Job
from services.errors import InvalidCursor, JobNotFound, StoreUnavailable
from services.store.engine import transaction
from services.store.records import NewEvent
from services.store.tables import AttemptRow, Base, EventRow, JobRow


def utc_now() -> datetime:
    return datetime.now(UTC)


class StoreBase:
    """The engine, a clock that tests may turn, and transactions.

    Args:
        observe: told of each transaction: its kind (read, write), how it ended (ok, unavailable), and seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Callable[[], datetime] = utc_now,
        observe: Callable[[str, str, float], object] = lambda _kind, _outcome, _seconds: None,
    ) -> None:
        self._engine = engine
        self._now = clock
        self._observe = observe

    def _read(self) -> AbstractContextManager[Session]:
        return self._timed("read", read_only=True)

    def _write(self) -> AbstractContextManager[Session]:
        return self._timed("write", read_only=False)

    @contextmanager
    def _timed(self, kind: str, *, read_only: bool) -> Iterator[Session]:
        began, outcome = time.perf_counter(), "ok"
        try:
            with transaction(self._engine, read_only=read_only) as session:
                yield session
        except StoreUnavailable:
            outcome = "unavailable"
            raise
        finally:
            self._observe(kind, outcome, time.perf_counter() - began)


def insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that may have an ON CONFLICT clause, in the database's own dialect."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def find_job(session: Session, project: str, job_id: str, *, lock: bool = False) -> JobRow:
    """The job's row, if it is the project's; locked until the transaction ends, if asked.

    Raises:
        JobNotFound: there is none, or it is another project's.
    """
    query = select(JobRow).where(JobRow.id == job_id, JobRow.project == project)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise JobNotFound(f"project {project} has no job {job_id}")
    return row


def append_events(session: Session, job_id: str, events: Iterable[NewEvent], now: datetime) -> None:
    """Add events in order, leaving out those whose source was copied before.

    The caller has changed the job's row in this transaction: that row's lock is what makes ids rise in the order of
    commits, so that a reader who asks for what is after an id misses nothing.
    """
    rows = [
        {
            "job_id": job_id,
            "at": event.at or now,
            "type": event.type,
            "attempt": event.attempt,
            "before": event.before,
            "after": event.after,
            "reason": event.reason,
            "message": event.message,
            "data": event.data,
            "source": event.source,
        }
        for event in events
    ]
    if rows:
        session.execute(insert(session, EventRow).on_conflict_do_nothing(index_elements=["job_id", "source"]), rows)


def job_of(row: JobRow) -> Job:
    return Job.model_validate(
        {
            "id": row.id,
            "project": row.project,
            "name": row.name,
            "state": row.state,
            "reason": row.reason,
            "message": row.message,
            "spec": row.spec,
            "dataset": row.dataset.name,
            "labels": row.spec.labels,
            "generation": row.generation,
            "attempts": row.attempts,
            "cancel_requested": row.cancel_requested,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "progress": row.progress,
            "result": row.result,
        }
    )


def attempt_of(row: AttemptRow) -> Attempt:
    return Attempt.model_validate(
        {
            "job": row.job_id,
            "number": row.number,
            "state": row.state,
            "reason": row.reason,
            "message": row.message,
            "resume_from": row.resume_from,
            "restarts": row.restarts,
            "created_at": row.created_at,
            "submitted_at": row.submitted_at,
            "admitted_at": row.admitted_at,
            "running_at": row.running_at,
            "finished_at": row.finished_at,
        }
    )


def event_of(row: EventRow) -> Event:
    return Event.model_validate(
        {
            "id": row.id,
            "job": row.job_id,
            "at": row.at,
            "type": row.type,
            "attempt": row.attempt,
            "before": row.before,
            "after": row.after,
            "reason": row.reason,
            "message": row.message,
            "data": row.data,
        }
    )


def cursor_of(created_at: datetime, name: str) -> str:
    """The cursor behind an item of a list that is ordered by time and id."""
    place = f"{created_at.isoformat()} {name}"
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def parse_cursor(cursor: str) -> tuple[datetime, str]:
    """The time and id that `cursor_of` was given.

    Raises:
        InvalidCursor: it gave no such cursor.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        at, name = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(" ")
        created_at = datetime.fromisoformat(at)
        if created_at.utcoffset() != timedelta(0):
            raise ValueError("not in UTC")
        return created_at, name
    except (ValueError, binascii.Error) as error:
        raise InvalidCursor("the cursor is not one that this API gave; leave it out to begin at the newest") from error
