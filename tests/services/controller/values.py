"""Records and observations to decide on, and what a change makes of a record, without a database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from resforge import recipes
from resforge.jobs import (
    ATTEMPT_TRANSITIONS,
    JOB_TRANSITIONS,
    Attempt,
    AttemptState,
    DatasetInfo,
    Job,
    JobState,
    Reason,
)
from resforge.metrics import EvalPoint, Progress
from resforge.spec import RetrySpec, TrainSpec
from resforge.storage import Heartbeat, Result
from services.controller.decide import Policy
from services.store.records import AttemptRecord, Change, JobRecord

T0 = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(heartbeat_timeout_s=60, start_timeout_s=600, stop_grace_s=30)
DIGITS = DatasetInfo(name="digits", format="digits", channels=1, classes=10, image_size=8)
SPEC = recipes.get("digits/resnet-20").spec
EVALUATION = EvalPoint(at=T0, attempt=1, step=10, epoch=0, loss=0.1, top1=0.97, top5=1.0, images=360)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def spec(*, errors: int = 0, infrastructure: int = 8) -> TrainSpec:
    return SPEC.model_copy(update={"retry": RetrySpec(errors=errors, infrastructure=infrastructure)})


def record(
    state: JobState,
    attempt: AttemptState | None = None,
    *,
    number: int = 1,
    cancel: bool = False,
    reason: Reason | None = None,
    message: str = "",
    spec: TrainSpec = SPEC,
    held: bool = False,
    errors: int = 0,
    lost: int = 0,
    **remembered: Any,
) -> JobRecord:
    """A job in this state, whose newest attempt was submitted at T0, and is in no queue of the cluster's unless `held`.

    `remembered` are columns of AttemptRecord.
    """
    job = Job(
        id="job1", project="demo", state=state, reason=reason, message=message, spec=spec, cancel_requested=cancel,
        attempts=0 if attempt is None else number, created_at=T0, updated_at=T0,
    )  # fmt: skip
    if attempt is None:
        return JobRecord(job, 1, DIGITS, None, errors, lost)
    tried = Attempt(
        job="job1", number=number, state=attempt, created_at=T0, resume_from=tuple(range(1, number)),
        submitted_at=None if attempt is AttemptState.PENDING else T0,
        admitted_at=None if held or attempt is AttemptState.PENDING else T0,
        running_at=T0 if attempt is AttemptState.RUNNING else None,
    )  # fmt: skip
    return JobRecord(job, 1, DIGITS, AttemptRecord(tried, **remembered), errors, lost)


def progress(step: int = 1, attempt: int = 1) -> Progress:
    return Progress(at=T0, attempt=attempt, step=step, total_steps=100, epoch=0, total_epochs=1)


def heartbeat(beat: int = 1, restarts: int = 0) -> Heartbeat:
    return Heartbeat(at=T0, beat=beat, every_s=1, restarts=restarts)


def succeeded() -> Result:
    return Result(at=T0, outcome="succeeded", step=100, evaluation=EVALUATION)


def failed(reason: Reason | None, message: str = "it broke") -> Result:
    return Result(at=T0, outcome="failed", reason=reason, message=message, step=5)


def stopped() -> Result:
    return Result(at=T0, outcome="stopped", step=7)


def evolve(before: JobRecord, change: Change) -> JobRecord:
    """What the store makes of a change. It refuses what the state machines do not have."""
    assert set(change.attempt).isdisjoint({"number", "job"})
    job_state = change.job.get("state", before.job.state)
    assert job_state is before.job.state or job_state in JOB_TRANSITIONS[before.job.state], (
        before.job.state,
        job_state,
    )
    counters = {key: value for key, value in change.job.items() if key not in Job.model_fields}
    fields = _values(change.job, before.job.state, Job.model_fields)
    attempt = before.attempt
    if change.attempt:
        assert attempt is not None
        old, new = attempt.attempt.state, change.attempt.get("state", attempt.attempt.state)
        assert new is old or new in ATTEMPT_TRANSITIONS[old], (old, new)
        remembered = {key: value for key, value in change.attempt.items() if key not in Attempt.model_fields}
        values = _values(change.attempt, old, Attempt.model_fields)
        attempt = replace(attempt, attempt=attempt.attempt.model_copy(update=values), **remembered)
    if change.new_attempt is not None:
        attempt = AttemptRecord(change.new_attempt)
        fields["attempts"] = change.new_attempt.number
    return replace(
        before, job=before.job.model_copy(update=fields), version=before.version + 1, attempt=attempt, **counters
    )


def _values(change: dict[str, Any], before: object, known: Any) -> dict[str, Any]:
    values = {key: value for key, value in change.items() if key in known}
    moved = values.get("state", before) is not before
    return {"reason": None, "message": "", **values} if moved else values
