"""Random histories of a job: no order of events leads to an illegal transition, to two attempts at once, or nowhere."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from resforge.jobs import ATTEMPT_TERMINAL, TERMINAL, JobState, Reason
from resforge.storage import Result
from services.controller.decide import ATTEMPTING, Apply, ForceStop, Observed, RequestStop, Submit, decide
from services.controller.fit import FitAnswer
from services.controller.observe import Watch
from services.launchers.base import Observation
from services.store.records import JobRecord
from tests.services.controller.values import (
    POLICY,
    after,
    evolve,
    failed,
    heartbeat,
    progress,
    record,
    spec,
    stopped,
    succeeded,
)

PHASES = ("absent", "pending", "running", "succeeded", "failed", "stopped")
RESULTS = st.one_of(
    st.just(succeeded()), st.just(stopped()), st.builds(failed, st.sampled_from([None, *Reason]), st.text(max_size=3))
)
FITS = st.one_of(st.none(), st.builds(FitAnswer, st.sampled_from(["fits", "waits", "never"]), st.text(max_size=2)))
ANYTHING = st.builds(
    Observed,
    launcher=st.one_of(st.none(), st.builds(Observation, st.sampled_from(PHASES))),
    storage_error=st.sampled_from(["", "S3 is away"]),
    result=st.one_of(st.none(), RESULTS),
    heartbeat=st.one_of(st.none(), st.builds(heartbeat, st.integers(1, 3), st.integers(0, 2))),
    progress=st.one_of(st.none(), st.builds(progress, st.integers(0, 3))),
    fit=FITS,
    watched_since=st.one_of(st.none(), st.integers(0, 900).map(after)),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(ANYTHING, st.integers(0, 400), st.booleans()), max_size=40),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_no_sequence_of_observations_is_answered_illegally(
    steps: list[tuple[Observed, int, bool]], errors: int, infrastructure: int
) -> None:
    now, job = 0, record(JobState.QUEUED, spec=spec(errors=errors, infrastructure=infrastructure))
    for observed, seconds, cancel in steps:
        now += seconds
        if cancel:
            job = replace(job, job=job.job.model_copy(update={"cancel_requested": True}))
        action = decide(job, observed, after(now), POLICY)
        if job.job.state in TERMINAL:
            assert action is None
        if action is None:
            continue
        if action.change.new_attempt is not None:
            assert job.attempt is None or job.attempt.attempt.state in ATTEMPT_TERMINAL
            assert action.change.new_attempt.number == job.job.attempts + 1
        job = evolve(job, action.change)
        assert job.job.attempts <= 1 + errors + infrastructure


@dataclass
class Driver:
    """One attempt out in the world."""

    phase: str = "running"
    result: Result | None = None
    beat: int = 0
    step: int = 0

    @property
    def alive(self) -> bool:
        return self.phase == "running" and self.result is None


@dataclass
class World:
    """A job, its drivers, and a launcher and a storage that come and go."""

    job: JobRecord
    drivers: dict[int, Driver] = field(default_factory=dict)
    seconds: int = 0
    launcher: bool = True
    storage: bool = True
    control: str = "run"
    watch: Watch = field(default_factory=lambda: Watch(gap_s=10))
    submissions: int = 0

    @property
    def now(self) -> datetime:
        return after(self.seconds)

    @property
    def driver(self) -> Driver | None:
        return self.drivers.get(self.job.job.attempts)

    def tick(self, *, dies_before_it_writes: bool = False) -> None:
        action = decide(self.job, self._look(), self.now, POLICY)
        if self.job.job.state in TERMINAL:
            assert action is None
        if action is None:
            return
        match action:
            case Submit() if not (self.launcher and self.storage):
                return
            case Submit():
                self._start(self.job.job.attempts)
            case RequestStop() if not self.storage:
                return
            case RequestStop():
                self.control = "stop"
            case ForceStop() if not self.launcher:
                return
            case ForceStop():
                driver = self.driver
                if driver is not None and driver.phase == "running":
                    driver.phase = "stopped"
            case Apply():
                pass
        if not dies_before_it_writes:
            self.job = evolve(self.job, action.change)

    def _start(self, number: int) -> None:
        if number in self.drivers:
            return
        assert all(not driver.alive for driver in self.drivers.values()), "two attempts at once"
        self.drivers[number] = Driver()
        self.control = "run"
        self.submissions += 1

    def _look(self) -> Observed:
        observed = Observed(
            launcher_error="" if self.launcher else "Ray is away", storage_error="" if self.storage else "S3 is away"
        )
        if self.job.job.state not in ATTEMPTING:
            return replace(observed, fit=FitAnswer("fits") if self.launcher else None)
        driver = self.driver
        since = self.watch.note({self.job.job.id: self.storage}, self.now)
        observed = replace(observed, watched_since=since.get(self.job.job.id))
        if self.launcher:
            observed = replace(observed, launcher=Observation(driver.phase if driver else "absent"))  # type: ignore[arg-type]
        if self.storage and driver is not None:
            observed = replace(
                observed,
                result=driver.result,
                heartbeat=heartbeat(driver.beat) if driver.beat else None,
                progress=progress(driver.step, self.job.job.attempts) if driver.step else None,
            )
        return observed

    def happen(self, what: str) -> None:
        """Something happens that is not the controller's doing."""
        driver = self.driver
        match what:
            case "launcher":
                self.launcher = not self.launcher
            case "storage":
                self.storage = not self.storage
            case "cancel" if self.job.job.state not in TERMINAL:
                self.job = replace(self.job, job=self.job.job.model_copy(update={"cancel_requested": True}))
            case "minute":
                self.seconds += 60
            case "new controller":
                self.watch.forget()
            case "head lost":
                for item in self.drivers.values():
                    item.phase = "absent"
        if driver is None or not driver.alive:
            return
        match what:
            case "step" if self.storage:
                driver.beat, driver.step = driver.beat + 1, driver.step + 1
                if self.control == "stop":
                    driver.result = stopped()
            case "succeeds" if self.storage:
                driver.result = succeeded()
            case "fails" if self.storage:
                driver.result = failed(Reason.TRAINING_ERROR)
            case "dies":
                driver.phase = "failed"


HAPPENINGS = (
    "launcher", "storage", "cancel", "minute", "new controller", "head lost", "step", "succeeds", "fails", "dies",
)  # fmt: skip
HISTORY = st.lists(st.sampled_from([*HAPPENINGS, *["tick"] * 6, "tick that dies", "step", "step"]), max_size=60)


@settings(max_examples=200, deadline=None)
@given(HISTORY)
def test_every_history_ends_well_once_the_world_is_well(history: list[str]) -> None:
    world = World(record(JobState.QUEUED, spec=spec(errors=3, infrastructure=100)))
    for what in history:
        world.seconds += 1
        if what.startswith("tick"):
            world.tick(dies_before_it_writes=what == "tick that dies")
        else:
            world.happen(what)
    world.launcher = world.storage = True
    asked = world.job.job.cancel_requested
    for _ in range(20):
        world.seconds += 1
        world.happen("step")
        world.tick()
        if world.job.job.state is JobState.RUNNING:
            world.happen("succeeds")
    state = world.job.job.state
    assert state in TERMINAL
    results = [driver.result.outcome for driver in world.drivers.values() if driver.result]
    assert (state is JobState.SUCCEEDED) == ("succeeded" in results)
    assert asked or state is not JobState.CANCELLED
    assert world.submissions <= world.job.job.attempts
