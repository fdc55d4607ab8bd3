"""JobStore, the one class that reads and writes the database: what the API does with jobs, and readiness.

Projects, keys and data sets are in access.py, the controller's side in control.py. Every transaction is short and
holds no other I/O.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from sqlalchemy import JSON, and_, exists, func, literal, or_, select, tuple_, type_coerce
from sqlalchemy.orm import Session

from resforge.jobs import TERMINAL, Attempt, DatasetInfo, Event, Job, JobState, Reason
from resforge.spec import CommonSpec
from resforge.storage import dataset_folder, overlap, own_folder
from services.errors import (
    DatasetInUse,
    DatasetNotIngested,
    DatasetsOverlap,
    GenerationMismatch,
    IdempotencyConflict,
    JobEnded,
    JobNotTerminal,
    SchemaNotCurrent,
)
from services.store.access import AccessStore, dataset_of, hold_dataset, no_dataset, random_id, require_project
from services.store.base import append_events, attempt_of, cursor_of, event_of, find_job, insert, job_of, parse_cursor
from services.store.control import ControlStore
from services.store.migrate import current_revision, head_revision
from services.store.records import JobRecord, NewEvent
from services.store.studies import StudyStore
from services.store.tables import (
    AttemptRow,
    DatasetRow,
    EventRow,
    JobLabelRow,
    JobRow,
    LeaseRow,
    ProjectRow,
    Text,
    UtcDateTime,
)

NAMED = 20  # jobs that a message names

_LIVE = JobRow.state.not_in(sorted(TERMINAL))
_KIND = type_coerce(JobRow.spec, JSON)["kind"].as_string()


class JobStore(AccessStore, ControlStore, StudyStore):
    """The database, as the API and the controller see it. Safe to share between threads.

    Every method raises StoreUnavailable when the database does not answer.
    """

    def submit(
        self,
        project: str,
        spec: CommonSpec,
        dataset: DatasetInfo,
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> tuple[Job, bool]:
        """Add a job, and tell whether it is new: the same key with the same hash gives the first job again.

        Raises:
            DatasetNotFound: an ingested data set that the spec names was removed since it was looked for.
            IdempotencyConflict: the key was used in this project with another hash.
            ProjectNotFound: there is no such project.
        """
        while True:
            answer = self._submit_once(project, spec, dataset, idempotency_key, request_hash)
            if answer is not None:
                return answer

    def _submit_once(
        self, project: str, spec: CommonSpec, dataset: DatasetInfo, idempotency_key: str | None, request_hash: str
    ) -> tuple[Job, bool] | None:
        now, job_id = self._now(), f"job-{random_id()}"
        values = {
            "id": job_id,
            "project": project,
            "name": spec.name,
            "state": JobState.QUEUED,
            "spec": spec,
            "dataset": dataset,
            "events_cursor": JobRecord.events_cursor,
            "idempotency_key": idempotency_key,
            "request_hash": request_hash,
            "created_at": now,
            "updated_at": now,
        }
        with self._write() as session:
            require_project(session.get(ProjectRow, project), project)
            # Of two submissions with one key, the database lets one insert; the other waits for it and then reads it.
            added = session.scalar(
                insert(session, JobRow)
                .values(values)
                .on_conflict_do_nothing(index_elements=["project", "idempotency_key"])
                .returning(JobRow.id)
            )
            if added is not None:
                hold_dataset(session, spec, dataset)
                session.add_all(JobLabelRow(job_id=job_id, key=key, value=value) for key, value in spec.labels.items())
                append_events(session, job_id, [NewEvent("JobSubmitted", after=JobState.QUEUED)], now)
                return job_of(find_job(session, project, job_id)), True
            first = session.scalar(
                select(JobRow).where(JobRow.project == project, JobRow.idempotency_key == idempotency_key)
            )
            if first is None:  # it was deleted between the two statements
                return None
            if first.request_hash != request_hash:
                raise IdempotencyConflict(
                    f"the Idempotency-Key {idempotency_key!r} was used for {first.id} with another body"
                )
            return job_of(first), False

    def job(self, project: str, job_id: str) -> Job:
        """One job.

        Raises:
            JobNotFound: the project has no such job.
        """
        with self._read() as session:
            return job_of(find_job(session, project, job_id))

    def jobs(
        self,
        project: str,
        *,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """A page of at most `limit` jobs, newest first, and the cursor of the next page, if there is one.

        With `states`, jobs in any of them; with `labels`, jobs that have all of them.

        Raises:
            InvalidCursor: the cursor is none that this method gave.
        """
        query = select(JobRow).where(JobRow.project == project)
        if states:
            query = query.where(JobRow.state.in_(states))
        for key, value in (labels or {}).items():
            labelled = select(JobLabelRow.job_id).where(JobLabelRow.key == key, JobLabelRow.value == value)
            query = query.where(JobRow.id.in_(labelled))
        if cursor is not None:
            at, job_id = parse_cursor(cursor)
            place = tuple_(literal(at, UtcDateTime), literal(job_id, Text))
            query = query.where(tuple_(JobRow.created_at, JobRow.id) < place)
        query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
        with self._read() as session:
            rows = session.scalars(query).all()
        page = [job_of(row) for row in rows[:limit]]
        return page, cursor_of(page[-1].created_at, page[-1].id) if len(rows) > limit else None

    def request_cancel(self, project: str, job_id: str, *, generation: int | None = None) -> Job:
        """Ask for a job's end; the controller brings it about. Asking again changes nothing.

        Raises:
            JobNotFound: the project has no such job.
            JobEnded: the job has ended.
            GenerationMismatch: `generation` is given and is not the job's.
        """
        now = self._now()
        with self._write() as session:
            row = find_job(session, project, job_id, lock=True)
            if row.state in TERMINAL:
                raise JobEnded(f"job {job_id} has ended: it is {row.state}")
            if row.cancel_requested:
                return job_of(row)
            if generation not in (None, row.generation):
                raise GenerationMismatch(f"job {job_id} is at generation {row.generation}, not {generation}")
            row.cancel_requested = True
            row.generation += 1
            row.version += 1
            row.updated_at = now
            session.flush()
            append_events(session, job_id, [NewEvent("CancelRequested", reason=Reason.CANCELLED_BY_USER)], now)
            return job_of(row)

    def delete_job(self, project: str, job_id: str) -> None:
        """Remove an ended job with its attempts and events. Its objects in storage are the caller's to remove.

        Raises:
            JobNotFound: the project has no such job.
            JobNotTerminal: the job has not ended.
        """
        with self._write() as session:
            row = find_job(session, project, job_id, lock=True)
            if row.state not in TERMINAL:
                raise JobNotTerminal(f"job {job_id} is {row.state}; cancel it first, and delete it once it has ended")
            session.delete(row)

    def attempts(self, project: str, job_id: str) -> list[Attempt]:
        """A job's attempts, by number.

        Raises:
            JobNotFound: the project has no such job.
        """
        query = select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)
        with self._read() as session:
            find_job(session, project, job_id)
            return [attempt_of(row) for row in session.scalars(query)]

    def events(self, project: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """The first `limit` of a job's events whose id is above `after`, in order.

        Raises:
            JobNotFound: the project has no such job.
        """
        query = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after)
        with self._read() as session:
            find_job(session, project, job_id)
            return [event_of(row) for row in session.scalars(query.order_by(EventRow.id).limit(limit))]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state, over all projects."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        with self._read() as session:
            found = {state: count for state, count in session.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def oldest_queued(self) -> datetime | None:
        """When the oldest job was submitted that waits for its first attempt, here or in a queue of the cluster's."""
        held = exists().where(AttemptRow.job_id == JobRow.id, AttemptRow.number == 1, AttemptRow.admitted_at.is_(None))
        waits = or_(
            JobRow.state == JobState.QUEUED, and_(JobRow.state == JobState.STARTING, JobRow.attempts == 1, held)
        )
        with self._read() as session:
            return session.scalar(select(func.min(JobRow.created_at)).where(waits))

    def source(self, project: str, job_id: str) -> tuple[Job, DatasetInfo]:
        """A job and the data set that it was submitted with.

        Raises:
            JobNotFound: the project has no such job.
        """
        with self._read() as session:
            row = find_job(session, project, job_id)
            return job_of(row), row.dataset

    def ingest_targets(self, project: str, idempotency_key: str | None) -> list[str]:
        """Where ingests that have not ended write to, of those that were given a place. Any project's count, but not
        the job that this project has submitted with this key: that is the one asked about."""
        query = select(JobRow).where(_LIVE, _KIND == "ingest")
        with self._read() as session:
            return [
                row.dataset.location
                for row in session.scalars(query)
                if row.dataset.location is not None
                and (idempotency_key is None or (row.project, row.idempotency_key) != (project, idempotency_key))
            ]

    def remove_dataset(self, project: str, name: str, *, bucket: str) -> DatasetInfo:
        """Unregister a data set that the project has ingested, and give back what was known of it. Its objects are the
        caller's to remove, where they have a folder of their own in `bucket`, which is the service's. Jobs that have
        ended keep what they were submitted with.

        Raises:
            DatasetInUse: jobs of the project that have not ended read it, or write where it lies.
            DatasetNotFound: the project may name no such data set.
            DatasetNotIngested: it is the operator's.
            DatasetsOverlap: removing its objects would remove another's.
        """
        with self._write() as session:
            # What names it takes a lock upon it too (hold_dataset): its job is seen below, or comes too late.
            row = session.scalar(select(DatasetRow).where(DatasetRow.name == name).with_for_update())
            if row is None or row.project not in (None, project):
                raise no_dataset(name)
            dataset = dataset_of(row)
            if dataset.project is None:
                raise DatasetNotIngested(
                    f"data set {name} is the operator's; a project removes only what it has ingested itself"
                )
            if busy := list(_jobs_at(session, dataset, bucket)):
                more = f" and {len(busy) - NAMED} more" if len(busy) > NAMED else ""
                raise DatasetInUse(
                    f"data set {name} is in use by jobs that have not ended: {', '.join(busy[:NAMED])}{more}; wait for "
                    "their end, or cancel them"
                )
            # Where its objects are left, they spoil nobody's.
            if own_folder(dataset, bucket) is not None and (beside := list(_datasets_at(session, dataset))):
                raise DatasetsOverlap(
                    f"the objects of data set {name} lie in one place with those of {', '.join(beside)}, which would "
                    "be removed too; ingest one of them to another place first"
                )
            session.delete(row)
            return dataset

    def last_tick(self) -> datetime | None:
        """When a controller last finished a look at all live jobs; None if none ever did."""
        with self._read() as session:
            return session.scalar(select(func.max(LeaseRow.last_tick_at)))

    def check(self) -> None:
        """Make sure that the database answers and has this version's schema.

        Raises:
            StoreUnavailable: it does not answer.
            SchemaNotCurrent: the schema is another version's, or absent.
        """
        with self._read() as session:
            current = current_revision(session.connection())
        if current != head_revision():
            raise SchemaNotCurrent(
                f"the database's schema is at {current or 'nothing'} and this version needs {head_revision()}; "
                "`python -m services migrate` brings an older one there"
            )


def _jobs_at(session: Session, dataset: DatasetInfo, bucket: str) -> Iterator[str]:
    """The project's jobs that have not ended and read what lies at the data set's place, or write there."""
    query = select(JobRow.id, JobRow.dataset, _KIND).where(_LIVE, JobRow.project == dataset.project)
    for job, theirs, kind in session.execute(query.order_by(JobRow.created_at, JobRow.id)):
        place = theirs.location
        if place is None and kind == "ingest":  # it was given no place, and writes to its own
            place = f"s3://{bucket}/{dataset_folder(dataset.project or '', theirs.name, job)}"
        if place is not None and dataset.location is not None and overlap(place, dataset.location):
            yield job


def _datasets_at(session: Session, dataset: DatasetInfo) -> Iterator[str]:
    """Other data sets, anybody's, that lie at the data set's place, or above or below it."""
    query = select(DatasetRow.name, DatasetRow.location).where(DatasetRow.name != dataset.name)
    for name, location in session.execute(query.order_by(DatasetRow.name)):
        if location is not None and dataset.location is not None and overlap(location, dataset.location):
            yield name
