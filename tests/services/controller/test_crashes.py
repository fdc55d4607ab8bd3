"""Controllers that die, sleep and race: every attempt is started once, and no job is lost."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from resforge.jobs import TERMINAL, AttemptState, Job, JobState, Reason
from services.controller.loop import Controller
from services.launchers.base import LaunchRequest, Node
from services.launchers.memory import MemoryLauncher
from tests.services.controller.stage import Stage

pytestmark = pytest.mark.stack  # some forty deaths: too slow for the quick part

S = JobState


class Crash(BaseException):
    """The controller's process dies here. No handler of exceptions sees it."""


class Fuse:
    """Dies before the n-th thing that has an effect outside the process, which is also after the one before it."""

    EFFECTS = ("apply", "apply_quiet", "record_tick", "put", "submit", "stop")

    def __init__(self, point: int) -> None:
        self.left = point
        self.blown = False

    def wrap(self, real: Any) -> Any:
        fuse = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                method = getattr(real, name)
                if name not in Fuse.EFFECTS:
                    return method

                def call(*args: Any, **kwargs: Any) -> Any:
                    fuse.burn()
                    return method(*args, **kwargs)

                return call

        return Wrapped()

    def burn(self) -> None:
        if self.left == 0 and not self.blown:
            self.blown = True
            raise Crash
        self.left -= 1


class Mortal:
    """A controller that is followed by another when it dies."""

    def __init__(self, stage: Stage, fuse: Fuse) -> None:
        self._stage = stage
        self._fuse = fuse
        self._controller = self._make()

    def _make(self) -> Controller:
        stage, wrap = self._stage, self._fuse.wrap
        return stage.controller(store=wrap(stage.store), objects=wrap(stage.objects), launcher=wrap(stage.launcher))

    def tick(self) -> None:
        try:
            self._controller.tick()
        except Crash:
            self._stage.clock.turn(11)  # the lease of the dead expires
            self._controller = self._make()

    def until(self, job: Job, *states: JobState) -> None:
        for _ in range(12):
            if self._stage.job(job).state in states:
                return
            self.tick()
        raise AssertionError(f"still {self._stage.job(job)}")


def lost_and_found(stage: Stage, mortal: Mortal, job: Job) -> None:
    """An attempt runs and its driver dies; the next one succeeds."""
    mortal.until(job, S.STARTING)
    for number in (1, 2):
        driver = stage.driver(job, number)
        while stage.launcher.observe(f"{job.id}-{number}").phase == "absent":
            mortal.tick()
        driver.event("Started")
        driver.heartbeat()
        driver.progress(1)
        mortal.until(job, S.RUNNING)
        if number == 1:
            stage.launcher.become(f"{job.id}-1", "failed")
            mortal.until(job, S.RECOVERING)
    driver.succeed()
    mortal.until(job, *TERMINAL)


def cancelled(stage: Stage, mortal: Mortal, job: Job) -> None:
    """A running attempt is cancelled and has to be ended by force."""
    driver = stage.driver(job)
    driver.event("Started")
    driver.heartbeat()
    driver.progress(1)
    mortal.until(job, S.RUNNING)
    stage.store.request_cancel(stage.project, job.id)
    mortal.until(job, S.CANCELLING)
    stage.clock.turn(61)
    mortal.until(job, *TERMINAL)


HISTORIES = {
    lost_and_found: ["STARTING", "RUNNING", "RECOVERING", "STARTING", "RUNNING", "SUCCEEDED"],
    cancelled: ["STARTING", "RUNNING", "CANCELLING", "CANCELLED"],
}


@pytest.mark.parametrize("history", HISTORIES)
def test_dying_anywhere_does_no_harm(stage: Stage, history: Callable[[Stage, Mortal, Job], None]) -> None:
    for point in itertools.count():
        fuse, job = Fuse(point), stage.submit()
        history(stage, Mortal(stage, fuse), job)
        events = stage.events(job)
        states = [event.after for event in events if event.type == "JobStateChanged" and event.before]
        assert states == HISTORIES[history], point
        attempts = stage.attempts(job)
        started = {name: count for name, count in stage.launcher.starts.items() if name.startswith(job.id)}
        assert started == {attempt.external_name: 1 for attempt in attempts}, point
        assert len(attempts) == states.count("STARTING"), point
        assert [event.type for event in events].count("Started") == len(attempts), point
        if not fuse.blown:
            break
        stage.clock.turn(11)
    assert point > 15


def test_a_successor_adopts_what_runs(each_stage: Stage) -> None:
    stage = each_stage
    first, job = stage.controller("first"), stage.submit()
    driver = stage.running(first, job)
    second = stage.controller("second")
    assert not second.tick()  # the first's lease is good
    stage.clock.turn(11)  # the first is dead
    driver.progress(30)
    assert second.tick()
    seen = stage.job(job)
    assert seen.progress is not None
    assert (seen.state, seen.progress.step) == (S.RUNNING, 30)
    driver.succeed()
    stage.until(second, job, S.SUCCEEDED)
    assert stage.launcher.starts == {f"{job.id}-1": 1}
    assert not first.tick()


def test_a_leader_that_slept_while_it_submitted_writes_nothing(each_stage: Stage) -> None:
    stage = each_stage
    job, successor = stage.submit(), stage.controller("successor")

    class Sleepy(Passing):
        def submit(self, request: LaunchRequest) -> None:
            stage.clock.turn(11)
            stage.running(successor, job).fail(Reason.NODE_LOST)
            stage.until(successor, job, S.RECOVERING)
            super().submit(request)

    sleeper = stage.controller("sleeper", launcher=Sleepy(stage.launcher))
    stage.until(sleeper, job, S.STARTING)
    assert not sleeper.tick()
    assert stage.job(job).state is S.RECOVERING
    assert stage.attempts(job)[0].reason is Reason.NODE_LOST
    assert stage.launcher.starts == {f"{job.id}-1": 1}


def test_a_leader_that_slept_before_it_submitted_starts_nothing(each_stage: Stage) -> None:
    stage = each_stage
    job, successor = stage.submit(), stage.controller("successor")

    class Sleepy:
        def __getattr__(self, name: str) -> Any:
            return getattr(stage.objects, name)

        def put(self, key: str, *rest: Any) -> None:
            stage.objects.put(key, *rest)
            if key.endswith("attempt.json"):
                stage.clock.turn(11)
                stage.running(successor, job)
                stage.launcher.forget()  # and Ray was started anew: it would take the first attempt again
                stage.running(successor, job, 2)

    sleeper = stage.controller("sleeper", objects=Sleepy())  # type: ignore[arg-type]
    stage.until(sleeper, job, S.STARTING)
    assert not sleeper.tick()
    assert stage.launcher.starts == {f"{job.id}-1": 1, f"{job.id}-2": 1}
    assert [attempt.state for attempt in stage.attempts(job)] == [AttemptState.LOST, AttemptState.RUNNING]


@pytest.mark.parametrize("lost", [1, 3])
def test_a_submission_whose_answer_is_lost(stage: Stage, lost: int) -> None:
    stage.launcher.lost_answers = lost
    controller, job = stage.controller(), stage.submit()
    stage.until(controller, job, S.STARTING)
    controller.tick()
    assert stage.job(job).reason is Reason.LAUNCHER_UNAVAILABLE
    stage.running(controller, job).succeed()
    stage.until(controller, job, S.SUCCEEDED)
    assert stage.launcher.starts == {f"{job.id}-1": 1}


def test_two_controllers_that_take_the_lease_from_each_other(each_stage: Stage) -> None:
    stage = each_stage
    stage.launcher.machines = [Node(64, 0, 64, 0)]
    stage.launcher.on_start = stage.finish
    jobs = [stage.submit() for _ in range(8)]
    stop = threading.Event()
    slow = itertools.cycle([0.0, 0.0, 0.3])

    class Slow(Passing):
        def submit(self, request: LaunchRequest) -> None:
            time.sleep(next(slow))  # longer than the lease: the other one takes it over meanwhile
            super().submit(request)

    controllers = [
        stage.controller(name, launcher=Slow(stage.launcher), lease_s=0.2, tick_s=0.01) for name in ("one", "two")
    ]
    threads = [threading.Thread(target=controller.run, args=(stop,)) for controller in controllers]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 120
        while not all(stage.job(job).state in TERMINAL for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [(stage.job(job).state, stage.job(job).attempts) for job in jobs] == [(S.SUCCEEDED, 1)] * len(jobs)
    assert stage.launcher.starts == {f"{job.id}-1": 1 for job in jobs}


class Passing:
    """A launcher that passes everything on; tests override what they disturb."""

    def __init__(self, real: MemoryLauncher) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def submit(self, request: LaunchRequest) -> None:
        self._real.submit(request)
