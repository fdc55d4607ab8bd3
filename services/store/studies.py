"""Studies: groups of jobs that are added in one transaction and looked at together.

A study has no state of its own: it follows from its jobs', which the controller takes further like any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from resforge.jobs import TERMINAL, DatasetInfo, Job, JobState, Reason
from resforge.spec import CommonSpec
from resforge.studies.report import StudyDocument
from services.errors import IdempotencyConflict, StudyNotFound
from services.store.access import require_project
from services.store.base import StoreBase, append_events, insert, job_of
from services.store.records import JobRecord, NewEvent
from services.store.tables import JobLabelRow, JobRow, ProjectRow, StudyRow


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
            IdempotencyConflict: the key was used in this project with another hash.
            ProjectNotFound: there is no such project.
        """
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
                if first is None or first.request_hash != request_hash:
                    raise IdempotencyConflict(
                        f"the Idempotency-Key {idempotency_key!r} was used for another study or another body"
                    )
                return first.document, False
            for job in jobs:
                session.add(
                    JobRow(
                        id=job.id, project=study.project, name=job.spec.name, state=JobState.QUEUED, spec=job.spec,
                        dataset=job.dataset, events_cursor=JobRecord.events_cursor, request_hash="", created_at=now,
                        updated_at=now,
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

    def studies(self, project: str, *, limit: int = 50) -> list[tuple[StudyDocument, list[Job]]]:
        """The project's newest studies, newest first."""
        query = select(StudyRow).where(StudyRow.project == project)
        query = query.order_by(StudyRow.created_at.desc(), StudyRow.id.desc()).limit(limit)
        with self._read() as session:
            documents = [row.document for row in session.scalars(query)]
            return [(document, _jobs(session, document)) for document in documents]

    def cancel_study(self, project: str, study_id: str) -> tuple[StudyDocument, list[Job]]:
        """Ask for the end of every job of a study that has not ended, in one transaction.

        Raises:
            StudyNotFound: the project has no such study.
        """
        now = self._now()
        with self._write() as session:
            document = _find(session, project, study_id).document
            ids = [member.job for member in document.members]
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(ids)).order_by(JobRow.id).with_for_update()).all()
            for row in rows:
                if row.state in TERMINAL or row.cancel_requested:
                    continue
                row.cancel_requested = True
                row.generation += 1
                row.version += 1
                row.updated_at = now
                session.flush()
                append_events(session, row.id, [NewEvent("CancelRequested", reason=Reason.CANCELLED_BY_USER)], now)
            return document, _jobs(session, document)


def _find(session: Session, project: str, study_id: str) -> StudyRow:
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.project == project))
    if row is None:
        raise StudyNotFound(f"project {project} has no study {study_id}")
    return row


def _jobs(session: Session, document: StudyDocument) -> list[Job]:
    rows = session.scalars(select(JobRow).where(JobRow.id.in_([member.job for member in document.members])))
    found = {row.id: job_of(row) for row in rows}
    return [found[member.job] for member in document.members if member.job in found]
