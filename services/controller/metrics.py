"""The controller's own metrics for Prometheus. Names, help and labels are those of resforge/metrics.py."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, cast, get_args

from resforge.jobs import ATTEMPT_TERMINAL, TERMINAL, AttemptState, JobState, Reason
from resforge.metrics import (
    ATTEMPTS_ENDED,
    CONTROLLER_ACTIONS,
    CONTROLLER_ERRORS,
    CONTROLLER_LEADER,
    CONTROLLER_TICK_SECONDS,
    FIRST_STEP_SECONDS,
    JOBS_ENDED,
    LAUNCHER_SECONDS,
    QUEUE_SECONDS,
    RESOURCES_ALLOCATED,
    RESOURCES_CAPACITY,
    RESOURCES_WANTED,
)
from services.controller.decide import WAITING, Action
from services.controller.fit import gang_of
from services.controller.port import Pulse
from services.instruments import Instruments
from services.launchers.base import Gang, Launcher, LauncherError, LauncherUnavailable, LaunchRefused, Node
from services.store.records import Change, JobRecord

logger = logging.getLogger(__name__)

# Such as `force_stop`.
ACTIONS = {kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Action)}
ERRORS = ("tick", "look", "job")
NO_REASON = "none"
# The launcher may have thousands of nodes to list, and they come and go slowly.
CAPACITY_EVERY_S = 15.0


class ControllerMetrics(Instruments):
    """A registry of its own with everything that the controller measures."""

    def __init__(self) -> None:
        super().__init__("controller")
        self.pulse = Pulse()
        self._leader = self.gauge(CONTROLLER_LEADER)
        self._ticks = self.histogram(CONTROLLER_TICK_SECONDS)
        self._actions = self.counter(CONTROLLER_ACTIONS)
        self._errors = self.counter(CONTROLLER_ERRORS)
        self._launcher = self.histogram(LAUNCHER_SECONDS)
        self._queue = self.histogram(QUEUE_SECONDS)
        self._first_step = self.histogram(FIRST_STEP_SECONDS)
        self._jobs = self.counter(JOBS_ENDED)
        self._attempts = self.counter(ATTEMPTS_ENDED)
        self._capacity = self.gauge(RESOURCES_CAPACITY)
        self._allocated = self.gauge(RESOURCES_ALLOCATED)
        self._wanted = self.gauge(RESOURCES_WANTED)
        # Counters that begin at 0: an increase from nothing to 1 would not be seen.
        for action in ACTIONS.values():
            self._actions.labels(action)
        for where in ERRORS:
            self._errors.labels(where)
        for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED):
            for reason in _reasons(state):
                self._jobs.labels(state, reason)
        for ending in ATTEMPT_TERMINAL:
            for reason in _reasons(ending):
                self._attempts.labels(ending, reason)

    def ticked(self, seconds: float) -> None:
        """A tick has come to its end."""
        self._ticks.observe(seconds)

    def leads(self, leads: bool) -> None:
        """Note whether this controller acts. One that does not knows nothing of jobs and nodes."""
        self._leader.set(leads)
        if not leads:
            for gauge in (self._allocated, self._wanted, self._capacity):
                gauge.clear()

    def acted(self, action: Action) -> None:
        self._actions.labels(ACTIONS[type(action)]).inc()

    def failed(self, where: str) -> None:
        """An error that nobody foresaw: of a whole tick, of the look at a job, or of what was done with a job."""
        self._errors.labels(where).inc()

    def measured(self, launcher: Launcher) -> Launcher:
        """The launcher, with each call of it timed."""
        return cast(Launcher, _Measured(launcher, lambda *told: self._launcher.labels(*told[:2]).observe(told[2])))

    def live(self, records: Iterable[JobRecord]) -> None:
        """Add up what live jobs have and want; what was submitted and waits in Kueue's queue is wanted."""
        allocated, wanted = list[Gang](), list[Gang]()
        for record in records:
            attempt, gang = record.attempt, gang_of(record.job.spec)
            if attempt is not None and attempt.attempt.state not in ATTEMPT_TERMINAL:
                tried = attempt.attempt
                held = tried.state is AttemptState.SUBMITTED and tried.admitted_at is None
                (wanted if held else allocated).append(gang)
            elif record.job.state in WAITING:
                wanted.append(gang)
        for gauge, gangs in ((self._allocated, allocated), (self._wanted, wanted)):
            gauge.labels("cpu").set(sum(_cpus(gang) for gang in gangs))
            gauge.labels("gpu").set(sum(_gpus(gang) for gang in gangs))

    def capacity(self, nodes: Iterable[Node] | None) -> None:
        """Note what there is; None where it is not known any more."""
        self._capacity.clear()
        if nodes is not None:
            nodes = list(nodes)
            self._capacity.labels("cpu").set(sum(node.cpus for node in nodes))
            self._capacity.labels("gpu").set(sum(node.gpus for node in nodes))

    def changed(self, record: JobRecord, change: Change) -> None:
        """Count what a change that was written has ended or begun."""
        state, attempt_state = change.job.get("state"), change.attempt.get("state")
        if state in TERMINAL:
            self._jobs.labels(state, change.job.get("reason") or NO_REASON).inc()
        if attempt_state in ATTEMPT_TERMINAL:
            self._attempts.labels(attempt_state, change.attempt.get("reason") or NO_REASON).inc()
        admitted = change.attempt.get("admitted_at")
        if admitted is not None and record.attempt is not None and record.attempt.attempt.number == 1:
            self._queue.observe(max(0.0, (admitted - record.job.created_at).total_seconds()))
        if (waited := first_step_after(record, change)) is not None:
            self._first_step.observe(waited)


def first_step_after(record: JobRecord, change: Change) -> float | None:
    """Seconds from the first attempt's admission to its first step, if this change brings the news of that."""
    before, after, attempt = record.job.progress, change.job.get("progress"), record.attempt
    if after is None or attempt is None or after.attempt != 1 or after.step == 0:
        return None
    if before is not None and (before.attempt, before.step) != (1, 0):
        return None
    since = change.attempt.get("admitted_at") or attempt.attempt.admitted_at or attempt.attempt.created_at
    seconds: float = (after.at - since).total_seconds()
    return max(0.0, seconds)


def watch_capacity(
    nodes: Callable[[], Iterable[Node] | None],
    metrics: ControllerMetrics,
    leads: Callable[[], bool],
    stop: threading.Event,
) -> None:
    """Ask the launcher for its nodes now and then while this controller leads, in a thread beside the ticks."""

    def watch() -> None:
        while not stop.is_set():
            try:
                metrics.capacity(nodes() if leads() else None)
            except LauncherError:
                metrics.capacity(None)
            except Exception:
                logger.exception("the launcher's nodes can't be told")
                metrics.capacity(None)
            stop.wait(CAPACITY_EVERY_S)

    threading.Thread(target=watch, name="capacity", daemon=True).start()


class _Measured:
    """A launcher whose every method tells its name, how it ended, and seconds."""

    def __init__(self, launcher: Launcher, observe: Callable[[str, str, float], object]) -> None:
        self._launcher = launcher
        self._observe = observe

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._launcher, name)
        if not callable(method):
            return method

        def timed(*args: Any, **kwargs: Any) -> Any:
            began, outcome = time.perf_counter(), "error"
            try:
                answer = method(*args, **kwargs)
                outcome = "ok"
            except LauncherUnavailable:
                outcome = "unavailable"
                raise
            except LaunchRefused:
                outcome = "refused"
                raise
            else:
                return answer
            finally:
                self._observe(name, outcome, time.perf_counter() - began)

        return timed


def _reasons(state: JobState | AttemptState) -> tuple[str, ...]:
    """The reasons that may come with an end."""
    match state:
        case JobState.SUCCEEDED | AttemptState.SUCCEEDED:
            return (NO_REASON,)
        case JobState.CANCELLED:
            return (Reason.CANCELLED_BY_USER,)
        case _:
            return tuple(Reason)


def _cpus(gang: Gang) -> float:
    return gang.workers * gang.cpus_per_worker


def _gpus(gang: Gang) -> float:
    return float(gang.workers * gang.gpus_per_worker)
