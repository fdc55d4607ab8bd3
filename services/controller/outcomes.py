"""How an attempt's end moves its job, and the pieces that changes are made of. Pure, like `decide`, which uses it."""

from datetime import datetime
from typing import Any, assert_never

from resforge.jobs import PERMANENT, USER_ERRORS, AttemptState, DatasetInfo, JobState, Reason
from resforge.storage import Result
from services.launchers.base import Observation
from services.store.records import AttemptRecord, Change, JobRecord, NewEvent

CONDITION = "JobConditionChanged"  # the event's type when a job's reason changes and its state does not

# Reasons that describe the world around a job and go away by themselves.
_PASSING = frozenset(
    {Reason.LAUNCHER_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, Reason.NO_CAPACITY, Reason.UNSCHEDULABLE}
    | {Reason.WAITS_FOR_SOURCE, Reason.IMAGE_PULL_FAILED}
)


def settle(record: JobRecord, attempt: AttemptRecord, result: Result, now: datetime) -> Change:
    """End the attempt as its result says, and the job with it or not."""
    cancelling = record.job.state is JobState.CANCELLING
    match result.outcome:
        case "succeeded":
            started = {} if record.job.started_at else {"started_at": now}
            return Change(
                job={**ended(JobState.SUCCEEDED, now), "result": result.evaluation, **started},
                attempt=ended(AttemptState.SUCCEEDED, now),
                dataset=_ingested(record, result),
            )
        case "failed":
            reason = result.reason or Reason.TRAINING_ERROR
            message = result.message or "The training failed and gave no cause."
            failed = ended(AttemptState.FAILED, now, reason, message)
            return _cancelled(record, failed, now) if cancelling else _again(record, failed, now)
        case "stopped" if cancelling:
            message = f"Stopped at step {result.step}."
            return _cancelled(record, ended(AttemptState.STOPPED, now, Reason.CANCELLED_BY_USER, message), now)
        case "stopped" if attempt.stop_reason is not None:
            return _again(record, ended(AttemptState.LOST, now, attempt.stop_reason, attempt.attempt.message), now)
        case "stopped":
            reason = result.reason or Reason.PREEMPTED
            message = result.message or f"Stopped at step {result.step} by somebody else than this service."
            return _again(record, ended(AttemptState.STOPPED, now, reason, message), now)
        case _:
            assert_never(result.outcome)


def blamed(result: Result, seen: Observation | None) -> Result:
    """The result, with the launcher's reason where the driver saw its workers die and could not tell why."""
    unknown = result.outcome == "failed" and result.reason in (None, Reason.TRAINING_ERROR)
    if not unknown or seen is None or seen.reason is None or seen.phase == "pending":
        return result
    return result.model_copy(update={"reason": seen.reason, "message": f"{seen.message} {result.message}".strip()})


def lose(record: JobRecord, attempt: AttemptRecord, seen: Observation, now: datetime) -> Change:
    """End an attempt that has no result and that the launcher says is no more."""
    if seen.phase == "absent":
        reason = Reason.HEAD_LOST
        message = "The launcher does not know the attempt any more: its cluster was restarted or replaced."
    elif seen.reason is not None:
        reason, message = seen.reason, f"It ended without a result. {seen.message}"
    else:
        reason = Reason.DRIVER_LOST
        message = f"The driver ended without a result; the launcher calls it {seen.phase}"
        message += f": {seen.message}" if seen.message else "."
    if record.job.state is JobState.CANCELLING:
        return _cancelled(record, ended(AttemptState.STOPPED, now, Reason.CANCELLED_BY_USER, message), now)
    if attempt.stop_reason is not None:
        silent = attempt.stop_reason is Reason.HEARTBEAT_EXPIRED
        if silent and seen.reason is not None:  # why it was silent
            reason, message = seen.reason, f"{seen.message} {attempt.attempt.message}"
        else:
            reason, message = attempt.stop_reason, attempt.attempt.message
    return _again(record, ended(AttemptState.LOST, now, reason, message), now)


def refused(record: JobRecord, message: str, now: datetime) -> Change:
    """What to write when the launcher will never start the attempt."""
    return Change(
        job=ended(JobState.FAILED, now, Reason.UNSCHEDULABLE, f"{name_of(record)}: {message}"),
        attempt=ended(AttemptState.FAILED, now, Reason.UNSCHEDULABLE, message),
    )


def condition(record: JobRecord, reason: Reason | None, message: str) -> Change:
    """Set the job's reason and message where they differ. A new reason is an event; new words for it are not."""
    if (record.job.reason, record.job.message) == (reason, message):
        return Change()
    told = () if record.job.reason is reason else (NewEvent(CONDITION, reason=reason, message=message),)
    return Change(job={"reason": reason, "message": message}, events=told)


def cleared(record: JobRecord) -> Change:
    """Take a passing reason away, now that what it tells of is over."""
    attempt = record.attempt
    stopping = None if attempt is None else attempt.stop_reason
    if record.job.reason not in _PASSING or record.job.reason is stopping:
        return Change()
    return condition(record, stopping, attempt.attempt.message if attempt is not None else "")


def ended(
    state: JobState | AttemptState, now: datetime, reason: Reason | None = None, message: str = ""
) -> dict[str, Any]:
    """The columns of something that has come to an end."""
    return {"state": state, "reason": reason, "message": message, "finished_at": now}


def name_of(record: JobRecord) -> str:
    """What messages call the newest attempt."""
    return f"Attempt {record.job.attempts}"


def _ingested(record: JobRecord, result: Result) -> DatasetInfo | None:
    """The data set that an ingest has made, under the name that its spec gives."""
    job = record.job
    if result.dataset is None or job.spec.kind != "ingest":
        return None
    return result.dataset.model_copy(update={"name": job.spec.dataset, "project": job.project, "job": job.id})


def _cancelled(record: JobRecord, attempt: dict[str, Any], now: datetime) -> Change:
    """End a job whose cancellation was asked for, with its attempt."""
    failed = attempt["state"] is AttemptState.FAILED
    told = f"{name_of(record)} failed before it could stop: {attempt['message']}" if failed else attempt["message"]
    return Change(job=ended(JobState.CANCELLED, now, Reason.CANCELLED_BY_USER, told), attempt=attempt)


def _again(record: JobRecord, attempt: dict[str, Any], now: datetime) -> Change:
    """Try again after an attempt that did not succeed, unless that is no use or the budget is spent."""
    reason: Reason = attempt["reason"]
    retry = record.job.spec.retry
    if reason in USER_ERRORS:
        column, budget, setting = "error_failures", retry.errors, "retry.errors"
        failures = record.error_failures + 1
    else:
        column, budget, setting = "infrastructure_failures", retry.infrastructure, "retry.infrastructure"
        failures = record.infrastructure_failures + 1
    told = f"{name_of(record)}: {attempt['message']}"
    if reason in PERMANENT or failures > budget:
        if reason not in PERMANENT and budget:
            told += f" No attempt is left: {setting} is {budget}."
        job = ended(JobState.FAILED, now, reason, told)
    else:
        job = {"state": JobState.RECOVERING, "reason": reason, "message": told}
    return Change(job={**job, column: failures}, attempt=attempt)
