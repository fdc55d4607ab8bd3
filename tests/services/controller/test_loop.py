"""The controller on a real database and a real S3, with a launcher in memory that fails as it is told to."""

import json
import math
import threading
from typing import Any

import pytest

from resforge.jobs import AttemptState, JobState, Reason
from resforge.storage import AttemptDocument, Control, JobDocument
from services.errors import StoreUnavailable
from services.launchers.base import Node
from services.store.records import JobRecord
from tests.s3 import S3Server
from tests.services.controller.stage import Stage

pytestmark = pytest.mark.stack

S = JobState


def test_a_job_from_its_submission_to_its_end(each_stage: Stage) -> None:
    stage = each_stage
    controller, job = stage.controller(), stage.submit()
    stage.until(controller, job, S.STARTING)
    controller.tick()
    assert stage.launcher.starts == {f"{job.id}-1": 1}
    assert stage.attempts(job)[0].state is AttemptState.SUBMITTED
    driver = stage.running(controller, job)
    assert stage.job(job).started_at is not None
    driver.progress(42)
    driver.heartbeat(restarts=2)
    controller.tick()
    seen = stage.job(job).progress
    assert seen is not None
    assert seen.step == 42
    assert stage.attempts(job)[0].restarts == 2
    driver.succeed()
    controller.tick()
    ended = stage.job(job)
    assert ended.state is S.SUCCEEDED
    assert ended.result is not None
    assert ended.result.top1 == 0.98
    assert ended.finished_at is not None
    moves = [(event.before, event.after) for event in stage.events(job) if event.type == "JobStateChanged"]
    assert moves == [("QUEUED", "STARTING"), ("STARTING", "RUNNING"), ("RUNNING", "SUCCEEDED")]
    assert stage.store.last_tick() is not None


def test_what_the_driver_reads_is_there_before_it_starts(stage: Stage) -> None:
    job = stage.submit()
    found: list[tuple[JobDocument, AttemptDocument, Control]] = []
    prefix = stage.prefix(job)
    stage.launcher.on_start = lambda request: found.append(
        (
            JobDocument.model_validate_json(stage.objects.get(prefix.spec)),
            AttemptDocument.model_validate_json(stage.objects.get(prefix.attempt(request.attempt).attempt)),
            Control.model_validate_json(stage.objects.get(prefix.control)),
        )
    )
    controller = stage.controller()
    stage.until(controller, job, S.STARTING)
    controller.tick()
    document, attempt, control = found[0]
    assert (document.job, document.project) == (job.id, job.project)
    assert document.spec == job.spec
    assert document.dataset == stage.dataset
    assert (attempt.number, attempt.resume_from) == (1, ())
    assert control.desired == "run"


def test_a_lost_driver_is_followed_by_an_attempt_that_may_resume(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    stage.running(controller, job)
    stage.launcher.become(f"{job.id}-1", "failed", "exit code 137")
    seen = stage.until(controller, job, S.RECOVERING)
    assert seen.reason is Reason.DRIVER_LOST
    assert "137" in seen.message
    second = stage.running(controller, job, 2)
    first = stage.attempts(job)[0]
    assert (first.state, first.reason) == (AttemptState.LOST, Reason.DRIVER_LOST)
    stored = stage.objects.get(stage.prefix(job).attempt(2).attempt)
    assert AttemptDocument.model_validate_json(stored).resume_from == (1,)
    second.succeed()
    assert stage.until(controller, job, S.SUCCEEDED).attempts == 2
    assert stage.launcher.starts == {f"{job.id}-1": 1, f"{job.id}-2": 1}


def test_a_head_that_lost_everything(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    stage.running(controller, job)
    stage.launcher.forget()
    stage.until(controller, job, S.RECOVERING)
    stage.running(controller, job, 2).succeed()
    stage.until(controller, job, S.SUCCEEDED)
    assert stage.attempts(job)[0].reason is Reason.HEAD_LOST


def test_a_result_is_believed_whatever_the_launcher_says(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    driver.succeed()
    stage.launcher.become(f"{job.id}-1", "failed", "crashed while it ended")
    controller.tick()
    assert stage.job(job).state is S.SUCCEEDED


@pytest.mark.parametrize(("reason", "attempts"), [(Reason.NON_FINITE_LOSS, 1), (Reason.TRAINING_ERROR, 2)])
def test_errors_of_the_training_have_a_budget_and_some_are_final(stage: Stage, reason: Reason, attempts: int) -> None:
    controller, job = stage.controller(), stage.submit(errors=1)
    for number in range(1, attempts + 1):
        stage.running(controller, job, number).fail(reason, "it went wrong")
        controller.tick()
    ended = stage.job(job)
    assert (ended.state, ended.reason, ended.attempts) == (S.FAILED, reason, attempts)
    assert "it went wrong" in ended.message


def test_a_launcher_that_is_away_proves_nothing(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    stage.launcher.unavailable = "Ray is away"
    for step in (5, 6):
        driver.progress(step)
        controller.tick()
    seen = stage.job(job)
    assert (seen.state, seen.reason, seen.message) == (S.RUNNING, Reason.LAUNCHER_UNAVAILABLE, "Ray is away")
    assert seen.progress is not None
    assert seen.progress.step == 6
    stage.launcher.unavailable = None
    controller.tick()
    seen = stage.job(job)
    assert (seen.state, seen.reason, seen.message) == (S.RUNNING, None, "")
    kinds = [(event.type, event.reason) for event in stage.events(job)][-2:]
    assert kinds == [("JobConditionChanged", Reason.LAUNCHER_UNAVAILABLE), ("JobConditionChanged", None)]


def test_a_storage_that_is_away_proves_nothing(stage: Stage, s3_server: S3Server) -> None:
    controller, job, waiting = stage.controller(), stage.submit(workers=2), stage.submit()
    driver = stage.running(controller, job)
    s3_server.stop()
    stage.launcher.become(f"{job.id}-1", "failed")
    controller.tick()
    controller.tick()
    for item, state in ((job, S.RUNNING), (waiting, S.QUEUED)):
        seen = stage.job(item)
        assert (seen.state, seen.reason) == (state, Reason.STORAGE_UNAVAILABLE)
        assert s3_server.endpoint in seen.message
    s3_server.start()
    driver.succeed()
    assert stage.until(controller, job, S.SUCCEEDED).reason is None


def test_a_result_that_is_half_written_proves_nothing(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    stage.objects.put(driver.keys.result, b'{"outcome": "succ')
    stage.launcher.become(f"{job.id}-1", "succeeded")
    controller.tick()
    seen = stage.job(job)
    assert (seen.state, seen.reason) == (S.RUNNING, Reason.STORAGE_UNAVAILABLE)
    assert driver.keys.result in seen.message
    driver.succeed()
    controller.tick()
    assert stage.job(job).state is S.SUCCEEDED


def test_a_launcher_that_is_away_keeps_a_job_in_the_queue(stage: Stage) -> None:
    stage.launcher.unavailable = "Ray is away"
    controller, job = stage.controller(), stage.submit()
    for _ in range(3):
        controller.tick()
    seen = stage.job(job)
    assert (seen.state, seen.reason, seen.message) == (S.QUEUED, Reason.LAUNCHER_UNAVAILABLE, "Ray is away")
    assert len(stage.events(job)) == 2  # it came, and it waits: said once
    stage.launcher.unavailable = None
    stage.until(controller, job, S.STARTING)


def test_silence_is_measured_by_the_controllers_own_clock(stage: Stage) -> None:
    controller, job = stage.controller(heartbeat_timeout_s=60, lease_s=100), stage.submit()
    driver = stage.running(controller, job)
    stage.launcher.ignores_stop = True
    for _ in range(3):
        stage.clock.turn(50)
        driver.heartbeat()
        controller.tick()
    assert stage.launcher.stops == {}
    stage.clock.turn(61)
    controller.tick()
    controller.tick()
    assert stage.launcher.stops == {f"{job.id}-1": 2}
    assert stage.job(job).state is S.RUNNING  # it may still run, so nothing is lost
    stage.launcher.become(f"{job.id}-1", "stopped")
    seen = stage.until(controller, job, S.RECOVERING)
    assert seen.reason is Reason.HEARTBEAT_EXPIRED


def test_silence_while_nobody_looked_proves_nothing(stage: Stage) -> None:
    controller, job = stage.controller(heartbeat_timeout_s=60, lease_s=10), stage.submit()
    stage.running(controller, job)
    stage.clock.turn(3600)  # the machine slept, the driver with it
    controller.tick()
    controller.tick()
    successor = stage.controller(heartbeat_timeout_s=60, lease_s=10)
    stage.clock.turn(3600)
    successor.tick()
    successor.tick()
    assert stage.launcher.stops == {}


def test_what_was_read_late_in_a_long_look_was_no_silence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, job = stage.controller(heartbeat_timeout_s=60, lease_s=1000), stage.submit()
    driver, observe = stage.running(controller, job), stage.launcher.observe

    def slow(name: str) -> Any:
        stage.clock.turn(65)
        driver.heartbeat()
        return observe(name)

    with monkeypatch.context() as context:
        context.setattr(stage.launcher, "observe", slow)
        controller.tick()
    stage.clock.turn(2)
    controller.tick()
    assert stage.launcher.stops == {}


def test_a_tick_longer_than_the_lease_is_no_gap(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.machines = [Node(8, 0, 8, 0)]
    controller = stage.controller(heartbeat_timeout_s=60, lease_s=10)
    jobs = [stage.submit() for _ in range(4)]
    drivers = [stage.running(controller, job) for job in jobs]
    handle, leadership = controller._handle, controller._leadership

    def slow(*args: Any) -> Any:
        stage.clock.turn(4)
        leadership._renewed = -math.inf  # as it would be by a clock that the test can't turn
        return handle(*args)

    monkeypatch.setattr(controller, "_handle", slow)
    for _ in range(6):
        for driver in drivers[1:]:
            driver.heartbeat()
        assert controller.tick()
    assert set(stage.launcher.stops) == {f"{jobs[0].id}-1"}


def test_cancelling_lets_the_attempt_stop_by_itself(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    asked = stage.store.request_cancel(stage.project, job.id)
    stage.until(controller, job, S.CANCELLING)
    control = Control.model_validate_json(stage.objects.get(stage.prefix(job).control))
    assert (control.desired, control.generation) == ("stop", asked.generation)
    controller.tick()
    assert stage.job(job).state is S.CANCELLING
    driver.stop()
    controller.tick()
    ended = stage.job(job)
    assert (ended.state, ended.reason) == (S.CANCELLED, Reason.CANCELLED_BY_USER)
    assert stage.attempts(job)[0].state is AttemptState.STOPPED
    assert stage.launcher.stops == {}


def test_cancelling_ends_by_force_what_does_not_stop(stage: Stage) -> None:
    controller, job = stage.controller(stop_grace_s=30), stage.submit()
    stage.running(controller, job)
    stage.store.request_cancel(stage.project, job.id)
    stage.until(controller, job, S.CANCELLING)
    stage.clock.turn(31)
    stage.until(controller, job, S.CANCELLED)
    assert stage.launcher.stops == {f"{job.id}-1": 1}


def test_cancelling_before_the_submission(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    stage.until(controller, job, S.STARTING)
    stage.store.request_cancel(stage.project, job.id)
    stage.until(controller, job, S.CANCELLED)
    assert stage.launcher.starts == {}


def test_cancelling_in_the_queue(stage: Stage) -> None:
    stage.launcher.machines = []
    controller, job = stage.controller(), stage.submit()
    controller.tick()
    assert stage.job(job).reason is Reason.UNSCHEDULABLE
    stage.store.request_cancel(stage.project, job.id)
    controller.tick()
    assert stage.job(job).state is S.CANCELLED


def test_a_refused_attempt_fails_its_job(stage: Stage) -> None:
    stage.launcher.refused = "no such entry point"
    controller, job = stage.controller(), stage.submit()
    ended = stage.until(controller, job, S.FAILED)
    assert "no such entry point" in ended.message


def test_first_come_first_served_and_no_gang_starts_in_part(stage: Stage) -> None:
    controller = stage.controller()
    first, big, small, too_big = (stage.submit(workers=workers) for workers in (1, 2, 1, 64))
    for _ in range(4):
        controller.tick()
    states = {
        name: stage.job(job) for name, job in (("first", first), ("big", big), ("small", small), ("huge", too_big))
    }
    assert {name: (job.state, job.reason) for name, job in states.items()} == {
        "first": (S.STARTING, None),
        "big": (S.QUEUED, Reason.NO_CAPACITY),
        "small": (S.QUEUED, Reason.NO_CAPACITY),
        "huge": (S.QUEUED, Reason.UNSCHEDULABLE),
    }
    assert "room for 1, with 1 of 2 CPUs free" in states["big"].message
    assert big.id in states["small"].message
    assert stage.launcher.starts == {f"{first.id}-1": 1}
    stage.running(controller, first).succeed()
    stage.until(controller, big, S.STARTING)
    assert stage.job(small).state is S.QUEUED
    # Ray shows the big one's workers now, and a third CPU has come.
    stage.launcher.machines = [Node(cpus=2, gpus=0, free_cpus=0, free_gpus=0), Node(1, 0, 1, 0)]
    stage.until(controller, small, S.STARTING)


def test_a_recovering_job_waits_for_room_too(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit(workers=2)
    stage.running(controller, job)
    stage.launcher.become(f"{job.id}-1", "failed")
    stage.launcher.machines = [Node(cpus=2, gpus=0, free_cpus=1, free_gpus=0)]  # a worker is still going
    controller.tick()
    controller.tick()
    seen = stage.job(job)
    assert (seen.state, seen.reason) == (S.RECOVERING, Reason.NO_CAPACITY)
    stage.launcher.machines = [Node(cpus=2, gpus=0, free_cpus=2, free_gpus=0)]
    stage.until(controller, job, S.STARTING)


def test_the_trainers_events_are_copied_once_and_in_order(each_stage: Stage) -> None:
    stage = each_stage
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    driver.event("CheckpointSaved", step=10)
    driver.heartbeat()
    controller.tick()
    driver.part(b'no JSON\n{"at": "2026-01-01T00:00:00Z", "type": "Noted"}\n{"at": "2026-01-01T00:00:00Z", "ty')
    driver.heartbeat()
    controller.tick()
    whole = {"at": "2026-01-01T00:00:00Z", "type": "Whole", "data": {"a": 1}}
    driver.parts -= 1  # the part was half-written: now it is whole
    driver.part(b'no JSON\n{"at": "2026-01-01T00:00:00Z", "type": "Noted"}\n' + json.dumps(whole).encode() + b"\n")
    driver.event("CheckpointSaved", step=20)
    driver.succeed()
    controller.tick()
    told = [(event.type, event.attempt, event.data) for event in stage.events(job) if event.attempt]
    told = [event for event in told if event[0] != "AttemptStateChanged"]
    assert told == [
        ("CheckpointSaved", 1, {"step": 10}),
        ("Noted", 1, {}),
        ("Whole", 1, {"a": 1}),
        ("CheckpointSaved", 1, {"step": 20}),
    ]
    assert stage.events(job)[-1].after == "SUCCEEDED"


def test_one_job_that_can_not_be_handled_stops_no_other(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    class Cursed(type(stage.launcher)):  # type: ignore[misc]
        def submit(self, request: object) -> None:
            if cursed.id in request.name:  # type: ignore[attr-defined]
                raise RuntimeError("a bug")
            super().submit(request)

    stage.launcher = Cursed([Node(4, 0, 4, 0)])
    cursed, job = stage.submit(), stage.submit()
    controller = stage.controller()
    stage.running(controller, job)
    assert stage.job(cursed).state is S.STARTING
    assert "a bug" in caplog.text


def test_a_database_that_is_away_is_waited_for(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    job, stop = stage.submit(), threading.Event()
    away = iter([StoreUnavailable("the database: connection refused"), RuntimeError("a bug")])

    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(stage.store, name)

        def live_jobs(self) -> list[JobRecord]:
            for error in away:
                raise error
            return stage.store.live_jobs()

    stage.launcher.on_start = lambda _: stop.set()
    stage.controller(store=Away(), tick_s=0.01).run(stop)  # type: ignore[arg-type]
    assert stage.launcher.starts == {f"{job.id}-1": 1}
    assert "connection refused" in caplog.text
    assert caplog.text.count("Traceback") == 1  # a bug is told in full, a database that is away in one line


def test_it_runs_until_it_is_told_to_stop_and_gives_its_lease_back(stage: Stage) -> None:
    job, stop = stage.submit(), threading.Event()
    stage.launcher.on_start = lambda _: stop.set()
    first, second = stage.controller(tick_s=0.01), stage.controller()
    first.run(stop)
    assert stage.launcher.starts == {f"{job.id}-1": 1}
    assert second.tick()  # at once, without waiting for the lease to expire


def test_an_attempt_that_was_written_down_is_submitted_at_once(stage: Stage) -> None:
    job, stop = stage.submit(), threading.Event()
    stage.launcher.on_start = lambda _: stop.set()
    late = threading.Timer(30, stop.set)
    late.start()
    stage.controller(tick_s=3600).run(stop)
    late.cancel()
    assert stage.launcher.starts == {f"{job.id}-1": 1}
