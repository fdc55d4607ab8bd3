"""Studies on both databases: all or nothing, once, and cancelled as one."""

from datetime import UTC, datetime

import pytest

from resforge.jobs import DatasetInfo, JobState
from resforge.spec import TrainSpec
from resforge.studies import StudySpec
from resforge.studies.report import StudyDocument, StudyMember
from services.errors import IdempotencyConflict, ProjectNotFound, StudyNotFound
from services.store.store import JobStore
from services.store.studies import NewJob


def document(project: str, number: int = 1) -> StudyDocument:
    members = [
        StudyMember(key=f"plain-{n}/seed-0", series=f"plain-{n}", seed=0, job=f"job-{number}-{n}") for n in (20, 56)
    ]
    spec = StudySpec(study="degradation", seeds=(0,))
    return StudyDocument(
        id=f"study-{number}", project=project, spec=spec, members=tuple(members), created_at=datetime.now(UTC)
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
    assert [item.id for item, _ in store.studies(project)] == [study.id]
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
    for call in (store.study, store.cancel_study):
        with pytest.raises(StudyNotFound):
            call("other", study.id)
    assert store.studies("other") == []
    lost = document("nobody", 3)
    with pytest.raises(ProjectNotFound):
        store.submit_study(lost, jobs(lost, spec, digits))
