import base64
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resforge.jobs import DatasetInfo, JobState, Reason
from resforge.spec import TrainSpec
from services.errors import (
    GenerationMismatch,
    IdempotencyConflict,
    InvalidCursor,
    JobEnded,
    JobNotFound,
    JobNotTerminal,
    ProjectNotFound,
)
from services.store.records import Change, NewEvent
from services.store.store import JobStore
from tests.services.store.conftest import Clock, Harness, in_threads


def test_a_submitted_job_is_read_back_whole(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    wanted = spec.model_copy(update={"name": "first", "labels": {"team": "vision"}})
    before = datetime.now(UTC)
    job, created = store.submit(project, wanted, digits)
    assert created
    assert store.job(project, job.id) == job
    assert (job.project, job.name, job.state, job.spec) == (project, "first", JobState.QUEUED, wanted)
    assert (job.labels, job.generation, job.attempts, job.cancel_requested) == ({"team": "vision"}, 1, 0, False)
    assert before <= job.created_at == job.updated_at <= datetime.now(UTC)
    assert job.created_at.utcoffset() is not None
    [event] = store.events(project, job.id)
    assert (event.type, event.before, event.after) == ("JobSubmitted", None, JobState.QUEUED)


def test_an_attempts_name_is_a_dns_label_with_room_for_suffixes(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    ids = {store.submit(project, spec, digits)[0].id for _ in range(5)}
    assert len(ids) == 5
    for job_id in ids:
        assert re.fullmatch(r"job-[a-z2-7]{12}", job_id)
        assert len(f"{job_id}-9999") <= 47


def test_a_project_that_is_not_there_gets_no_job(store: JobStore, spec: TrainSpec, digits: DatasetInfo) -> None:
    with pytest.raises(ProjectNotFound, match="nowhere"):
        store.submit("nowhere", spec, digits)


def test_the_same_submission_gives_the_first_job_again(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    first, created = store.submit(project, spec, digits, idempotency_key="k", request_hash="a")
    again, created_again = store.submit(project, spec, digits, idempotency_key="k", request_hash="a")
    assert (created, created_again) == (True, False)
    assert again == first
    assert len(store.events(project, first.id)) == 1


def test_a_key_used_with_another_body_is_a_conflict(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    first, _ = store.submit(project, spec, digits, idempotency_key="k", request_hash="a")
    with pytest.raises(IdempotencyConflict, match=first.id):
        store.submit(project, spec, digits, idempotency_key="k", request_hash="b")
    assert len(store.jobs(project)[0]) == 1


def test_keys_of_two_projects_and_jobs_without_a_key_never_meet(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    store.create_project("other")
    submitted = [
        store.submit(project, spec, digits, idempotency_key="k", request_hash="a"),
        store.submit("other", spec, digits, idempotency_key="k", request_hash="b"),
        store.submit(project, spec, digits),
        store.submit(project, spec, digits),
    ]
    assert all(created for _, created in submitted)
    assert len({job.id for job, _ in submitted}) == 4


def test_identical_submissions_at_the_same_time_make_one_job(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    answers = in_threads(lambda _: store.submit(project, spec, digits, idempotency_key="k", request_hash="a"), 8)
    jobs = [answer[0].id for answer in answers if isinstance(answer, tuple)]
    assert len(jobs) == 8, answers
    assert len(set(jobs)) == 1
    assert sum(answer[1] for answer in answers if isinstance(answer, tuple)) == 1
    assert len(store.events(project, jobs[0])) == 1


def test_different_bodies_at_the_same_time_make_one_job_and_conflicts(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    answers = in_threads(
        lambda number: store.submit(project, spec, digits, idempotency_key="k", request_hash=str(number)), 8
    )
    assert sum(isinstance(answer, tuple) for answer in answers) == 1, answers
    assert sum(isinstance(answer, IdempotencyConflict) for answer in answers) == 7, answers
    assert len(store.jobs(project)[0]) == 1


def test_submissions_at_the_same_time_all_arrive(
    store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    answers = in_threads(lambda _: store.submit(project, spec, digits)[0].id, 8)
    listed, _ = store.jobs(project)
    assert {job.id for job in listed} == set(answers)
    assert len(listed) == 8


@settings(max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.sampled_from([0, 0.000001, 1]), max_size=9), limit=st.integers(1, 11))
def test_paging_gives_every_job_once_newest_first(
    clocked: JobStore, clock: Clock, spec: TrainSpec, digits: DatasetInfo, gaps: list[float], limit: int
) -> None:
    # A project of its own for each example; equal times are likely, so the id has to tell jobs apart.
    project = f"paging-{datetime.now(UTC).timestamp()}"
    clocked.create_project(project)
    submitted = []
    for gap in gaps:
        clock.advance(gap)
        submitted.append(clocked.submit(project, spec, digits)[0])
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page, cursor = clocked.jobs(project, limit=limit, cursor=cursor)
        assert len(page) == limit or cursor is None
        assert page or not submitted
        seen += page
        pages += 1
    assert {job.id for job in seen} == {job.id for job in submitted}
    assert len(seen) == len(submitted)
    times = [job.created_at for job in seen]
    assert times == sorted(times, reverse=True)


def test_jobs_that_come_while_one_pages_do_not_disturb(harness: Harness) -> None:
    old = [harness.submit().job.id for _ in range(4)]
    first, cursor = harness.store.jobs(harness.project, limit=2)
    harness.submit()
    second, end = harness.store.jobs(harness.project, limit=2, cursor=cursor)
    assert [job.id for job in first + second] == old[::-1]
    assert end is None


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!",
        "a",
        "job-aaaaaaaaaaaa",
        "\N{SNOWMAN}",
        encoded("2026-01-01T00:00:00+00:00"),
        encoded("2026-01-01T00:00:00 job-aaaaaaaaaaaa"),
        encoded("2026-01-01T00:00:00+02:00 job-aaaaaaaaaaaa"),
        encoded("yesterday job-aaaaaaaaaaaa"),
        encoded("2026-01-01T00:00:00+00:00 a b"),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
def test_a_cursor_that_the_store_never_gave_is_refused(store: JobStore, project: str, cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        store.jobs(project, cursor=cursor)


def test_filters_by_state_and_by_all_labels(harness: Harness) -> None:
    store, project = harness.store, harness.project
    red = harness.submit(colour="red", size="big")
    blue = harness.submit(colour="blue", size="big")
    plain = harness.submit()
    harness.to(blue, JobState.FAILED)
    harness.to(plain, JobState.CANCELLED)

    def found(states: tuple[JobState, ...] = (), **labels: str) -> list[str]:
        return [job.id for job in store.jobs(project, states=states, labels=labels)[0]]

    assert found(size="big") == [blue.job.id, red.job.id]
    assert found(size="big", colour="red") == [red.job.id]
    assert found(colour="green") == []
    assert found(size="red") == []
    assert found((JobState.QUEUED,)) == [red.job.id]
    assert found((JobState.FAILED, JobState.CANCELLED)) == [plain.job.id, blue.job.id]
    assert found((JobState.QUEUED,), colour="blue") == []


def test_filters_page_too(harness: Harness) -> None:
    wanted = [harness.submit(keep="yes").job.id for _ in range(3) if harness.submit(keep="no")]
    first, cursor = harness.store.jobs(harness.project, labels={"keep": "yes"}, limit=2)
    second, end = harness.store.jobs(harness.project, labels={"keep": "yes"}, limit=2, cursor=cursor)
    assert [job.id for job in first + second] == wanted[::-1]
    assert end is None


def test_another_projects_job_is_not_found(harness: Harness) -> None:
    store = harness.store
    store.create_project("other")
    job = harness.to(harness.submit(), JobState.FAILED).job
    for call in (store.job, store.attempts, store.events, store.request_cancel, store.delete_job):
        with pytest.raises(JobNotFound, match=job.id):
            call("other", job.id)
    assert store.jobs("other") == ([], None)
    assert store.job(harness.project, job.id) == job


@pytest.mark.parametrize("job_id", ["", "job-aaaaaaaaaaaa", "x" * 10_000, "\x00", "' OR 1=1 --"])
def test_a_job_that_is_not_there_is_not_found(store: JobStore, project: str, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        store.job(project, job_id)


def test_cancelling_moves_the_generation_once(harness: Harness) -> None:
    store, project = harness.store, harness.project
    job = harness.submit().job
    cancelled = store.request_cancel(project, job.id, generation=1)
    assert (cancelled.cancel_requested, cancelled.generation, cancelled.state) == (True, 2, JobState.QUEUED)
    assert store.request_cancel(project, job.id) == cancelled
    # A client that lost the answer sends the same request again.
    assert store.request_cancel(project, job.id, generation=1) == cancelled
    assert store.job(project, job.id) == cancelled
    events = store.events(project, job.id)
    assert [(event.type, event.reason) for event in events[1:]] == [("CancelRequested", Reason.CANCELLED_BY_USER)]


def test_cancelling_on_an_outdated_generation_changes_nothing(harness: Harness) -> None:
    job = harness.submit().job
    with pytest.raises(GenerationMismatch, match="generation 1, not 7"):
        harness.store.request_cancel(harness.project, job.id, generation=7)
    assert harness.store.job(harness.project, job.id) == job


def test_an_ended_job_can_not_be_cancelled(harness: Harness) -> None:
    job = harness.to(harness.submit(), JobState.FAILED).job
    with pytest.raises(JobEnded, match="FAILED"):
        harness.store.request_cancel(harness.project, job.id)


def test_cancelling_at_the_same_time_counts_once(harness: Harness) -> None:
    job = harness.submit().job
    answers = in_threads(lambda _: harness.store.request_cancel(harness.project, job.id).generation, 6)
    assert answers == [2] * 6
    assert len(harness.store.events(harness.project, job.id)) == 2


def test_deleting_takes_all_of_an_ended_job_and_nothing_else(harness: Harness) -> None:
    store, project = harness.store, harness.project
    kept = harness.start(harness.submit(team="vision")).job
    doomed = harness.to(harness.start(harness.submit(team="vision")), JobState.FAILED).job
    store.delete_job(project, doomed.id)
    for call in (store.job, store.attempts, store.events, store.delete_job):
        with pytest.raises(JobNotFound):
            call(project, doomed.id)
    assert [job.id for job in store.jobs(project, labels={"team": "vision"})[0]] == [kept.id]
    assert len(store.attempts(project, kept.id)) == 1


def test_event_ids_are_never_given_twice(harness: Harness) -> None:
    doomed = harness.to(harness.submit(), JobState.FAILED).job
    last = harness.store.events(harness.project, doomed.id)[-1].id
    harness.store.delete_job(harness.project, doomed.id)
    assert harness.store.events(harness.project, harness.submit().job.id)[0].id > last


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.STARTING])
def test_a_live_job_can_not_be_deleted(harness: Harness, state: JobState) -> None:
    record = harness.submit()
    if state is JobState.STARTING:
        record = harness.start(record)
    with pytest.raises(JobNotTerminal, match=state):
        harness.store.delete_job(harness.project, record.job.id)
    assert harness.store.job(harness.project, record.job.id) == record.job


def test_a_key_is_free_again_once_its_job_was_deleted(
    harness: Harness, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    store = harness.store
    first, _ = store.submit(project, spec, digits, idempotency_key="k", request_hash="a")
    [record] = store.live_jobs()
    harness.to(record, JobState.FAILED)
    store.delete_job(project, first.id)
    second, created = store.submit(project, spec, digits, idempotency_key="k", request_hash="b")
    assert created
    assert second.id != first.id


def test_events_come_in_order_after_an_id_and_up_to_a_limit(harness: Harness) -> None:
    record = harness.submit()
    told = tuple(NewEvent("Told", data={"number": number}) for number in range(5))
    harness.store.apply(harness.lease, record, Change(events=told))

    def numbers(**options: int) -> list[int | None]:
        events = harness.store.events(harness.project, record.job.id, **options)
        ids = [event.id for event in events]
        assert ids == sorted(set(ids))
        return [event.data.get("number") for event in events]

    everything = harness.store.events(harness.project, record.job.id)
    assert numbers() == [None, 0, 1, 2, 3, 4]
    assert numbers(limit=2) == [None, 0]
    assert numbers(after=everything[2].id) == [2, 3, 4]
    assert numbers(after=everything[2].id, limit=1) == [2]
    assert numbers(after=everything[-1].id) == []


def test_counts_tell_every_state_over_all_projects(harness: Harness) -> None:
    store = harness.store
    store.create_project("other")
    store.submit("other", harness.spec, harness.dataset)
    harness.submit()
    harness.to(harness.submit(), JobState.FAILED)
    counts = store.counts()
    assert set(counts) == set(JobState)
    assert {state: count for state, count in counts.items() if count} == {JobState.QUEUED: 2, JobState.FAILED: 1}


def test_text_that_postgres_can_not_hold_is_replaced_in_columns_and_kept_in_documents(harness: Harness) -> None:
    record = harness.submit(odd="a\x00b")
    harness.store.apply(
        harness.lease,
        record,
        Change(job={"message": "from\x00C"}, events=(NewEvent("Told", message="\x00", data={"raw": "\x00"}),)),
    )
    job = harness.store.job(harness.project, record.job.id)
    event = harness.store.events(harness.project, record.job.id)[-1]
    assert job.message == "from\N{REPLACEMENT CHARACTER}C"
    assert job.labels == {"odd": "a\x00b"}
    assert (event.message, event.data) == ("\N{REPLACEMENT CHARACTER}", {"raw": "\x00"})
    assert harness.store.jobs(harness.project, labels={"odd": "a\x00b"})[0] == [job]


def test_numbers_that_json_lacks_become_null(harness: Harness) -> None:
    record = harness.submit()
    data = {"loss": float("nan"), "deep": [float("inf"), 1.5]}
    harness.store.apply(harness.lease, record, Change(events=(NewEvent("Told", data=data),)))
    event = harness.store.events(harness.project, record.job.id)[-1]
    assert json.loads(event.model_dump_json())["data"] == {"loss": None, "deep": [None, 1.5]}
