"""The controller's side of the store: leases with fencing, and changes by compare-and-set."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Engine, Select, bindparam, or_, select, update
from sqlalchemy.orm import Session

from resforge.jobs import (
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    TERMINAL,
    Attempt,
    AttemptState,
    DatasetInfo,
    JobState,
    Reason,
)
from services.errors import Fenced, IllegalTransition, Stale
from services.store.access import put_ingested
from services.store.base import StoreBase, append_events, attempt_of, insert, job_of
from services.store.records import AttemptRecord, Change, JobRecord, Lease, NewEvent
from services.store.tables import AttemptRow, JobRow, LeaseRow

AT_ONCE = 500  # ids in one query; for more, everything is read
LIVE = tuple(state for state in JobState if state not in TERMINAL)

# What a Change may set. The rest is the store's own, or never changes.
JOB_COLUMNS = frozenset(
    {"state", "reason", "message", "started_at", "finished_at", "progress", "result"}
    | {"error_failures", "infrastructure_failures", "events_cursor"}
)
ATTEMPT_COLUMNS = frozenset(
    {"state", "reason", "message", "resume_from", "restarts", "submitted_at", "admitted_at", "running_at"}
    | {"finished_at", "beat", "beat_seen_at", "stop_requested_at", "stop_reason"}
)

S = TypeVar("S", bound=StrEnum)


class ControlStore(StoreBase):
    """Leases, and what their holder does with live jobs."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        super().__init__(engine, **options)
        self._live: dict[str, JobRecord] = {}

    def acquire_lease(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Take the lease when it is free or has expired, or renew one's own; None while another holds it.

        The times are the holder's own. Clocks that differ between machines can only make a take-over too early or too
        late: what keeps two holders from acting both is the epoch, which `apply` compares.
        """
        now = self._now()
        expires_at = now + timedelta(seconds=ttl_s)
        this = update(LeaseRow).where(LeaseRow.name == name).values(expires_at=expires_at)
        renew = this.where(LeaseRow.holder == holder)
        free = or_(LeaseRow.holder.is_(None), LeaseRow.expires_at <= now)
        take = this.where(free).values(holder=holder, epoch=LeaseRow.epoch + 1)
        with self._write() as session:
            # Each statement is a compare-and-set: the database lets one writer at a time at the row.
            first = insert(session, LeaseRow).values(name=name, holder=holder, epoch=1, expires_at=expires_at)
            for statement in (renew, take, first.on_conflict_do_nothing(index_elements=["name"])):
                epoch: int | None = session.scalar(statement.returning(LeaseRow.epoch))
                if epoch is not None:
                    return Lease(name, holder, epoch, expires_at)
        return None

    def release_lease(self, lease: Lease) -> None:
        """Give the lease back, so that another need not wait until it expires; harmless when it is lost already."""
        with self._write() as session:
            session.execute(update(LeaseRow).where(*_held(lease)).values(holder=None))

    def record_tick(self, lease: Lease) -> None:
        """Note that the holder has looked at every live job.

        Raises:
            Fenced: the lease is lost.
        """
        with self._write() as session:
            done = update(LeaseRow).where(*_held(lease)).values(last_tick_at=self._now())
            if session.scalar(done.returning(LeaseRow.epoch)) is None:
                raise _fenced(lease)

    def live_jobs(self) -> list[JobRecord]:
        """Every job that has not ended, oldest first, each with its newest attempt.

        A job whose version is that of the last call is not read again: to parse thousands that have not changed would
        take most of a tick. Every write that a job or its attempts see moves its version.
        """
        known = self._live
        live = JobRow.state.in_(LIVE)
        order = (JobRow.created_at, JobRow.id)
        with self._read() as session:
            versions = session.execute(select(JobRow.id, JobRow.version).where(live).order_by(*order)).all()
            changed = [job for job, version in versions if job not in known or known[job].version != version]
            query = _records().where(live)
            if len(changed) <= AT_ONCE:
                query = query.where(JobRow.id.in_(changed))
            fresh = {row.id: _record_of(row, attempt) for row, attempt in session.execute(query)} if changed else {}
        # One that has ended between the two queries is in neither.
        found = ((job, fresh.get(job) or known.get(job), version) for job, version in versions)
        self._live = {
            job: record
            for job, record, version in found
            if record is not None and (job in fresh or record.version == version)
        }
        return list(self._live.values())

    def states(self, jobs: Collection[str]) -> dict[str, JobState]:
        """The states of those of these jobs that exist."""
        with self._read() as session:
            found = session.execute(select(JobRow.id, JobRow.state).where(JobRow.id.in_(jobs)))
            return {job: JobState(state) for job, state in found}

    def apply(self, lease: Lease, record: JobRecord, change: Change) -> JobRecord:
        """Write one decision whole or not at all, and give back the job as it then is.

        Each change of state adds its own event after `change.events`. A reason belongs to its state: a transition
        that gives none clears the old one, and the message with it. A data set whose name is not the project's is
        left out, and the job's message says so.

        Raises:
            Fenced: the lease is lost.
            Stale: the job has changed, or is gone, since `record` was read.
            IllegalTransition: the state machine has no such transition.
            ValueError: the change names a column that it may not set, or an attempt that can't be.
        """
        job, attempt = _new_values(record, change)
        now = self._now()
        with self._write() as session:
            _check_fence(session, lease)
            if change.dataset is not None and not put_ingested(session, change.dataset):
                job["message"] = _not_registered(change.dataset)
                change = replace(change, job={**change.job, "message": job["message"]})
            if change.new_attempt is not None:
                job["attempts"] = change.new_attempt.number
            changed = session.scalar(
                update(JobRow)
                .where(JobRow.id == record.job.id, JobRow.version == record.version)
                .values(version=record.version + 1, updated_at=now, **job)
                .returning(JobRow.id)
            )
            if changed is None:
                raise Stale(f"job {record.job.id} is not at version {record.version} any more")
            if attempt and record.attempt is not None:
                key = (AttemptRow.job_id == record.job.id, AttemptRow.number == record.attempt.attempt.number)
                session.execute(update(AttemptRow).where(*key).values(**attempt))
            if change.new_attempt is not None:
                values = change.new_attempt.model_dump(exclude={"job"})
                session.add(AttemptRow(job_id=record.job.id, **values))
                session.flush()
            append_events(session, record.job.id, (*change.events, *_transitions(record, change)), now)
            row, newest = session.execute(_records().where(JobRow.id == record.job.id)).one()
            return _record_of(row, newest)

    def apply_quiet(self, lease: Lease, changes: Sequence[tuple[JobRecord, Change]]) -> set[str]:
        """Write many quiet changes of live attempts, some hundreds in one transaction.

        A job that has changed, or is gone, since its record was read stays as it is: its driver is heard again.

        Returns:
            The jobs that were written.

        Raises:
            Fenced: the lease is lost; what was written before that stays.
            ValueError: a change is not quiet, or its job has no attempt.
        """
        for record, change in changes:
            if not change.quiet or record.attempt is None:
                raise ValueError(f"job {record.job.id}: {change} is more than what a driver says of itself")
        written = set[str]()
        # In the order in which a study's jobs are locked too.
        ordered = sorted(changes, key=lambda both: both[0].job.id)
        for start in range(0, len(ordered), AT_ONCE):
            written |= self._apply_quiet(lease, [_evolved(*both) for both in ordered[start : start + AT_ONCE]])
        return written

    def _apply_quiet(self, lease: Lease, records: Sequence[JobRecord]) -> set[str]:
        now = self._now()
        write_jobs = (
            update(JobRow)
            .where(JobRow.id == bindparam("of_job"))
            .values(version=bindparam("at_version"), progress=bindparam("new_progress"), updated_at=now)
        )
        write_attempts = (
            update(AttemptRow)
            .where(AttemptRow.job_id == bindparam("of_job"), AttemptRow.number == bindparam("of_number"))
            .values(beat=bindparam("beat_"), beat_seen_at=bindparam("beat_seen"), restarts=bindparam("new_restarts"))
        )
        ids = [record.job.id for record in records]
        locked = select(JobRow.id, JobRow.version).where(JobRow.id.in_(ids)).order_by(JobRow.id).with_for_update()
        with self._write() as session:
            _check_fence(session, lease)
            versions = {job: version for job, version in session.execute(locked)}
            written = [record for record in records if versions.get(record.job.id) == record.version - 1]
            if written:
                said = [_said(record) for record in written]
                session.connection().execute(write_jobs, [job for job, _ in said])
                session.connection().execute(write_attempts, [attempt for _, attempt in said])
        for record in written:
            # Not to be read and parsed again by the next tick.
            self._live[record.job.id] = replace(record, job=record.job.model_copy(update={"updated_at": now}))
        return {record.job.id for record in written}


def _not_registered(dataset: DatasetInfo) -> str:
    return (
        f"All shards are there, and the data set was not registered: there is one of the name {dataset.name} that this "
        "project has not ingested, and it was kept. Ingest it under another name, or have an operator register it."
    )


def _evolved(record: JobRecord, change: Change) -> JobRecord:
    """The record as a quiet change leaves it."""
    assert record.attempt is not None
    job, attempt = _new_values(record, change)
    own = {key: value for key, value in attempt.items() if key != "restarts"}
    tried = record.attempt.attempt.model_copy(update={key: attempt[key] for key in attempt.keys() - own.keys()})
    return replace(
        record,
        version=record.version + 1,
        job=record.job.model_copy(update=job),
        attempt=replace(record.attempt, attempt=tried, **own),
    )


def _said(record: JobRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is bound to the statements above."""
    assert record.attempt is not None
    tried = record.attempt.attempt
    job = {"of_job": record.job.id, "at_version": record.version, "new_progress": record.job.progress}
    beat = {"beat_": record.attempt.beat, "beat_seen": record.attempt.beat_seen_at}
    return job, {"of_job": record.job.id, "of_number": tried.number, "new_restarts": tried.restarts, **beat}


def _held(lease: Lease) -> tuple[Any, ...]:
    return LeaseRow.name == lease.name, LeaseRow.holder == lease.holder, LeaseRow.epoch == lease.epoch


def _fenced(lease: Lease) -> Fenced:
    return Fenced(f"{lease.holder} has lost the lease {lease.name} of epoch {lease.epoch}")


def _check_fence(session: Session, lease: Lease) -> None:
    # Locked until this transaction ends, so nobody takes the lease over between this look and the commit.
    if session.scalar(select(LeaseRow.epoch).where(*_held(lease)).with_for_update(read=True)) is None:
        raise _fenced(lease)


def _new_values(record: JobRecord, change: Change) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns to set on the job and on its newest attempt, checked."""
    old, new = record.attempt, change.new_attempt
    what = f"job {record.job.id}"
    job = _checked(change.job, JOB_COLUMNS, JOB_TRANSITIONS, record.job.state, what)
    if new is not None and (new.job, new.number) != (record.job.id, record.job.attempts + 1):
        raise ValueError(f"the next attempt is {what}'s number {record.job.attempts + 1}, not {new.external_name}")
    if not change.attempt:
        return job, {}
    if old is None:
        raise ValueError(f"{what} has no attempt to change")
    where = f"attempt {old.attempt.external_name}"
    return job, _checked(change.attempt, ATTEMPT_COLUMNS, ATTEMPT_TRANSITIONS, old.attempt.state, where)


def _checked(
    values: Mapping[str, Any],
    columns: frozenset[str],
    transitions: Mapping[S, frozenset[S]],
    before: S,
    what: str,
) -> dict[str, Any]:
    if unknown := values.keys() - columns:
        raise ValueError(
            f"{what}: can't set {', '.join(sorted(unknown))}; a change may set {', '.join(sorted(columns))}"
        )
    after = values.get("state", before)
    if after == before:
        return dict(values)
    if after not in transitions[before]:
        accepted = ", ".join(sorted(transitions[before])) or "nothing, it has ended"
        raise IllegalTransition(f"{what} is {before} and can't become {after}; accepted: {accepted}")
    return {"reason": None, "message": "", **values}


def _transitions(record: JobRecord, change: Change) -> Iterator[NewEvent]:
    """An event for each state that the change moves."""
    if record.attempt is not None:
        old = record.attempt.attempt
        yield from _transition("AttemptStateChanged", old.number, old.state, change.attempt)
    if change.new_attempt is not None:
        yield _created(change.new_attempt)
    yield from _transition("JobStateChanged", None, record.job.state, change.job)


def _transition(
    kind: str, attempt: int | None, before: JobState | AttemptState, values: Mapping[str, Any]
) -> Iterator[NewEvent]:
    after = values.get("state", before)
    if after != before:
        yield NewEvent(kind, attempt, before, after, values.get("reason"), values.get("message", ""))


def _created(attempt: Attempt) -> NewEvent:
    return NewEvent("AttemptStateChanged", attempt.number, None, attempt.state, attempt.reason, attempt.message)


def _records() -> "Select[JobRow, AttemptRow]":
    newest = (AttemptRow.job_id == JobRow.id) & (AttemptRow.number == JobRow.attempts)
    return select(JobRow, AttemptRow).outerjoin(AttemptRow, newest)


def _record_of(row: JobRow, attempt: AttemptRow | None) -> JobRecord:
    return JobRecord(
        job=job_of(row),
        version=row.version,
        dataset=row.dataset,
        attempt=None if attempt is None else _attempt_record_of(attempt),
        error_failures=row.error_failures,
        infrastructure_failures=row.infrastructure_failures,
        events_cursor=row.events_cursor,
    )


def _attempt_record_of(row: AttemptRow) -> AttemptRecord:
    return AttemptRecord(
        attempt=attempt_of(row),
        beat=row.beat,
        beat_seen_at=row.beat_seen_at,
        stop_requested_at=row.stop_requested_at,
        stop_reason=None if row.stop_reason is None else Reason(row.stop_reason),
    )
