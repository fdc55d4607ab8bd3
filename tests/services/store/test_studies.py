"""Studies on both databases: all or nothing, once, cancelled as one, deleted as one, and there after a restart."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from resforge.jobs import DatasetInfo, JobState
from resforge.spec import TrainSpec
from resforge.studies import StudySpec
from resforge.studies.report import StudyDocument, StudyMember
from services.errors import IdempotencyConflict, InvalidCursor, ProjectNotFound, StudyNotFound, StudyNotTerminal
from services.store import connect
from services.store.records import Change, Lease
from services.store.store import JobStore
from services.store.studies import NewJob
from services.store.tables import EventRow, JobLabelRow, JobRow, StudyRow
from tests.services.store.conftest import in_threads

S = JobState
T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def document(project: str, number: int = 1, at: datetime | None = None) -> StudyDocument:
    members = [
        StudyMember(key=f"plain-{n}/seed-0", series=f"plain-{n}", seed=0, job=f"job-{number}-{n}") for n in (20, 56)
    ]
    spec = StudySpec(study="degradation", seeds=(0,))
    return StudyDocument(
        id=f"study-{number}", project=project, spec=spec, members=tuple(members), created_at=at or datetime.now(UTC)
    )


def jobs(study: StudyDocument, spec: TrainSpec, digits: DatasetInfo) -> list[NewJob]:
    labelled = spec.model_copy(update={"labels": {"study": study.id}})
    return [NewJob(member.job, labelled, digits) for member in study.members]


def test_a_study_and_its_jobs_come_together(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    study = document(project)
    assert store.submit_study(study, jobs(study, spec, digits)) == (study, True)
    found, members = store.study(project, study.id)
    assert found == study
    assert [job.id for job in members] == [member.job for member in study.members]
    assert [event.type for event in store.events(project, members[0].id)] == ["JobSubmitted"]
    assert len(store.jobs(project, labels={"study": study.id})[0]) == 2
    assert store.studies(project) == ([(study, members)], None)
    assert store.states([members[0].id, "job-none"]) == {members[0].id: JobState.QUEUED}


def test_the_same_key_gives_the_first_study_and_adds_nothing(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    first, second = document(project, 1), document(project, 2)
    store.submit_study(first, jobs(first, spec, digits), idempotency_key="k", request_hash="h")
    again = store.submit_study(second, jobs(second, spec, digits), idempotency_key="k", request_hash="h")
    assert again == (first, False)
    with pytest.raises(IdempotencyConflict):
        store.submit_study(second, jobs(second, spec, digits), idempotency_key="k", request_hash="other")
    assert len(store.jobs(project)[0]) == 2


def test_cancelling_asks_every_live_job_once(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    study = document(project)
    store.submit_study(study, jobs(study, spec, digits))
    for _ in range(2):
        _, members = store.cancel_study(project, study.id)
        assert all(job.cancel_requested and job.generation == 2 for job in members)
    types = [event.type for event in store.events(project, study.members[0].job)]
    assert types == ["JobSubmitted", "CancelRequested"]


def test_other_projects_see_nothing_of_it(store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo) -> None:
    study = document(project)
    store.submit_study(study, jobs(study, spec, digits))
    store.create_project("other")
    for call in (store.study, store.cancel_study, store.delete_study):
        with pytest.raises(StudyNotFound):
            call("other", study.id)
    assert store.studies("other") == ([], None)
    assert store.study(project, study.id)[0] == study
    lost = document("nobody", 3)
    with pytest.raises(ProjectNotFound):
        store.submit_study(lost, jobs(lost, spec, digits))


def test_a_page_at_a_time_newest_first(store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo) -> None:
    # Two of them at the very same time, between which a page may end.
    times = (T0, T0 + timedelta(seconds=1), T0 + timedelta(seconds=1), T0 + timedelta(seconds=2), T0)
    for number, at in enumerate(times):
        study = document(project, number, at)
        store.submit_study(study, jobs(study, spec, digits))
    order = ["study-3", "study-2", "study-1", "study-4", "study-0"]
    for limit in (1, 2, 3, 5, 50):
        found: list[str] = []
        cursor: str | None = None
        while True:
            page, cursor = store.studies(project, limit=limit, cursor=cursor)
            assert 1 <= len(page) <= limit
            found += [item.id for item, _ in page]
            if cursor is None:
                break
        assert found == order
    assert [len(members) for _, members in store.studies(project)[0]] == [2] * 5


def test_pages_stand_still_while_studies_come_and_go(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    for number in range(4):
        study = document(project, number, T0 + timedelta(seconds=number))
        store.submit_study(study, jobs(study, spec, digits))
    first, cursor = store.studies(project, limit=2)
    newer = document(project, 9, T0 + timedelta(seconds=9))
    store.submit_study(newer, jobs(newer, spec, digits))
    end_all(store, first[1][0])
    store.delete_study(project, first[1][0].id)  # the one that the cursor stands behind
    second, _ = store.studies(project, limit=2, cursor=cursor)
    assert [item.id for item, _ in (*first, *second)] == ["study-3", "study-2", "study-1", "study-0"]


@pytest.mark.parametrize("cursor", ["", "nonsense", "bm9uc2Vuc2U="])
def test_a_cursor_of_nobodys_is_refused(store: JobStore, project: str, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        store.studies(project, cursor=cursor)


def end_all(store: JobStore, study: StudyDocument, state: JobState = S.CANCELLED) -> None:
    lease = store.acquire_lease("controller", "one", 600)
    assert lease is not None
    for member in study.members:
        end(store, lease, member.job, state)


def end(store: JobStore, lease: Lease, job_id: str, state: JobState) -> None:
    [record] = [record for record in store.live_jobs() if record.job.id == job_id]
    store.apply(lease, record, Change(job={"state": state}))


def test_a_study_is_deleted_with_all_that_is_its(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    study, other = document(project, 1), document(project, 2)
    for item in (study, other):
        store.submit_study(item, jobs(item, spec, digits), idempotency_key=item.id, request_hash="h")
    lease = store.acquire_lease("controller", "one", 600)
    assert lease is not None
    first, second = (member.job for member in study.members)
    for left, ended in ((2, first), (1, second)):
        with pytest.raises(StudyNotTerminal, match=f"^{left} jobs of study study-1 have not ended"):
            store.delete_study(project, study.id)
        end(store, lease, ended, S.FAILED if ended == first else S.CANCELLED)
    assert len(store.study(project, study.id)[1]) == 2
    store.delete_study(project, study.id)
    with pytest.raises(StudyNotFound):
        store.study(project, study.id)
    with pytest.raises(StudyNotFound):
        store.delete_study(project, study.id)
    with Session(store._engine) as session:
        for column in (JobRow.id, JobLabelRow.job_id, EventRow.job_id):
            assert set(session.scalars(select(column))) == {member.job for member in other.members}
        assert set(session.scalars(select(StudyRow.id))) == {other.id}
    # Its key is free again.
    assert store.submit_study(study, jobs(study, spec, digits), idempotency_key=study.id, request_hash="h")[1]


def test_a_study_whose_jobs_somebody_has_deleted_can_be_deleted(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    study = document(project)
    store.submit_study(study, jobs(study, spec, digits))
    end_all(store, study)
    store.delete_job(project, study.members[0].job)
    assert [job.id for job in store.study(project, study.id)[1]] == [study.members[1].job]
    store.delete_study(project, study.id)
    assert store.studies(project) == ([], None)


def test_cancelling_leaves_ended_jobs_as_they_are(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    study = document(project)
    store.submit_study(study, jobs(study, spec, digits))
    lease = store.acquire_lease("controller", "one", 600)
    assert lease is not None
    end(store, lease, study.members[0].job, S.FAILED)
    ended, live = store.cancel_study(project, study.id)[1]
    assert (ended.state, ended.cancel_requested, live.cancel_requested) == (S.FAILED, False, True)


def test_a_study_is_there_after_a_restart(
    store: JobStore, database_url: str, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    """Another process finds the study, its jobs in their order for a controller, and the key that it was sent with."""
    study = document(project)
    store.submit_study(study, jobs(study, spec, digits), idempotency_key="k", request_hash="h")
    store.cancel_study(project, study.id)
    before = store.study(project, study.id)
    store._engine.dispose()
    engine = connect(database_url)
    try:
        again = JobStore(engine)
        assert again.study(project, study.id) == before
        assert [record.job.id for record in again.live_jobs()] == [member.job for member in study.members]
        assert all(record.job.cancel_requested for record in again.live_jobs())
        second = document(project, 2)
        replayed = again.submit_study(second, jobs(second, spec, digits), idempotency_key="k", request_hash="h")
        assert replayed == (study, False)
    finally:
        engine.dispose()


def test_of_many_at_once_with_one_key_one_is_taken(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    studies = [document(project, number) for number in range(4)]
    found = in_threads(
        lambda number: store.submit_study(
            studies[number], jobs(studies[number], spec, digits), idempotency_key="k", request_hash="h"
        ),
        4,
    )
    taken = {item[0].id for item in found if isinstance(item, tuple)}
    assert len(taken) == 1
    assert sum(item[1] for item in found if isinstance(item, tuple)) == 1
    assert len(store.jobs(project)[0]) == 2
