"""What to do next with one job: pure decisions over what is recorded and what was observed.

    QUEUED, RECOVERING              no attempt is live: start the next one when its gang fits
    STARTING, RUNNING, CANCELLING   an attempt is live: submit it, follow it, stop it, or settle how it ended

One decision moves a job by one step, so that each step is written down before the next is taken. What an attempt's
result.json says stands above anything that the launcher says. Without a result, an attempt is lost only by proof: the
launcher answers that it has ended or that there is no such thing. A launcher or a storage that does not answer proves
nothing, and neither does silence: an attempt that gives no sign of life is ended by the launcher first.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, assert_never

from resforge.jobs import ATTEMPT_TERMINAL, Attempt, AttemptState, JobState, Reason
from resforge.metrics import Progress
from resforge.storage import Heartbeat, Result
from services.controller.fit import FitAnswer
from services.controller.outcomes import blamed, cleared, condition, ended, lose, name_of, settle
from services.launchers.base import Observation
from services.store.records import AttemptRecord, Change, JobRecord, NewEvent

WAITING = frozenset({JobState.QUEUED, JobState.RECOVERING})
ATTEMPTING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.CANCELLING})


@dataclass(frozen=True)
class Policy:
    """How long to wait, in seconds; the settings of the same names say for what."""

    heartbeat_timeout_s: float
    start_timeout_s: float
    stop_grace_s: float


@dataclass(frozen=True)
class Observed:
    """What was seen of one job in one tick.

    The launcher must be asked before result.json is read: a driver writes its result and then ends, so an attempt that
    had ended when the launcher was asked, and has no result afterwards, never wrote one.

    Attributes:
        launcher: what the launcher knows of the newest attempt; None if it did not answer or was not asked.
        launcher_error: why it did not answer.
        storage_error: why storage did not answer; what would have been read from it is then None.
        result, heartbeat, progress: the newest attempt's documents, None where there is none yet.
        events: what the trainer reported since the record's cursor.
        events_cursor: the cursor behind those events; None if there are none.
        fit: whether the gang fits, for a job that waits; None if the launcher did not answer.
        sources_pending: which jobs have not ended whose checkpoints this one waits for; empty if none.
        sources_broken: what is wrong with a source that will never be what is wanted; empty if nothing.
        watched_since: since when this controller has looked after the attempt without a gap, storage answering each
            time. Silence before that proves nothing: storage may have been away, or the controller.
        looked_at: when the tick began to look; None: just now.
    """

    launcher: Observation | None = None
    launcher_error: str = ""
    storage_error: str = ""
    result: Result | None = None
    heartbeat: Heartbeat | None = None
    progress: Progress | None = None
    events: tuple[NewEvent, ...] = ()
    events_cursor: str | None = None
    fit: FitAnswer | None = None
    sources_pending: str = ""
    sources_broken: str = ""
    watched_since: datetime | None = None
    looked_at: datetime | None = None


@dataclass(frozen=True)
class Apply:
    """Write the change."""

    change: Change


@dataclass(frozen=True)
class Submit:
    """Write the documents that the driver reads, start the attempt, then write the change."""

    change: Change


@dataclass(frozen=True)
class RequestStop:
    """Ask the attempt by control.json to stop at its next step, then write the change."""

    change: Change


@dataclass(frozen=True)
class ForceStop:
    """Have the launcher end the attempt, then write the change."""

    change: Change


Action = Apply | Submit | RequestStop | ForceStop


class Inconsistent(ValueError):
    """The record is one that no decision could have written: {detail}"""


def decide(record: JobRecord, observed: Observed, now: datetime, policy: Policy) -> Action | None:
    """The next step of a job, or None when there is nothing to do or to write.

    Every step is safe to repeat, so a controller that died between an action and its change does no harm.

    Raises:
        Inconsistent: the job's state and its newest attempt's do not belong together.
    """
    state, attempt = record.job.state, record.attempt
    live = attempt is not None and attempt.attempt.state not in ATTEMPT_TERMINAL
    if (state in WAITING and live) or (state in ATTEMPTING and not live):
        newest = "none" if attempt is None else str(attempt.attempt.state)
        raise Inconsistent(f"job {record.job.id} is {state}, and its newest attempt is {newest}")
    if state in WAITING:
        return _merged(_reported(observed), _wait(record, observed, now))
    if state in ATTEMPTING and attempt is not None:
        case = _Case(record, attempt, observed, now, policy)
        return _merged(_seen(case), _follow(case))
    return None


def _wait(record: JobRecord, observed: Observed, now: datetime) -> Action:
    job = record.job
    if job.cancel_requested:
        message = "Cancelled before it started." if job.state is JobState.QUEUED else "Cancelled between two attempts."
        return Apply(Change(job=ended(JobState.CANCELLED, now, Reason.CANCELLED_BY_USER, message)))
    if observed.sources_broken:
        return Apply(Change(job=ended(JobState.FAILED, now, Reason.SOURCE_UNAVAILABLE, observed.sources_broken)))
    for reason, message in (
        (Reason.WAITS_FOR_SOURCE, observed.sources_pending),
        (Reason.STORAGE_UNAVAILABLE, observed.storage_error),
    ):
        if message:
            return Apply(condition(record, reason, message))
    return _by_room(record, observed, now)


def _by_room(record: JobRecord, observed: Observed, now: datetime) -> Action:
    fit = observed.fit
    if fit is None:
        return Apply(condition(record, Reason.LAUNCHER_UNAVAILABLE, observed.launcher_error))
    match fit.verdict:
        case "waits":
            return Apply(condition(record, Reason.NO_CAPACITY, fit.message))
        case "never":
            return Apply(condition(record, Reason.UNSCHEDULABLE, fit.message))
        case "fits":
            return Apply(Change(job={"state": JobState.STARTING}, new_attempt=_next_attempt(record, now)))
        case _:
            assert_never(fit.verdict)


def _next_attempt(record: JobRecord, now: datetime) -> Attempt:
    """The next attempt, which may resume whatever the ones before it left."""
    number = record.job.attempts + 1
    return Attempt(
        job=record.job.id,
        number=number,
        state=AttemptState.PENDING,
        resume_from=tuple(range(1, number)),
        created_at=now,
    )


@dataclass(frozen=True)
class _Case:
    """A job with a live attempt, and all that a rule may look at."""

    record: JobRecord
    attempt: AttemptRecord
    observed: Observed
    now: datetime
    policy: Policy

    @property
    def cancelling(self) -> bool:
        return self.record.job.state is JobState.CANCELLING

    @property
    def runs(self) -> bool:
        """Whether the launcher says that the attempt has not ended."""
        return self.observed.launcher is not None and self.observed.launcher.phase in ("pending", "running")

    def waited(self, since: datetime, limit_s: float) -> bool:
        return self.now - since > timedelta(seconds=limit_s)

    def seen_to_wait(self, since: datetime, limit_s: float) -> bool:
        """As `waited`, by the time at which looking began: what came after that has not been seen."""
        return (self.observed.looked_at or self.now) - since > timedelta(seconds=limit_s)


def _follow(case: _Case) -> Action:
    """The first rule that applies decides."""
    rules = (
        _begin_cancelling,
        _settle_by_result,
        _end_by_force,
        _await_storage,
        _submit,
        _lose_by_proof,
        _note_running,
        _end_preempted,
        _end_silent,
        _end_unstarted,
        _await_launcher,
        _await_start,
    )
    for rule in rules:
        action = rule(case)
        if action is not None:
            return action
    quiet = cleared(case.record)
    # Asked in each tick until it has ended: the first time may have been lost with a storage that was away.
    return RequestStop(quiet) if case.cancelling else Apply(quiet)


def _begin_cancelling(case: _Case) -> Action | None:
    result, attempt = case.observed.result, case.attempt
    if case.cancelling or not case.record.job.cancel_requested:
        return None
    if result is not None and result.outcome == "succeeded":
        return None  # it came first
    message = f"{name_of(case.record)} was asked to stop."
    change = Change(
        job={"state": JobState.CANCELLING, "reason": Reason.CANCELLED_BY_USER, "message": message},
        attempt={
            "stop_requested_at": attempt.stop_requested_at or case.now,
            "stop_reason": Reason.CANCELLED_BY_USER,
            "message": message,
        },
    )
    # Without storage the attempt can't be asked, nor could it read that it was; it will be ended by force.
    return Apply(change) if case.observed.storage_error else RequestStop(change)


def _settle_by_result(case: _Case) -> Action | None:
    result = case.observed.result
    if result is None:
        return None
    return Apply(settle(case.record, case.attempt, blamed(result, case.observed.launcher), case.now))


def _end_by_force(case: _Case) -> Action | None:
    """End an attempt that was asked to stop and runs on. The launcher is asked in each tick until it has ended."""
    attempt = case.attempt
    if attempt.stop_requested_at is None or not case.runs or attempt.attempt.state is AttemptState.PENDING:
        return None
    if attempt.stop_reason is not Reason.CANCELLED_BY_USER:
        return ForceStop(Change())
    if not case.waited(attempt.stop_requested_at, case.policy.stop_grace_s):
        return None
    message = f"{name_of(case.record)} did not stop within {case.policy.stop_grace_s:g} s and is ended by force."
    return ForceStop(condition(case.record, Reason.CANCELLED_BY_USER, message))


def _await_storage(case: _Case) -> Action | None:
    error = case.observed.storage_error
    return Apply(condition(case.record, Reason.STORAGE_UNAVAILABLE, error)) if error else None


def _submit(case: _Case) -> Action | None:
    if case.attempt.attempt.state is not AttemptState.PENDING or case.observed.launcher is None:
        return None
    submitted = replace(cleared(case.record), attempt={"state": AttemptState.SUBMITTED, "submitted_at": case.now})
    if case.observed.launcher.phase != "absent":
        return Apply(submitted)  # by a controller that died before it could write so
    if not case.cancelling:
        return Submit(submitted)
    message = f"{name_of(case.record)} was cancelled before it was submitted."
    return Apply(
        Change(
            job=ended(JobState.CANCELLED, case.now, Reason.CANCELLED_BY_USER, message),
            attempt=ended(AttemptState.STOPPED, case.now, Reason.CANCELLED_BY_USER, message),
        )
    )


def _lose_by_proof(case: _Case) -> Action | None:
    seen = case.observed.launcher
    if seen is None or case.runs:
        return None
    return Apply(lose(case.record, case.attempt, seen, case.now))


def _note_running(case: _Case) -> Action | None:
    job = case.record.job
    if case.attempt.attempt.state is not AttemptState.SUBMITTED or case.observed.progress is None:
        return None
    change = Change(attempt={"state": AttemptState.RUNNING, "running_at": case.now})
    if job.state is JobState.STARTING:
        started = {} if job.started_at else {"started_at": case.now}
        change = replace(change, job={"state": JobState.RUNNING, **started})
    return Apply(change)


def _end_preempted(case: _Case) -> Action | None:
    """End an attempt that ran and was put back into a queue: what runs again is to be an attempt of its own."""
    seen = case.observed.launcher
    if seen is None or not seen.queued or case.attempt.beat is None or case.cancelling:
        return None
    return _stop_for(case, Reason.PREEMPTED, seen.message)


def _end_silent(case: _Case) -> Action | None:
    """End an attempt whose driver gives no sign of life. Only when it has ended can it be called lost."""
    attempt, observed, tried = case.attempt, case.observed, case.attempt.attempt
    if case.cancelling or not case.runs or observed.watched_since is None:
        return None
    if observed.heartbeat is not None and observed.heartbeat.beat != attempt.beat:
        return None
    if attempt.beat is None and tried.state is not AttemptState.RUNNING:
        return None  # its driver may not have begun yet
    last = attempt.beat_seen_at or tried.running_at or tried.created_at
    if not case.seen_to_wait(max(last, observed.watched_since), case.policy.heartbeat_timeout_s):
        return None
    message = f"It gave no sign of life for {case.policy.heartbeat_timeout_s:g} s, so the launcher was told to end it."
    return _stop_for(case, Reason.HEARTBEAT_EXPIRED, message)


def _end_unstarted(case: _Case) -> Action | None:
    """End an attempt whose workers never began."""
    observed, tried = case.observed, case.attempt.attempt
    if case.cancelling or not case.runs or observed.watched_since is None:
        return None
    launcher = observed.launcher
    if tried.state is AttemptState.RUNNING or launcher is None or launcher.queued:
        return None
    since = max(tried.submitted_at or tried.created_at, observed.watched_since, launcher.since or tried.created_at)
    if not case.seen_to_wait(since, case.policy.start_timeout_s):
        return None
    driver = "its driver never began" if case.attempt.beat is None else "its driver lives, but its workers never began"
    message = (
        f"It did not start within {case.policy.start_timeout_s:g} s, so the launcher was told to end it: {driver}."
    )
    if launcher.reason is not None:
        message += f" {launcher.message}"
    return _stop_for(case, launcher.reason or Reason.UNSCHEDULABLE, message)


def _stop_for(case: _Case, reason: Reason, message: str) -> Action:
    stopping = {"stop_requested_at": case.now, "stop_reason": reason, "message": message}
    return ForceStop(replace(condition(case.record, reason, f"{name_of(case.record)}: {message}"), attempt=stopping))


def _await_launcher(case: _Case) -> Action | None:
    if case.observed.launcher is not None:
        return None
    return Apply(condition(case.record, Reason.LAUNCHER_UNAVAILABLE, case.observed.launcher_error))


def _await_start(case: _Case) -> Action | None:
    """Tell what keeps a submitted attempt pending, in the launcher's own words."""
    seen = case.observed.launcher
    if seen is None or seen.phase != "pending" or seen.reason is None or case.attempt.stop_reason is not None:
        return None
    return Apply(condition(case.record, seen.reason, seen.message))


def _reported(observed: Observed) -> Change:
    """The trainer's events, and how far they were read."""
    cursor = {} if observed.events_cursor is None else {"events_cursor": observed.events_cursor}
    return Change(job=cursor, events=observed.events)


def _seen(case: _Case) -> Change:
    """What the attempt says of itself, where it is news."""
    attempt, heartbeat, progress = case.attempt, case.observed.heartbeat, case.observed.progress
    reported = _reported(case.observed)
    job, values = dict(reported.job), dict[str, Any]()
    if progress is not None and progress != case.record.job.progress:
        job["progress"] = progress
    if heartbeat is not None and heartbeat.beat != attempt.beat:
        values |= {"beat": heartbeat.beat, "beat_seen_at": case.now}
    seen = case.observed.launcher
    if attempt.attempt.admitted_at is None and seen is not None and seen.phase != "absent" and not seen.queued:
        values["admitted_at"] = case.now
    if attempt.attempt.admitted_at is not None and seen is not None and seen.queued and attempt.beat is None:
        values["admitted_at"] = None  # back in the queue before it began
    restarts = max(item.restarts if item is not None else 0 for item in (heartbeat, progress))
    if restarts > attempt.attempt.restarts:
        values["restarts"] = restarts
    return replace(reported, job=job, attempt=values)


def _merged(first: Change, action: Action | None) -> Action | None:
    """The action with `first` written beside its own change; None if nothing is left to do."""
    if action is None:
        return None if first == Change() else Apply(first)
    own = action.change
    change = replace(
        own,
        job={**first.job, **own.job},
        attempt={**first.attempt, **own.attempt},
        events=first.events + own.events,
    )
    return None if isinstance(action, Apply) and change == Change() else replace(action, change=change)
