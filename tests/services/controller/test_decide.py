"""Every pair of states with every kind of observation, then what the messages and counters say."""

from dataclasses import replace
from itertools import product

import pytest

from resforge.jobs import ATTEMPT_TERMINAL, TERMINAL, AttemptState, JobState, Reason
from resforge.storage import Result
from services.controller.decide import (
    ATTEMPTING,
    WAITING,
    Action,
    Apply,
    ForceStop,
    Inconsistent,
    Observed,
    RequestStop,
    Submit,
    decide,
)
from services.controller.fit import FitAnswer
from services.controller.outcomes import condition, refused
from services.launchers.base import Observation
from services.store.records import JobRecord, NewEvent
from tests.services.controller.values import (
    EVALUATION,
    POLICY,
    T0,
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

J, A = JobState, AttemptState
RUNNING = Observation("running")
NOW = after(5)

OBSERVATIONS = {
    "absent": Observed(Observation("absent")),
    "pending": Observed(Observation("pending")),
    "running": Observed(RUNNING),
    "ended": Observed(Observation("failed", "exit code 137")),
    "stepping": Observed(RUNNING, heartbeat=heartbeat(), progress=progress()),
    "succeeded": Observed(RUNNING, progress=progress(), result=succeeded()),
    "ended well": Observed(Observation("failed", "crashed at exit"), result=succeeded()),
    "failed": Observed(RUNNING, result=failed(Reason.TRAINING_ERROR)),
    "diverged": Observed(RUNNING, result=failed(Reason.NON_FINITE_LOSS)),
    "node lost": Observed(RUNNING, result=failed(Reason.NODE_LOST)),
    "stopped": Observed(RUNNING, result=stopped()),
    "no launcher": Observed(launcher_error="Ray is away"),
    "no storage": Observed(RUNNING, storage_error="S3 is away"),
    "ended, no storage": Observed(Observation("succeeded"), storage_error="S3 is away"),
    "neither": Observed(launcher_error="Ray is away", storage_error="S3 is away"),
}

# What happens to a live attempt, by job and attempt; with "+c" a cancellation is asked for. An error budget of one.
#   .        nothing             submit   start it          noted    it was submitted before
#   runs     job and attempt     again    another attempt   ask      control.json says stop
#   ask!     stop without it     L?  S?   the job's reason says that the launcher or storage is away
TABLE = """
                    STARTING  STARTING+c STARTING  STARTING+c RUNNING   RUNNING+c CANCELLING CANCELLING CANCELLING
                    PENDING   PENDING    SUBMITTED SUBMITTED  RUNNING   RUNNING   PENDING    SUBMITTED  RUNNING
absent              submit    ask        again     ask        again     ask       CANCELLED  CANCELLED  CANCELLED
pending             noted     ask        .         ask        .         ask       noted      ask        ask
running             noted     ask        .         ask        .         ask       noted      ask        ask
ended               noted     ask        again     ask        again     ask       noted      CANCELLED  CANCELLED
stepping            noted     ask        runs      ask        .         ask       noted      runs       ask
succeeded           SUCCEEDED SUCCEEDED  SUCCEEDED SUCCEEDED  SUCCEEDED SUCCEEDED SUCCEEDED  SUCCEEDED  SUCCEEDED
ended well          SUCCEEDED SUCCEEDED  SUCCEEDED SUCCEEDED  SUCCEEDED SUCCEEDED SUCCEEDED  SUCCEEDED  SUCCEEDED
failed              again     ask        again     ask        again     ask       CANCELLED  CANCELLED  CANCELLED
diverged            FAILED    ask        FAILED    ask        FAILED    ask       CANCELLED  CANCELLED  CANCELLED
node lost           again     ask        again     ask        again     ask       CANCELLED  CANCELLED  CANCELLED
stopped             again     ask        again     ask        again     ask       CANCELLED  CANCELLED  CANCELLED
no launcher         L?        ask        L?        ask        L?        ask       L?         L?         L?
no storage          S?        ask!       S?        ask!       S?        ask!      S?         S?         S?
ended, no storage   S?        ask!       S?        ask!       S?        ask!      S?         S?         S?
neither             S?        ask!       S?        ask!       S?        ask!      S?         S?         S?
"""

# The attempt's own end, where the job's outcome does not tell it.
ATTEMPT_ENDS = {
    "absent": (A.LOST, Reason.HEAD_LOST),
    "ended": (A.LOST, Reason.DRIVER_LOST),
    "failed": (A.FAILED, Reason.TRAINING_ERROR),
    "diverged": (A.FAILED, Reason.NON_FINITE_LOSS),
    "node lost": (A.FAILED, Reason.NODE_LOST),
    "stopped": (A.STOPPED, Reason.PREEMPTED),
}


def rows() -> list[tuple[str, str, str, str]]:
    jobs, attempts, *lines = TABLE.strip("\n").splitlines()
    columns = list(zip(jobs.split(), attempts.split(), strict=True))
    found = []
    for line in lines:
        observation, cells = line[:20].strip(), line[20:].split()
        found += [(job, attempt, observation, cell) for (job, attempt), cell in zip(columns, cells, strict=True)]
    return found


def outcome(before: JobRecord, action: Action | None) -> str:
    """The cell of the table that an action belongs to."""
    if action is None:
        return "."
    job, attempt = action.change.job, action.change.attempt
    match action:
        case Submit():
            return "submit" if attempt["state"] is A.SUBMITTED else "?"
        case RequestStop():
            return "ask" if job.get("state", before.job.state) is J.CANCELLING else "?"
        case ForceStop():
            return "kill"
    state = job.get("state", before.job.state)
    if state in TERMINAL:
        return str(state)
    if state is J.RECOVERING:
        return "again"
    if state is J.CANCELLING and before.job.state is not J.CANCELLING:
        return "ask!"
    if "state" in attempt:
        return {A.SUBMITTED: "noted", A.RUNNING: "runs"}[attempt["state"]]
    return {Reason.LAUNCHER_UNAVAILABLE: "L?", Reason.STORAGE_UNAVAILABLE: "S?", None: "."}[job.get("reason")]


@pytest.mark.parametrize(("job", "attempt", "observation", "expected"), rows())
def test_a_live_attempt(job: str, attempt: str, observation: str, expected: str) -> None:
    state = J(job.removesuffix("+c"))
    cancel = job.endswith("+c") or state is J.CANCELLING
    asked = {"stop_requested_at": T0, "stop_reason": Reason.CANCELLED_BY_USER} if state is J.CANCELLING else {}
    before = record(state, A(attempt), cancel=cancel, spec=spec(errors=1), **asked)
    action = decide(before, OBSERVATIONS[observation], NOW, POLICY)
    assert outcome(before, action) == expected
    if action is None:
        return
    changed = evolve(before, action.change)
    assert changed.attempt is not None
    match expected:
        case "again" | "FAILED":
            ends, reason = ATTEMPT_ENDS[observation]
            assert (changed.attempt.attempt.state, changed.attempt.attempt.reason) == (ends, reason)
            assert changed.job.reason is reason
            counted = (changed.error_failures, changed.infrastructure_failures)
            assert counted == ((1, 0) if observation in ("failed", "diverged") else (0, 1))
        case "SUCCEEDED":
            assert changed.attempt.attempt.state is A.SUCCEEDED
            assert changed.job.result == EVALUATION
            assert changed.job.started_at is not None
        case "CANCELLED":
            ends = A.FAILED if observation in ("failed", "diverged", "node lost") else A.STOPPED
            assert changed.attempt.attempt.state is ends
            assert changed.job.reason is Reason.CANCELLED_BY_USER
        case "runs":
            assert changed.job.state is (J.CANCELLING if cancel else J.RUNNING)
    if changed.job.state in TERMINAL:
        assert changed.job.finished_at == NOW
    if changed.attempt.attempt.state in ATTEMPT_TERMINAL:
        assert changed.attempt.attempt.finished_at == NOW


def test_the_table_has_every_pair_of_a_job_with_a_live_attempt() -> None:
    seen = {(job.removesuffix("+c"), attempt) for job, attempt, _, _ in rows()}
    live = {(J.STARTING, A.PENDING), (J.STARTING, A.SUBMITTED), (J.RUNNING, A.RUNNING)}
    assert seen == live | {(J.CANCELLING, attempt) for attempt in A if attempt not in ATTEMPT_TERMINAL}


@pytest.mark.parametrize(("job", "attempt"), list(product(J, [None, *A])))
def test_states_that_do_not_belong_together_are_told_loudly(job: JobState, attempt: AttemptState | None) -> None:
    before = record(job, attempt, cancel=True)
    live = attempt is not None and attempt not in ATTEMPT_TERMINAL
    broken = (job in WAITING and live) or (job in ATTEMPTING and not live)
    for observed in OBSERVATIONS.values():
        if broken:
            with pytest.raises(Inconsistent, match=f"job job1 is {job}"):
                decide(before, observed, NOW, POLICY)
        else:
            action = decide(before, observed, NOW, POLICY)
            if job in TERMINAL or job in (J.PAUSED, J.PAUSING):
                assert action is None


FITS = Observed(fit=FitAnswer("fits"))


@pytest.mark.parametrize("state", sorted(WAITING))
@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (Observed(fit=FitAnswer("waits", "no room")), Reason.NO_CAPACITY),
        (Observed(fit=FitAnswer("never", "too big")), Reason.UNSCHEDULABLE),
        (Observed(launcher_error="Ray is away"), Reason.LAUNCHER_UNAVAILABLE),
        (replace(FITS, storage_error="S3 is away"), Reason.STORAGE_UNAVAILABLE),
    ],
)
def test_a_job_that_waits_says_why_and_says_it_once(state: JobState, observed: Observed, reason: Reason) -> None:
    before = record(state, None if state is J.QUEUED else A.LOST, reason=Reason.DRIVER_LOST)
    action = decide(before, observed, NOW, POLICY)
    assert isinstance(action, Apply)
    changed = evolve(before, action.change)
    assert (changed.job.state, changed.job.reason) == (state, reason)
    assert changed.job.message in ("no room", "too big", "Ray is away", "S3 is away")
    assert [event.reason for event in action.change.events] == [reason]
    assert decide(changed, observed, NOW, POLICY) is None
    # New words for the same reason are written, but are no event.
    again = decide(evolve(changed, condition(changed, reason, "was")), observed, NOW, POLICY)
    assert again is not None
    assert again.change.events == ()


def test_the_first_attempt_starts_when_the_gang_fits() -> None:
    before = record(J.QUEUED, reason=Reason.NO_CAPACITY, message="no room")
    action = decide(before, FITS, NOW, POLICY)
    assert isinstance(action, Apply)
    changed = evolve(before, action.change)
    assert changed.attempt is not None
    assert (changed.job.state, changed.job.reason, changed.job.message) == (J.STARTING, None, "")
    tried = changed.attempt.attempt
    assert (tried.number, tried.state, tried.resume_from) == (1, A.PENDING, ())


def test_a_later_attempt_may_resume_all_before_it() -> None:
    before = record(J.RECOVERING, A.LOST, number=3)
    action = decide(before, FITS, NOW, POLICY)
    assert action is not None
    assert action.change.new_attempt is not None
    assert (action.change.new_attempt.number, action.change.new_attempt.resume_from) == (4, (1, 2, 3))


@pytest.mark.parametrize("state", sorted(WAITING))
@pytest.mark.parametrize("observed", [FITS, Observed(launcher_error="x", storage_error="y")])
def test_what_waits_is_cancelled_at_once(state: JobState, observed: Observed) -> None:
    before = record(state, None if state is J.QUEUED else A.LOST, cancel=True)
    action = decide(before, observed, NOW, POLICY)
    assert isinstance(action, Apply)
    changed = evolve(before, action.change)
    assert (changed.job.state, changed.job.reason) == (J.CANCELLED, Reason.CANCELLED_BY_USER)
    assert changed.attempt == before.attempt


def test_silence_is_ended_by_the_launcher_and_lost_only_when_it_has_ended() -> None:
    before = record(J.RUNNING, A.RUNNING, beat=9, beat_seen_at=after(0))
    seen = Observed(RUNNING, heartbeat=heartbeat(9), watched_since=T0)
    assert decide(before, seen, after(60), POLICY) is None
    action = decide(before, seen, after(61), POLICY)
    assert isinstance(action, ForceStop)
    stopping = evolve(before, action.change)
    assert (stopping.job.state, stopping.job.reason) == (J.RUNNING, Reason.HEARTBEAT_EXPIRED)
    assert "60 s" in stopping.job.message
    # It runs on: it is asked again, and nothing is written.
    assert decide(stopping, seen, after(62), POLICY) == ForceStop(type(action.change)())
    # The launcher is away: nothing is known, and the reason comes back afterwards.
    away = decide(stopping, Observed(launcher_error="Ray is away"), after(63), POLICY)
    assert away is not None
    unknown = evolve(stopping, away.change)
    assert unknown.job.reason is Reason.LAUNCHER_UNAVAILABLE
    ended = decide(unknown, replace(seen, launcher=Observation("stopped")), after(64), POLICY)
    assert ended is not None
    lost = evolve(unknown, ended.change)
    assert lost.attempt is not None
    assert (lost.job.state, lost.attempt.attempt.state) == (J.RECOVERING, A.LOST)
    assert lost.job.reason is lost.attempt.attempt.reason is Reason.HEARTBEAT_EXPIRED
    assert "60 s" in lost.job.message
    assert lost.infrastructure_failures == 1


def test_a_result_that_comes_with_the_forced_end_still_decides() -> None:
    stopping = record(
        J.RUNNING, A.RUNNING, beat=9, beat_seen_at=T0, stop_requested_at=T0, stop_reason=Reason.HEARTBEAT_EXPIRED
    )
    won = decide(stopping, Observed(Observation("stopped"), result=succeeded()), NOW, POLICY)
    assert won is not None
    assert evolve(stopping, won.change).job.state is J.SUCCEEDED
    gave_in = decide(stopping, Observed(Observation("stopped"), result=stopped()), NOW, POLICY)
    assert gave_in is not None
    changed = evolve(stopping, gave_in.change)
    assert changed.attempt is not None
    assert (changed.attempt.attempt.state, changed.job.reason) == (A.LOST, Reason.HEARTBEAT_EXPIRED)


@pytest.mark.parametrize(
    "observed",
    [
        Observed(RUNNING, heartbeat=heartbeat(10), watched_since=T0),  # it moved
        Observed(RUNNING, heartbeat=heartbeat(9), watched_since=after(950)),  # nobody looked until now
        Observed(RUNNING, heartbeat=heartbeat(9), watched_since=None),
        Observed(None, "Ray is away", heartbeat=heartbeat(9), watched_since=T0),  # nobody could end it
        Observed(RUNNING, storage_error="S3 is away", watched_since=T0),
    ],
)
def test_silence_that_proves_nothing(observed: Observed) -> None:
    before = record(J.RUNNING, A.RUNNING, beat=9, beat_seen_at=T0)
    action = decide(before, observed, after(1000), POLICY)
    assert action is None or isinstance(action, Apply)
    if action is not None:
        assert "state" not in action.change.job
        assert "stop_reason" not in action.change.attempt


@pytest.mark.parametrize(("beat", "words"), [(None, "its driver never began"), (3, "its workers never began")])
def test_an_attempt_that_never_starts_is_ended(beat: int | None, words: str) -> None:
    before = record(J.STARTING, A.SUBMITTED, beat=beat, beat_seen_at=after(600) if beat else None)
    seen = Observed(Observation("pending"), heartbeat=heartbeat(beat) if beat else None, watched_since=T0)
    assert decide(before, seen, after(600), POLICY) is None
    assert decide(before, replace(seen, watched_since=after(1)), after(601), POLICY) is None
    action = decide(before, seen, after(601), POLICY)
    assert isinstance(action, ForceStop)
    stopping = evolve(before, action.change)
    assert stopping.job.reason is Reason.UNSCHEDULABLE
    assert words in stopping.job.message
    assert isinstance(decide(stopping, seen, after(602), POLICY), ForceStop)
    ended = decide(stopping, replace(seen, launcher=Observation("absent")), after(603), POLICY)
    assert ended is not None
    lost = evolve(stopping, ended.change)
    assert lost.attempt is not None
    assert (lost.job.state, lost.attempt.attempt.reason) == (J.RECOVERING, Reason.UNSCHEDULABLE)
    assert words in lost.attempt.attempt.message


def test_a_cancelled_attempt_is_ended_by_force_after_its_grace() -> None:
    asked = {"stop_requested_at": T0, "stop_reason": Reason.CANCELLED_BY_USER}
    before = record(J.CANCELLING, A.RUNNING, cancel=True, reason=Reason.CANCELLED_BY_USER, **asked)
    for seen in (Observed(RUNNING), Observed(RUNNING, storage_error="S3 is away")):
        assert not isinstance(decide(before, seen, after(30), POLICY), ForceStop)
        action = decide(before, seen, after(31), POLICY)
        assert isinstance(action, ForceStop)
        forced = evolve(before, action.change)
        assert "30 s" in forced.job.message
        assert decide(forced, seen, after(32), POLICY) == ForceStop(type(action.change)())


def test_cancelling_what_is_being_ended_for_silence() -> None:
    before = record(
        J.RUNNING, A.RUNNING, cancel=True, stop_requested_at=T0, stop_reason=Reason.HEARTBEAT_EXPIRED, beat=1
    )
    action = decide(before, Observed(RUNNING), after(40), POLICY)
    assert isinstance(action, RequestStop)
    changed = evolve(before, action.change)
    assert changed.attempt is not None
    assert changed.attempt.stop_requested_at == T0
    assert isinstance(decide(changed, Observed(RUNNING), after(41), POLICY), ForceStop)


@pytest.mark.parametrize("kind", ["errors", "infrastructure"])
def test_a_budget_that_is_spent_ends_the_job(kind: str) -> None:
    result = failed(Reason.TRAINING_ERROR if kind == "errors" else Reason.NODE_LOST, "it broke.")
    limits = spec(errors=2 if kind == "errors" else 0, infrastructure=2 if kind == "infrastructure" else 0)
    for spent, state in ((1, J.RECOVERING), (2, J.FAILED)):
        counted = {"errors": spent} if kind == "errors" else {"lost": spent}
        before = record(J.RUNNING, A.RUNNING, spec=limits, number=3, **counted)
        action = decide(before, Observed(RUNNING, result=result), NOW, POLICY)
        assert action is not None
        changed = evolve(before, action.change)
        assert changed.job.state is state
        assert changed.job.message.startswith("Attempt 3: it broke.")
        assert (f"retry.{kind} is 2" in changed.job.message) == (state is J.FAILED)


def test_a_failure_without_a_cause_is_a_training_error() -> None:
    before = record(J.RUNNING, A.RUNNING)
    action = decide(before, Observed(RUNNING, result=failed(None, "")), NOW, POLICY)
    assert action is not None
    changed = evolve(before, action.change)
    assert (changed.job.state, changed.job.reason) == (J.FAILED, Reason.TRAINING_ERROR)
    assert changed.job.message


def test_what_the_launcher_says_of_a_lost_driver_is_told() -> None:
    before = record(J.RUNNING, A.RUNNING)
    action = decide(before, OBSERVATIONS["ended"], NOW, POLICY)
    assert action is not None
    assert "exit code 137" in evolve(before, action.change).job.message


def test_a_passing_reason_goes_away_when_it_is_over() -> None:
    for reason in (Reason.LAUNCHER_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE):
        before = record(J.RUNNING, A.RUNNING, reason=reason, message="it is away")
        action = decide(before, Observed(RUNNING), NOW, POLICY)
        assert action is not None
        changed = evolve(before, action.change)
        assert (changed.job.reason, changed.job.message) == (None, "")
        assert len(action.change.events) == 1
        assert decide(changed, Observed(RUNNING), NOW, POLICY) is None


def test_what_the_trainer_reports_is_written_with_whatever_else_happens() -> None:
    told = (NewEvent("CheckpointSaved", attempt=1, source="1.1.1"),)
    seen = Observed(RUNNING, heartbeat=heartbeat(4, 1), progress=progress(8), events=told, events_cursor="1.1.1")
    before = record(J.RUNNING, A.RUNNING, beat=3, beat_seen_at=T0)
    action = decide(before, seen, NOW, POLICY)
    assert isinstance(action, Apply)
    assert action.change.job == {"progress": progress(8), "events_cursor": "1.1.1"}
    assert action.change.attempt == {"beat": 4, "beat_seen_at": NOW, "restarts": 1}
    assert action.change.events == told
    ending = decide(before, replace(seen, result=succeeded()), NOW, POLICY)
    assert ending is not None
    assert ending.change.job["progress"] == progress(8)
    assert ending.change.job["state"] is J.SUCCEEDED
    assert ending.change.events == told
    changed = evolve(before, action.change)
    assert decide(changed, replace(seen, events=(), events_cursor=None), after(6), POLICY) is None


def test_a_refused_attempt_fails_the_job_with_the_launchers_words() -> None:
    before = record(J.STARTING, A.PENDING)
    changed = evolve(before, refused(before, "no such image", NOW))
    assert changed.attempt is not None
    assert (changed.job.state, changed.attempt.attempt.state) == (J.FAILED, A.FAILED)
    assert changed.job.message == "Attempt 1: no such image"


# What a launcher tells of an attempt beside its phase.

QUEUED = Observation("pending", "Kueue: no quota", Reason.NO_CAPACITY, queued=True)


def test_what_keeps_an_attempt_pending_is_shown_and_taken_away() -> None:
    waiting = record(J.STARTING, A.SUBMITTED)
    action = decide(waiting, Observed(launcher=QUEUED), after(1), POLICY)
    assert isinstance(action, Apply)
    assert (action.change.job["reason"], action.change.job["message"]) == (Reason.NO_CAPACITY, "Kueue: no quota")
    told = evolve(waiting, action.change)
    assert decide(told, Observed(launcher=QUEUED), after(2), POLICY) is None
    action = decide(told, Observed(launcher=Observation("running")), after(3), POLICY)
    assert isinstance(action, Apply)
    assert action.change.job == {"reason": None, "message": ""}


def test_an_attempt_that_goes_back_into_the_queue_before_it_began_is_no_longer_admitted() -> None:
    action = decide(record(J.STARTING, A.SUBMITTED), Observed(launcher=QUEUED), after(1), POLICY)
    assert action is not None
    assert action.change.attempt == {"admitted_at": None}
    ran = record(J.RUNNING, A.RUNNING, beat=5, beat_seen_at=after(0))
    action = decide(ran, Observed(launcher=QUEUED), after(1), POLICY)
    assert action is not None
    assert "admitted_at" not in action.change.attempt  # it is ended


def test_what_a_silent_attempt_has_lost_is_why_it_was_silent() -> None:
    stopping = record(
        J.RUNNING, A.RUNNING, beat=5, beat_seen_at=after(0), stop_requested_at=after(60),
        stop_reason=Reason.HEARTBEAT_EXPIRED,
    )  # fmt: skip
    for seen, reason in (
        (Observation("absent"), Reason.HEARTBEAT_EXPIRED),
        (Observation("absent", "node-7 is gone.", Reason.NODE_LOST), Reason.NODE_LOST),
    ):
        action = decide(stopping, Observed(launcher=seen), after(70), POLICY)
        assert isinstance(action, Apply)
        assert (action.change.job["state"], action.change.attempt["reason"]) == (J.RECOVERING, reason)
        assert seen.message in action.change.attempt["message"]


def test_an_attempts_admission_is_written_once() -> None:
    held = record(J.STARTING, A.SUBMITTED, held=True, reason=Reason.NO_CAPACITY, message="Kueue: no quota")
    for nothing in (Observed(launcher=QUEUED), Observed(launcher_error="away")):
        action = decide(held, nothing, after(1), POLICY)
        assert action is None or "admitted_at" not in action.change.attempt
    for seen in (Observation("pending", "pulls", Reason.IMAGE_PULL_FAILED), Observation("running")):
        action = decide(held, Observed(launcher=seen), after(2), POLICY)
        assert action is not None
        assert action.change.attempt == {"admitted_at": after(2)}
        assert not action.change.quiet
        again = decide(evolve(held, action.change), Observed(launcher=seen), after(3), POLICY)
        assert again is None or "admitted_at" not in again.change.attempt


@pytest.mark.parametrize(
    ("seen", "ended", "reason"),
    [
        (Observation("pending"), True, Reason.UNSCHEDULABLE),
        (Observation("pending", "no such tag", Reason.IMAGE_PULL_FAILED), True, Reason.IMAGE_PULL_FAILED),
        (QUEUED, False, Reason.NO_CAPACITY),
        (Observation("pending", since=after(9_900)), False, None),
        (Observation("pending", since=after(9_000)), True, Reason.UNSCHEDULABLE),
    ],
)
def test_the_time_to_start_begins_when_there_is_room(seen: Observation, ended: bool, reason: Reason | None) -> None:
    observed = Observed(launcher=seen, watched_since=after(0))
    action = decide(record(J.STARTING, A.SUBMITTED), observed, after(10_000), POLICY)
    assert isinstance(action, ForceStop) is ended
    assert (action.change.job.get("reason") if action else None) is reason


def test_what_ran_and_is_queued_again_is_ended() -> None:
    ran = record(J.RUNNING, A.RUNNING, beat=5, beat_seen_at=after(0))
    action = decide(ran, Observed(launcher=QUEUED), after(1), POLICY)
    assert isinstance(action, ForceStop)
    assert action.change.attempt["stop_reason"] is Reason.PREEMPTED
    stopping = evolve(ran, action.change)
    assert isinstance(decide(stopping, Observed(launcher=QUEUED), after(2), POLICY), ForceStop)  # until it is gone
    action = decide(stopping, Observed(launcher=Observation("absent")), after(3), POLICY)
    assert isinstance(action, Apply)
    assert (action.change.job["state"], action.change.attempt["reason"]) == (J.RECOVERING, Reason.PREEMPTED)


@pytest.mark.parametrize("reason", [Reason.NODE_LOST, Reason.HEAD_LOST, Reason.PREEMPTED, Reason.DEADLINE_EXCEEDED])
def test_the_launchers_reason_is_the_attempts(reason: Reason) -> None:
    lost = Observed(launcher=Observation("failed", "node-7 is gone", reason))
    action = decide(record(J.RUNNING, A.RUNNING), lost, after(1), POLICY)
    assert isinstance(action, Apply)
    assert (action.change.attempt["state"], action.change.attempt["reason"]) == (A.LOST, reason)
    assert "node-7 is gone" in action.change.attempt["message"]


@pytest.mark.parametrize(
    ("result", "reason", "state"),
    [
        (failed(Reason.TRAINING_ERROR), Reason.NODE_LOST, J.RECOVERING),
        (failed(None), Reason.NODE_LOST, J.RECOVERING),
        (failed(Reason.NON_FINITE_LOSS), Reason.NON_FINITE_LOSS, J.FAILED),
    ],
)
def test_a_driver_that_saw_its_workers_die_is_told_why(result: Result, reason: Reason, state: JobState) -> None:
    seen = Observed(launcher=Observation("running", "node-7 is gone.", Reason.NODE_LOST), result=result)
    action = decide(record(J.RUNNING, A.RUNNING), seen, after(1), POLICY)
    assert isinstance(action, Apply)
    assert (action.change.attempt["reason"], action.change.job["state"]) == (reason, state)
