import dataclasses
import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from resforge.jobs import (
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    Attempt,
    AttemptState,
    DatasetInfo,
    JobState,
    Reason,
)
from resforge.metrics import EvalPoint, Progress
from resforge.spec import TrainSpec
from resforge.studies import StudyDocument, StudyMember, StudySpec
from services.errors import Fenced, IllegalTransition, Stale
from services.store import control
from services.store.records import Change, JobRecord, Lease, NewEvent
from services.store.store import JobStore
from services.store.studies import NewJob
from tests.services.store.conftest import Clock, Harness, first_attempt, in_threads, record_of

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def lease_of(store: JobStore, holder: str, ttl_s: float = 10) -> Lease:
    lease = store.acquire_lease("controller", holder, ttl_s)
    assert lease is not None
    return lease


# Leases


def test_a_lease_has_one_holder_who_may_renew_it(clocked: JobStore, clock: Clock) -> None:
    first = lease_of(clocked, "one")
    assert (first.holder, first.epoch, first.expires_at) == ("one", 1, clock.now + timedelta(seconds=10))
    assert clocked.acquire_lease("controller", "two", 10) is None
    clock.advance(9)
    renewed = lease_of(clocked, "one")
    assert (renewed.epoch, renewed.expires_at) == (1, clock.now + timedelta(seconds=10))
    clock.advance(9)
    assert clocked.acquire_lease("controller", "two", 10) is None


def test_an_expired_lease_is_taken_over_under_a_new_epoch(clocked: JobStore, clock: Clock) -> None:
    lease_of(clocked, "one")
    clock.advance(10)
    assert lease_of(clocked, "two").epoch == 2
    assert clocked.acquire_lease("controller", "one", 10) is None
    clock.advance(10)
    assert lease_of(clocked, "one").epoch == 3


def test_an_expired_lease_that_nobody_took_is_still_its_holders(clocked: JobStore, clock: Clock) -> None:
    lease_of(clocked, "one")
    clock.advance(3600)
    assert lease_of(clocked, "one").epoch == 1


def test_a_released_lease_is_free_at_once(clocked: JobStore) -> None:
    first = lease_of(clocked, "one")
    clocked.release_lease(first)
    clocked.release_lease(first)
    second = lease_of(clocked, "two")
    assert second.epoch == 2
    clocked.release_lease(first)  # a late release of what was lost must not free what another holds
    assert clocked.acquire_lease("controller", "one", 10) is None


def test_leases_of_other_names_are_other_leases(clocked: JobStore) -> None:
    lease_of(clocked, "one")
    other = clocked.acquire_lease("janitor", "two", 10)
    assert other is not None
    assert other.epoch == 1


@pytest.mark.parametrize("expired", [False, True])
def test_of_many_contenders_one_gets_the_lease(clocked: JobStore, clock: Clock, expired: bool) -> None:
    if expired:
        lease_of(clocked, "before")
        clock.advance(60)
    leases = in_threads(lambda number: clocked.acquire_lease("controller", f"holder-{number}", 10), 8)
    won = [lease for lease in leases if lease is not None]
    assert len(won) == 1, leases
    assert isinstance(won[0], Lease)
    assert won[0].epoch == (2 if expired else 1)


def test_ticks_are_noted_by_the_holder_alone(clocked: JobStore, clock: Clock) -> None:
    assert clocked.last_tick() is None
    first = lease_of(clocked, "one")
    assert clocked.last_tick() is None
    clocked.record_tick(first)
    assert clocked.last_tick() == clock.now
    noted = clock.now
    clock.advance(60)
    second = lease_of(clocked, "two")
    with pytest.raises(Fenced, match="one"):
        clocked.record_tick(first)
    assert clocked.last_tick() == noted
    clocked.record_tick(second)
    assert clocked.last_tick() == clock.now


# Live jobs


def test_live_jobs_are_those_that_have_not_ended_oldest_first(harness: Harness) -> None:
    records = [harness.submit() for _ in range(4)]
    harness.to(records[1], JobState.FAILED)
    started = harness.start(records[2])
    assert harness.store.live_jobs() == [records[0], started, records[3]]


@pytest.mark.parametrize("at_once", [1, 500])
def test_only_jobs_that_have_changed_are_read_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(control, "AT_ONCE", at_once)  # more than so many are read with all others
    records = [harness.submit() for _ in range(5)]
    first = harness.store.live_jobs()
    assert all(before is after for before, after in zip(first, harness.store.live_jobs(), strict=True))
    started = harness.start(records[1])
    harness.to(records[2], JobState.FAILED)
    harness.store.request_cancel(harness.project, records[3].job.id)
    new = harness.submit()
    again = harness.store.live_jobs()
    assert again == JobStore(harness.store._engine).live_jobs()
    assert [record.job.id for record in again] == [records[index].job.id for index in (0, 1, 3, 4)] + [new.job.id]
    assert again[1] == started
    assert again[2].job.cancel_requested
    assert again[3] is first[4] or at_once == 1


def test_a_live_job_comes_with_its_newest_attempt(harness: Harness) -> None:
    record = harness.start(harness.submit())
    assert record.attempt is not None
    assert record.attempt.attempt.number == 1
    second = Attempt(job=record.job.id, number=2, state=AttemptState.PENDING, created_at=NOW, resume_from=(1,))
    change = Change(
        job={"state": JobState.RECOVERING, "reason": Reason.NODE_LOST, "message": "gone"},
        attempt={"state": AttemptState.LOST, "reason": Reason.NODE_LOST},
        new_attempt=second,
    )
    record = harness.store.apply(harness.lease, record, change)
    assert record.job.attempts == 2
    assert record.attempt is not None
    assert record.attempt.attempt == second
    first, newest = harness.store.attempts(harness.project, record.job.id)
    assert (first.state, first.reason, newest) == (AttemptState.LOST, Reason.NODE_LOST, second)
    assert harness.store.live_jobs() == [record]


def test_the_oldest_that_waits_may_be_in_the_clusters_queue(harness: Harness) -> None:
    assert harness.store.oldest_queued() is None
    first, second = harness.submit(), harness.submit()
    assert harness.store.oldest_queued() == first.job.created_at
    held = harness.store.apply(
        harness.lease,
        harness.start(first),
        Change(attempt={"state": AttemptState.SUBMITTED, "submitted_at": NOW}),
    )
    assert held.job.state is JobState.STARTING
    assert harness.store.oldest_queued() == first.job.created_at
    harness.store.apply(harness.lease, held, Change(attempt={"admitted_at": NOW}))
    assert harness.store.oldest_queued() == second.job.created_at


# Changes


def test_every_column_that_a_change_sets_is_read_back(harness: Harness) -> None:
    record = harness.start(harness.submit())
    progress = Progress(at=NOW, attempt=1, step=5, total_steps=10, epoch=0, total_epochs=1.5, loss=None)
    result = EvalPoint(at=NOW, attempt=1, step=10, epoch=1, loss=0.5, top1=0.9, top5=1.0, images=360)
    job = {
        "state": JobState.RUNNING,
        "reason": Reason.LAUNCHER_UNAVAILABLE,
        "message": "m",
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=1),
        "progress": progress,
        "result": result,
    }
    own = {"error_failures": 1, "infrastructure_failures": 2, "events_cursor": "1.2.3"}
    attempt = {
        "state": AttemptState.SUBMITTED,
        "reason": Reason.PREEMPTED,
        "message": "n",
        "resume_from": (1, 2),
        "restarts": 3,
        "submitted_at": NOW,
        "admitted_at": NOW + timedelta(seconds=1),
        "running_at": NOW + timedelta(seconds=2),
        "finished_at": NOW + timedelta(seconds=3),
    }
    remembered = {
        "beat": 2**40,
        "beat_seen_at": NOW,
        "stop_requested_at": NOW + timedelta(seconds=4),
        "stop_reason": Reason.CANCELLED_BY_USER,
    }
    after = harness.store.apply(harness.lease, record, Change(job=job | own, attempt=attempt | remembered))
    assert after.attempt is not None
    assert record.attempt is not None
    assert after.job.updated_at > record.job.updated_at
    assert after.version == record.version + 1
    assert after.job == record.job.model_copy(update=job | {"updated_at": after.job.updated_at})
    assert after.attempt == dataclasses.replace(
        record.attempt, attempt=record.attempt.attempt.model_copy(update=attempt), **remembered
    )
    assert after == dataclasses.replace(record, job=after.job, version=after.version, attempt=after.attempt, **own)
    assert harness.store.live_jobs() == [after]
    assert harness.store.job(harness.project, after.job.id) == after.job

    cleared = harness.store.apply(harness.lease, after, Change(job={"progress": None, "started_at": None}))
    assert (cleared.job.progress, cleared.job.started_at) == (None, None)


def quiet(record: JobRecord, beat: int, step: int | None = None) -> tuple[JobRecord, Change]:
    job = (
        {}
        if step is None
        else {"progress": Progress(at=NOW, attempt=1, step=step, total_steps=10, epoch=0, total_epochs=1)}
    )
    return record, Change(job=job, attempt={"beat": beat, "beat_seen_at": NOW, "restarts": 2})


def test_signs_of_life_of_many_jobs_are_written_at_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "AT_ONCE", 2)
    records = [harness.start(harness.submit()) for _ in range(5)]
    changes = [quiet(record, beat, beat or None) for beat, record in enumerate(records)]
    assert harness.store.apply_quiet(harness.lease, changes) == {record.job.id for record in records}
    live = harness.store.live_jobs()
    assert live == JobStore(harness.store._engine).live_jobs()  # which has nothing in memory
    for beat, (before, after) in enumerate(zip(records, live, strict=True)):
        assert before.attempt is not None
        tried = before.attempt.attempt.model_copy(update={"restarts": 2})
        assert after.attempt == dataclasses.replace(before.attempt, attempt=tried, beat=beat, beat_seen_at=NOW)
        assert after.version == before.version + 1
        assert after.job.progress == changes[beat][1].job.get("progress")
        assert after.job.updated_at > before.job.updated_at
    assert harness.store.apply_quiet(harness.lease, []) == set()


def test_a_sign_of_life_does_not_hide_what_happened_meanwhile(harness: Harness) -> None:
    first, second, gone = (harness.start(harness.submit()) for _ in range(3))
    cancelled = harness.store.request_cancel(harness.project, first.job.id)
    ended = harness.store.apply(harness.lease, gone, Change(job={"state": JobState.FAILED}))
    harness.store.delete_job(harness.project, gone.job.id)
    assert ended.job.state is JobState.FAILED
    written = harness.store.apply_quiet(harness.lease, [quiet(record, 7) for record in (first, second, gone)])
    assert written == {second.job.id}
    seen = {record.job.id: record for record in harness.store.live_jobs()}
    assert seen.keys() == {first.job.id, second.job.id}
    assert cancelled.cancel_requested
    assert seen[first.job.id].job.cancel_requested
    beats = [record.attempt.beat for record in seen.values() if record.attempt is not None]
    assert beats == [None, 7]


def test_signs_of_life_and_cancellations_of_a_whole_study_do_not_wait_for_each_other_for_good(harness: Harness) -> None:
    """Both lock many jobs in one transaction; PostgreSQL would end one of two that lock in different orders."""
    spec = harness.spec.model_copy(update={"labels": {"study": "study-1"}})
    names = [f"job-{number:02d}" for number in random.Random(1).sample(range(100), 40)]
    members = [StudyMember(key=f"depth/seed-{n}", series="depth", seed=n, job=job) for n, job in enumerate(names)]
    study = StudyDocument(
        id="study-1", project=harness.project, spec=StudySpec(study="depth"), members=tuple(members), created_at=NOW
    )
    harness.store.submit_study(study, [NewJob(job, spec, harness.dataset) for job in names])
    records = [harness.start(record) for record in harness.store.live_jobs()]
    assert len(records) == 40
    cancelled = Event()

    def work(number: int) -> int:
        if number:  # several users, while the controller writes
            for _ in range(10):
                harness.store.cancel_study(harness.project, "study-1")
            cancelled.set()
            return 0
        rounds = 0
        while not cancelled.is_set() or rounds < 10:
            rounds += 1
            live = harness.store.live_jobs()
            assert len(harness.store.apply_quiet(harness.lease, [quiet(record, rounds) for record in live])) <= 40
        return rounds

    results = in_threads(work, 4)
    assert all(isinstance(result, int) for result in results), results
    last = harness.store.live_jobs()
    assert harness.store.apply_quiet(harness.lease, [quiet(record, 1000) for record in last]) == set(names)
    for record in harness.store.live_jobs():
        assert record.job.cancel_requested
        assert record.attempt is not None
        assert record.attempt.beat == 1000
        events = harness.store.events(harness.project, record.job.id)
        assert [item.type for item in events].count("CancelRequested") == 1


def test_a_sign_of_life_is_fenced_and_is_no_more_than_that(harness: Harness) -> None:
    record = harness.start(harness.submit())
    loud = Change(job={"state": JobState.FAILED})
    for change in (loud, Change(events=(NewEvent("Told"),)), Change(attempt={"state": AttemptState.RUNNING})):
        assert not change.quiet
        with pytest.raises(ValueError, match="more than what a driver says"):
            harness.store.apply_quiet(harness.lease, [quiet(record, 1), (record, change)])
    with pytest.raises(Fenced):
        harness.store.apply_quiet(dataclasses.replace(harness.lease, epoch=99), [quiet(record, 1)])
    assert harness.store.live_jobs() == [record]


def test_a_change_of_state_is_an_event_with_its_cause(harness: Harness) -> None:
    record = harness.start(harness.submit())
    change = Change(
        job={"state": JobState.FAILED, "reason": Reason.TRAINING_ERROR, "message": "it broke"},
        attempt={"state": AttemptState.FAILED, "reason": Reason.OUT_OF_MEMORY, "message": "too big"},
        events=(NewEvent("Told", attempt=1, data={"a": [1]}, at=NOW),),
    )
    harness.store.apply(harness.lease, record, change)
    events = harness.store.events(harness.project, record.job.id)
    told = [(event.type, event.attempt, event.before, event.after, event.reason, event.message) for event in events]
    assert told == [
        ("JobSubmitted", None, None, "QUEUED", None, ""),
        ("AttemptStateChanged", 1, None, "PENDING", None, ""),
        ("JobStateChanged", None, "QUEUED", "STARTING", None, ""),
        ("Told", 1, None, None, None, ""),
        ("AttemptStateChanged", 1, "PENDING", "FAILED", Reason.OUT_OF_MEMORY, "too big"),
        ("JobStateChanged", None, "STARTING", "FAILED", Reason.TRAINING_ERROR, "it broke"),
    ]
    assert (events[3].at, events[3].data) == (NOW, {"a": [1]})


def test_a_reason_goes_with_its_state(harness: Harness) -> None:
    record = harness.submit()
    waiting = {"reason": Reason.NO_CAPACITY, "message": "2 of 4 CPUs are free"}
    record = harness.store.apply(harness.lease, record, Change(job=waiting))
    assert (record.job.reason, record.job.message) == (Reason.NO_CAPACITY, "2 of 4 CPUs are free")
    # The same state again is no transition, and keeps the reason.
    record = harness.store.apply(harness.lease, record, Change(job={"state": JobState.QUEUED}))
    assert record.job.reason is Reason.NO_CAPACITY
    record = harness.start(record)
    assert (record.job.reason, record.job.message) == (None, "")
    types = [event.type for event in harness.store.events(harness.project, record.job.id)]
    assert types == ["JobSubmitted", "AttemptStateChanged", "JobStateChanged"]


def walk(harness: Harness, state: JobState) -> JobRecord:
    """A job in `state`, by the shortest legal way."""
    ways: list[tuple[JobState, ...]] = [(JobState.QUEUED,)]
    for way in ways:
        if way[-1] is state:
            break
        ways += [(*way, after) for after in sorted(JOB_TRANSITIONS[way[-1]])]
    record = harness.submit()
    for after in way[1:]:
        record = harness.to(record, after)
    return record


@pytest.mark.parametrize("before", JobState)
def test_a_job_moves_only_as_its_state_machine_says(harness: Harness, before: JobState) -> None:
    for after in JobState:
        record = walk(harness, before)
        if after is before:
            continue
        if after in JOB_TRANSITIONS[before]:
            assert harness.to(record, after).job.state is after
            continue
        with pytest.raises(IllegalTransition, match=f"{before} and can't become {after}"):
            harness.store.apply(harness.lease, record, Change(job={"state": after}, events=(NewEvent("Told"),)))
        assert harness.store.job(harness.project, record.job.id) == record.job
        events = harness.store.events(harness.project, record.job.id)
        assert "Told" not in [event.type for event in events]


@pytest.mark.parametrize("before", AttemptState)
def test_an_attempt_moves_only_as_its_state_machine_says(harness: Harness, before: AttemptState) -> None:
    for after in AttemptState:
        record = harness.submit()
        record = harness.store.apply(harness.lease, record, Change(new_attempt=first_attempt(record.job, before)))
        change = Change(attempt={"state": after}, job={"message": "both or none"})
        if after is before or after in ATTEMPT_TRANSITIONS[before]:
            changed = harness.store.apply(harness.lease, record, change)
            assert changed.attempt is not None
            assert changed.attempt.attempt.state is after
            continue
        with pytest.raises(IllegalTransition, match=f"{record.job.id}-1 is {before} and can't become {after}"):
            harness.store.apply(harness.lease, record, change)
        assert harness.store.job(harness.project, record.job.id) == record.job


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change(job={"generation": 2}), "generation"),
        (Change(job={"version": 2}), "version"),
        (Change(job={"id": "x"}), "id"),
        (Change(job={"cancel_requested": True}), "cancel_requested"),
        (Change(attempt={"restarts": 1}), "no attempt"),
    ],
)
def test_a_change_of_what_is_not_the_controllers_is_refused(harness: Harness, change: Change, message: str) -> None:
    record = harness.submit()
    with pytest.raises(ValueError, match=message):
        harness.store.apply(harness.lease, record, change)
    assert harness.store.live_jobs() == [record]


def test_attempts_are_numbered_without_gaps(harness: Harness) -> None:
    record = harness.start(harness.submit())
    for number, job in ((1, record.job.id), (3, record.job.id), (2, "job-other")):
        attempt = Attempt(job=job, number=number, state=AttemptState.PENDING, created_at=NOW)
        with pytest.raises(ValueError, match="number 2"):
            harness.store.apply(harness.lease, record, Change(new_attempt=attempt))
    assert harness.store.live_jobs() == [record]


def test_of_two_writers_on_one_version_the_second_is_stale(harness: Harness) -> None:
    record = harness.submit()
    first = harness.store.apply(harness.lease, record, Change(job={"message": "first"}))
    change = Change(job={"message": "second"}, new_attempt=first_attempt(record.job), events=(NewEvent("Told"),))
    with pytest.raises(Stale, match=record.job.id):
        harness.store.apply(harness.lease, record, change)
    assert harness.store.live_jobs() == [first]
    assert len(harness.store.events(harness.project, record.job.id)) == 1


def test_a_persons_cancel_makes_the_controller_read_again(harness: Harness) -> None:
    record = harness.submit()
    harness.store.request_cancel(harness.project, record.job.id)
    with pytest.raises(Stale):
        harness.start(record)
    again = record_of(harness.store, record.job)
    assert again.job.cancel_requested
    assert harness.to(again, JobState.CANCELLED).job.generation == 2


def test_a_deleted_job_is_stale(harness: Harness) -> None:
    record = harness.to(harness.submit(), JobState.FAILED)
    harness.store.delete_job(harness.project, record.job.id)
    with pytest.raises(Stale):
        harness.store.apply(harness.lease, record, Change(events=(NewEvent("Late"),)))


def test_a_change_at_the_same_time_by_many_happens_once(harness: Harness) -> None:
    record = harness.submit()
    answers = in_threads(lambda _: harness.start(record), 6)
    assert sum(isinstance(answer, JobRecord) for answer in answers) == 1, answers
    assert sum(isinstance(answer, Stale) for answer in answers) == 5, answers
    assert len(harness.store.attempts(harness.project, record.job.id)) == 1


def test_an_event_of_one_source_is_kept_once_in_each_job(harness: Harness) -> None:
    records = [harness.submit(), harness.submit()]
    copied = Change(events=(NewEvent("A", source="1.1.1"), NewEvent("B", source="1.1.2"), NewEvent("Own")))
    for submitted in records:
        record = harness.store.apply(harness.lease, submitted, copied)
        harness.store.apply(harness.lease, record, Change(events=(*copied.events, NewEvent("C", source="1.1.3"))))
        types = [event.type for event in harness.store.events(harness.project, record.job.id)]
        assert types == ["JobSubmitted", "A", "B", "Own", "Own", "C"]


# Fencing


def test_who_lost_the_lease_changes_nothing(
    clocked: JobStore, clock: Clock, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    clocked.submit(project, spec, digits)
    old = lease_of(clocked, "one")
    [record] = clocked.live_jobs()
    clock.advance(60)
    new = lease_of(clocked, "two")
    change = Change(job={"message": "who"}, events=(NewEvent("Told"),))
    with pytest.raises(Fenced, match="one has lost the lease controller of epoch 1"):
        clocked.apply(old, record, change)
    assert clocked.live_jobs() == [record]
    changed = clocked.apply(new, record, change)
    assert changed.job.message == "who"
    # The same holder under a later epoch does not revive its old lease.
    clocked.release_lease(new)
    assert lease_of(clocked, "one").epoch == 3
    with pytest.raises(Fenced):
        clocked.apply(old, changed, change)


def test_a_lease_that_was_never_given_is_fenced(harness: Harness) -> None:
    record = harness.submit()
    for forged in (
        dataclasses.replace(harness.lease, epoch=2),
        dataclasses.replace(harness.lease, holder="two"),
        dataclasses.replace(harness.lease, name="other"),
    ):
        with pytest.raises(Fenced):
            harness.store.apply(forged, record, Change())


@pytest.mark.postgres
def test_a_take_over_waits_for_a_change_under_way(
    postgres_url: str, connected: Callable[[str], Engine], project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    """Between an old holder's look at its lease and its commit, nobody else may become the holder."""
    engine = connected(postgres_url)
    store, rival = JobStore(engine), JobStore(connected(postgres_url))
    store.create_project(project)
    store.submit(project, spec, digits)
    lease = lease_of(store, "one", 0)
    [record] = store.live_jobs()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    with ThreadPoolExecutor(1) as pool, connected(postgres_url).connect() as observer:
        take_overs: list[Future[Lease | None]] = []

        def take_over(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            if "FROM leases" not in statement:
                return
            take_overs.append(pool.submit(rival.acquire_lease, "controller", "two", 10))
            deadline = time.monotonic() + 30
            while not observer.scalar(waiting):
                assert not take_overs[0].done(), "the lease was taken over in the midst of a change"
                assert time.monotonic() < deadline

        event.listen(engine, "after_cursor_execute", take_over)
        changed = store.apply(lease, record, Change(job={"message": "in time"}))
        event.remove(engine, "after_cursor_execute", take_over)
        [taken] = [future.result(timeout=30) for future in take_overs]
    assert taken is not None
    assert (taken.holder, taken.epoch) == ("two", 2)
    assert store.live_jobs() == [changed]
    with pytest.raises(Fenced):
        store.apply(lease, changed, Change())


def test_controllers_that_contend_never_write_under_an_older_epoch(
    database_url: str,
    connected: Callable[[str], Engine],
    project: str,
    spec: TrainSpec,
    digits: DatasetInfo,
) -> None:
    store = JobStore(connected(database_url))
    store.create_project(project)
    job, _ = store.submit(project, spec, digits)

    def control(number: int) -> list[type[Exception] | None]:
        """Act as a controller with a connection of its own, whose lease expires at once."""
        own = JobStore(connected(database_url))
        outcomes: list[type[Exception] | None] = []
        for _ in range(12):
            lease = own.acquire_lease("controller", f"holder-{number}", 0)
            if lease is None:
                continue
            [record] = own.live_jobs()
            try:
                own.apply(lease, record, Change(events=(NewEvent("Acted", data={"epoch": lease.epoch}),)))
                outcomes.append(None)
            except (Fenced, Stale) as error:
                outcomes.append(type(error))
        return outcomes

    answers = in_threads(control, 4)
    assert all(isinstance(answer, list) for answer in answers), answers
    outcomes = [outcome for answer in answers if isinstance(answer, list) for outcome in answer]
    acted = [event.data["epoch"] for event in store.events(project, job.id, limit=1000) if event.type == "Acted"]
    assert len(acted) == outcomes.count(None) > 0
    assert acted == sorted(acted)
    [record] = store.live_jobs()
    assert record.version == 1 + len(acted)


def test_a_reader_who_follows_events_by_id_misses_none(harness: Harness) -> None:
    store, project = harness.store, harness.project
    job = harness.submit().job

    def write(number: int) -> None:
        for step in range(6):
            for _ in itertools.count():
                try:
                    change = Change(events=(NewEvent("Told", data={"writer": number, "step": step}),))
                    store.apply(harness.lease, record_of(store, job), change)
                    break
                except Stale:
                    continue

    writers = [Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    while True:
        running = any(writer.is_alive() for writer in writers)
        seen += [event.id for event in store.events(project, job.id, after=seen[-1] if seen else 0)]
        if not running:
            break
    assert seen == [event.id for event in store.events(project, job.id)]
    assert len(seen) == 1 + 3 * 6
