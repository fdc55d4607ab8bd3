"""Studies: groups of jobs that are added in one transaction and looked at together.

A study has no state of its own: it follows from its jobs', which the controller takes further like any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, literal, select, tuple_
from sqlalchemy.orm import Session

from resforge.jobs import TERMINAL, DatasetInfo, Job, JobState, Reason
from resforge.spec import CommonSpec
from resforge.studies.report import StudyDocument
from services.errors import IdempotencyConflict, StudyNotFound, StudyNotTerminal
from services.store.access import hold_dataset, require_project
from services.store.base import StoreBase, append_events, cursor_of, insert, job_of, parse_cursor
from services.store.records import JobRecord, NewEvent
from services.store.tables import JobLabelRow, JobRow, ProjectRow, StudyRow, Text, UtcDateTime


@dataclass(frozen=True)
class NewJob:
    """A job to add, with the id that it is to have."""

    id: str
    spec: CommonSpec
    dataset: DatasetInfo


class StudyStore(StoreBase):
    """Studies and their jobs."""

    def submit_study(
        self,
        study: StudyDocument,
        jobs: Sequence[NewJob],
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> tuple[StudyDocument, bool]:
        """Add a study with all its jobs, or nothing; tell whether it is new.

        Raises:
            DatasetNotFound: an ingested data set that a job names was removed since it was looked for.
            IdempotencyConflict: the key was used in this project with another hash.
            ProjectNotFound: there is no such project.
        """
        while True:
            answer = self._submit_study_once(study, jobs, idempotency_key, request_hash)
            if answer is not None:
                return answer

    def _submit_study_once(
        self, study: StudyDocument, jobs: Sequence[NewJob], idempotency_key: str | None, request_hash: str
    ) -> tuple[StudyDocument, bool] | None:
        now = self._now()
        with self._write() as session:
            require_project(session.get(ProjectRow, study.project), study.project)
            added = session.scalar(
                insert(session, StudyRow)
                .values(
                    id=study.id, project=study.project, document=study, idempotency_key=idempotency_key,
                    request_hash=request_hash, created_at=study.created_at,
                )
                .on_conflict_do_nothing(index_elements=["project", "idempotency_key"])
                .returning(StudyRow.id)
            )  # fmt: skip
            if added is None:
                first = session.scalar(
                    select(StudyRow).where(
                        StudyRow.project == study.project, StudyRow.idempotency_key == idempotency_key
                    )
                )
                if first is None:  # it was deleted between the two statements
                    return None
                if first.request_hash != request_hash:
                    raise IdempotencyConflict(
                        f"the Idempotency-Key {idempotency_key!r} was used for {first.id} with another body"
                    )
                return first.document, False
            for place, job in enumerate(jobs):
                hold_dataset(session, job.spec, job.dataset)
                at = now + timedelta(microseconds=place)  # jobs start in the order of their times
                session.add(
                    JobRow(
                        id=job.id, project=study.project, name=job.spec.name, state=JobState.QUEUED, spec=job.spec,
                        dataset=job.dataset, events_cursor=JobRecord.events_cursor, request_hash="", created_at=at,
                        updated_at=at,
                    )
                )  # fmt: skip
            session.flush()
            for job in jobs:
                session.add_all(JobLabelRow(job_id=job.id, key=k, value=v) for k, v in job.spec.labels.items())
                append_events(session, job.id, [NewEvent("JobSubmitted", after=JobState.QUEUED)], now)
            return study, True

    def study(self, project: str, study_id: str) -> tuple[StudyDocument, list[Job]]:
        """A study and those of its jobs that are still there.

        Raises:
            StudyNotFound: the project has no such study.
        """
        with self._read() as session:
            document = _find(session, project, study_id).document
            return document, _jobs(session, document)

    def studies(
        self, project: str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[tuple[StudyDocument, list[Job]]], str | None]:
        """A page of at most `limit` studies, newest first, and the cursor of the next page, if there is one.

        Raises:
            InvalidCursor: the cursor is none that this method gave.
        """
        query = select(StudyRow).where(StudyRow.project == project)
        if cursor is not None:
            at, study_id = parse_cursor(cursor)
            place = tuple_(literal(at, UtcDateTime), literal(study_id, Text))
            query = query.where(tuple_(StudyRow.created_at, StudyRow.id) < place)
        query = query.order_by(StudyRow.created_at.desc(), StudyRow.id.desc()).limit(limit + 1)
        with self._read() as session:
            rows = session.scalars(query).all()
            page = [(row.document, _jobs(session, row.document)) for row in rows[:limit]]
        return page, cursor_of(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None

    def cancel_study(self, project: str, study_id: str) -> tuple[StudyDocument, list[Job]]:
        """Ask for the end of every job of a study that has not ended, in one transaction.

        Raises:
            StudyNotFound: the project has no such study.
        """
        now = self._now()
        with self._write() as session:
            document = _find(session, project, study_id).document
            for row in session.scalars(_rows(document).order_by(JobRow.id).with_for_update()).all():
                if row.state in TERMINAL or row.cancel_requested:
                    continue
                row.cancel_requested = True
                row.generation += 1
                row.version += 1
                row.updated_at = now
                session.flush()
                append_events(session, row.id, [NewEvent("CancelRequested", reason=Reason.CANCELLED_BY_USER)], now)
            return document, _jobs(session, document)

    def delete_study(self, project: str, study_id: str) -> None:
        """Remove a study with its jobs, all of which have ended. Their objects in storage are the caller's to remove.

        Raises:
            StudyNotFound: the project has no such study.
            StudyNotTerminal: some of its jobs have not ended.
        """
        with self._write() as session:
            study = _find(session, project, study_id)
            rows = session.scalars(_rows(study.document).order_by(JobRow.id).with_for_update()).all()
            live = sum(row.state not in TERMINAL for row in rows)
            if live:
                raise StudyNotTerminal(
                    f"{live} jobs of study {study_id} have not ended; cancel it first, and delete it once they have"
                )
            for row in rows:
                session.delete(row)
            session.delete(study)


def _find(session: Session, project: str, study_id: str) -> StudyRow:
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.project == project))
    if row is None:
        raise StudyNotFound(f"project {project} has no study {study_id}")
    return row


def _rows(document: StudyDocument) -> Select[JobRow]:
    return select(JobRow).where(JobRow.id.in_([member.job for member in document.members]))


def _jobs(session: Session, document: StudyDocument) -> list[Job]:
    """Those of a study's jobs that are still there, in its order."""
    found = {row.id: job_of(row) for row in session.scalars(_rows(document))}
    return [found[member.job] for member in document.members if member.job in found]
