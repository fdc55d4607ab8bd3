"""What a RayJob, its pods and Kueue come to, by a table of what clusters show."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resforge.jobs import Reason
from services.launchers.base import Phase
from services.launchers.diagnosis import Loss, diagnose, loss_of, vanished

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BEGAN = NOW - timedelta(seconds=100)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(phase: str = "", *, suspend: bool = False, deleted: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {"name": "j-1", **({"deletionTimestamp": ago(1)} if deleted else {})}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": {"jobDeploymentStatus": phase, **status}}


def pod(role: str = "worker", phase: str = "Running", **changes: Any) -> dict[str, Any]:
    status = {"phase": phase, **{key: changes.pop(key) for key in ("conditions", "reason") if key in changes}}
    state = changes.pop("state", None)
    if state is not None:
        status["containerStatuses"] = [{"name": "ray", "image": "img", "state": state}]
    metadata = {"name": f"j-1-{role}", "labels": {"ray.io/node-type": role}, "creationTimestamp": ago(600), **changes}
    return {"metadata": metadata, "spec": {"nodeName": "node-7"}, "status": status}


def condition(kind: str, status: str, reason: str, message: str = "its words", at: float = 30) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ago(at)}


def workload(*conditions: dict[str, str], active: bool = True) -> dict[str, Any]:
    return {"metadata": {"name": "w"}, "spec": {"active": active}, "status": {"conditions": list(conditions)}}


OOM = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": ago(20)}}
DISRUPTED = {
    reason: condition("DisruptionTarget", "True", reason)
    for reason in ("PreemptionByScheduler", "DeletionByTaintManager", "DeletionByPodGC", "EvictionByEvictionAPI")
}


@pytest.mark.parametrize(
    ("rayjob", "phase", "reason"),
    [
        (None, "absent", None),
        ({"metadata": {"name": "j-1"}, "spec": {}}, "pending", None),  # KubeRay has not seen it yet
        (job(), "pending", None),
        (job("Initializing"), "pending", None),
        (job("Waiting"), "pending", None),
        (job("Retrying"), "pending", None),
        (job("SomethingNew"), "pending", None),
        (job("Running"), "running", None),
        (job("Running", jobStatus="RUNNING"), "running", None),
        (job("Running", deleted=True), "running", None),
        (job("Complete", jobStatus="SUCCEEDED"), "succeeded", None),
        (job("Complete", jobStatus="STOPPED"), "stopped", None),
        (job("Complete", jobStatus="SUCCEEDED", deleted=True), "succeeded", None),
        (job("Failed", reason="AppFailed"), "failed", None),
        (job("Failed", reason="SubmissionFailed"), "failed", None),
        (job("Failed", reason="DeadlineExceeded"), "failed", Reason.DEADLINE_EXCEEDED),
        (job("Failed", reason="PreRunningDeadlineExceeded"), "failed", Reason.DEADLINE_EXCEEDED),
        (job("Failed", reason="JobStatusCheckTimeoutExceeded"), "failed", Reason.HEAD_LOST),
        (job("Failed", reason="ValidationFailed"), "failed", Reason.UNSCHEDULABLE),
        (job("Suspended", suspend=True), "pending", Reason.NO_CAPACITY),
        (job("Running", suspend=True), "pending", Reason.NO_CAPACITY),
    ],
)
def test_states(rayjob: dict[str, Any] | None, phase: Phase, reason: Reason | None) -> None:
    seen = diagnose(rayjob, [], None, [], NOW)
    assert (seen.phase, seen.reason) == (phase, reason)


@pytest.mark.parametrize(
    ("pods", "phase"),
    [
        ([pod()], "running"),
        ([pod(deletionTimestamp=ago(-30))], "running"),
        ([pod(deletionTimestamp=ago(30))], "running"),
        ([pod(deletionTimestamp=ago(61))], "absent"),  # on a node that does not answer
        ([pod(phase="Succeeded"), pod(phase="Failed")], "absent"),
        ([pod(phase="Failed"), pod(phase="Pending")], "running"),
    ],
)
def test_without_a_rayjob_the_pods_decide(pods: list[dict[str, Any]], phase: Phase) -> None:
    assert diagnose(None, pods, None, [], NOW).phase == phase


@pytest.mark.parametrize(
    ("kueue", "reason", "words"),
    [
        (None, Reason.NO_CAPACITY, "not taken note"),
        (workload(), Reason.NO_CAPACITY, "waits in Kueue's queue"),
        (workload(condition("QuotaReserved", "False", "Pending")), Reason.NO_CAPACITY, "Kueue: its words"),
        (workload(condition("QuotaReserved", "False", "Inadmissible")), Reason.UNSCHEDULABLE, "Kueue: its words"),
        (workload(condition("Evicted", "True", "Preempted")), Reason.NO_CAPACITY, "(Preempted): its words"),
        (workload(condition("Evicted", "True", "PodsReadyTimeout")), Reason.NO_CAPACITY, "(PodsReadyTimeout)"),
        (workload(condition("Evicted", "False", "x")), Reason.NO_CAPACITY, "waits in Kueue's queue"),
        (workload(active=False), Reason.UNSCHEDULABLE, "deactivated"),
    ],
)
def test_kueues_own_words(kueue: dict[str, Any] | None, reason: Reason, words: str) -> None:
    seen = diagnose(job("Suspended", suspend=True), [], kueue, [], NOW)
    assert (seen.phase, seen.reason, seen.queued) == ("pending", reason, True)
    assert words in seen.message


@pytest.mark.parametrize(
    ("pods", "reason", "since", "words"),
    [
        ([pod(phase="Pending")], None, BEGAN, ""),
        (
            [pod(phase="Pending", conditions=[condition("PodScheduled", "False", "Unschedulable")]), pod("head")],
            Reason.UNSCHEDULABLE,
            NOW,
            "1 of 2 pods can't be scheduled; j-1-worker: its words",
        ),
        (
            [pod(phase="Pending", conditions=[condition("PodScheduled", "False", "SchedulingGated", "")])],
            Reason.UNSCHEDULABLE,
            NOW,
            "SchedulingGated",
        ),
        (
            [pod(phase="Pending", state={"waiting": {"reason": "ErrImagePull", "message": "no such tag"}})],
            Reason.IMAGE_PULL_FAILED,
            BEGAN,
            "can't get the image img: ErrImagePull: no such tag",
        ),
        (
            [pod(phase="Pending", state={"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}})],
            Reason.UNSCHEDULABLE,
            BEGAN,
            "can't start: CreateContainerConfigError: no secret",
        ),
        ([pod(phase="Pending", state={"waiting": {"reason": "ContainerCreating"}})], None, BEGAN, ""),
    ],
)
def test_why_it_is_pending(pods: list[dict[str, Any]], reason: Reason | None, since: datetime, words: str) -> None:
    seen = diagnose(job("Initializing", startTime=ago(100)), pods, None, [], NOW)
    assert (seen.phase, seen.reason, seen.queued, seen.since) == ("pending", reason, False, since)
    assert words in seen.message


def test_since_when_it_has_all_that_it_needs() -> None:
    scheduled = [pod(phase="Pending", conditions=[condition("PodScheduled", "True", "", at=at)]) for at in (70, 40)]
    seen = diagnose(job("Initializing", startTime=ago(100)), scheduled, None, [], NOW)
    assert seen.since == NOW - timedelta(seconds=40)
    assert diagnose(job("Initializing", startTime=ago(100)), [], None, [], NOW).since == NOW - timedelta(seconds=100)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (pod(), None),
        (pod(phase="Failed"), None),
        (pod("head", phase="Failed"), Reason.HEAD_LOST),
        (pod(state=OOM), Reason.OUT_OF_MEMORY),
        (pod(reason="Evicted"), Reason.NODE_LOST),
        (pod(reason="Preempting"), Reason.PREEMPTED),
        (pod(reason="NodeShutdown"), Reason.NODE_LOST),
        (pod(conditions=[DISRUPTED["PreemptionByScheduler"]]), Reason.PREEMPTED),
        (pod(conditions=[DISRUPTED["EvictionByEvictionAPI"]]), Reason.PREEMPTED),
        (pod(conditions=[DISRUPTED["DeletionByTaintManager"]]), Reason.NODE_LOST),
        (pod(conditions=[DISRUPTED["DeletionByPodGC"]]), Reason.NODE_LOST),
        (pod(conditions=[DISRUPTED["DeletionByPodGC"]], state=OOM), Reason.OUT_OF_MEMORY),
        (pod(conditions=[condition("DisruptionTarget", "False", "DeletionByPodGC")]), None),
    ],
)
def test_what_a_pod_says_of_its_end(item: dict[str, Any], reason: Reason | None) -> None:
    found = loss_of(item, NOW)
    assert (found.reason if found else None) is reason


def test_a_head_that_vanishes_is_a_loss_and_a_worker_is_not() -> None:
    assert vanished(pod(), NOW) is None
    lost = vanished(pod("head"), NOW)
    assert lost is not None
    assert (lost.reason, lost.told) == (Reason.HEAD_LOST, False)


def lost(reason: Reason, seconds: float, *, head: bool = False, told: bool = True) -> Loss:
    return Loss(reason, f"lost by {reason}", NOW - timedelta(seconds=seconds), head, told)


@pytest.mark.parametrize(
    ("rayjob", "losses", "phase", "reason"),
    [
        (job("Running"), [lost(Reason.NODE_LOST, 9)], "running", Reason.NODE_LOST),
        (job("Running"), [lost(Reason.NODE_LOST, 900)], "running", None),  # it was replaced long ago
        (job("Running"), [lost(Reason.NODE_LOST, 9, head=True)], "failed", Reason.NODE_LOST),
        (job("Running"), [lost(Reason.NODE_LOST, 900, head=True)], "failed", Reason.NODE_LOST),
        (job("Running"), [lost(Reason.HEAD_LOST, 9, head=True, told=False)], "failed", Reason.HEAD_LOST),
        (job("Running"), [lost(Reason.HEAD_LOST, 2, head=True, told=False)], "failed", Reason.HEAD_LOST),
        (job("Initializing"), [lost(Reason.NODE_LOST, 9, head=True)], "pending", None),  # KubeRay makes another
        (job("Failed", reason="AppFailed"), [lost(Reason.OUT_OF_MEMORY, 9)], "failed", Reason.OUT_OF_MEMORY),
        (job("Failed", reason="AppFailed"), [lost(Reason.OUT_OF_MEMORY, 900)], "failed", None),
        (job("Failed", reason="AppFailed"), [lost(Reason.HEAD_LOST, 9, head=True, told=False)], "failed", None),
        (job("Failed", reason="DeadlineExceeded"), [lost(Reason.NODE_LOST, 9)], "failed", Reason.DEADLINE_EXCEEDED),
        (
            job("Failed", reason="JobStatusCheckTimeoutExceeded"),
            [lost(Reason.OUT_OF_MEMORY, 3), lost(Reason.NODE_LOST, 9, head=True)],
            "failed",
            Reason.NODE_LOST,
        ),
        (job("Complete", jobStatus="SUCCEEDED"), [lost(Reason.NODE_LOST, 9, head=True)], "succeeded", None),
        (job("Suspending", suspend=True), [lost(Reason.HEAD_LOST, 9, head=True)], "pending", Reason.NO_CAPACITY),
    ],
)
def test_what_was_lost(rayjob: dict[str, Any], losses: list[Loss], phase: Phase, reason: Reason | None) -> None:
    seen = diagnose(rayjob, [], None, losses, NOW)
    assert (seen.phase, seen.reason) == (phase, reason)


def test_a_head_that_was_replaced_before_anybody_looked() -> None:
    began = job("Running", rayJobInfo={"startTime": ago(300)})
    assert diagnose(began, [pod("head")], None, [], NOW).phase == "running"
    seen = diagnose(began, [pod("head", creationTimestamp=ago(100))], None, [], NOW)
    assert (seen.phase, seen.reason) == ("failed", Reason.HEAD_LOST)
    seen = diagnose(began, [pod()], None, [], NOW)
    assert (seen.phase, seen.reason) == ("failed", Reason.HEAD_LOST)


def test_what_an_earlier_cluster_lost_is_no_loss_of_the_one_that_runs() -> None:
    """Kueue may put a gang back that has not begun; when it is let go again, KubeRay makes another cluster."""
    old, new = ({"ray.io/node-type": "head", "ray.io/cluster": f"j-1-{name}"} for name in ("old", "new"))
    lost = vanished(pod(labels=old, conditions=[DISRUPTED["EvictionByEvictionAPI"]]), NOW)
    assert lost is not None
    runs = job("Running", rayClusterName="j-1-new", rayJobInfo={"startTime": ago(300)})
    heads = [pod(labels=old, phase="Failed"), pod(labels=new)]
    assert diagnose(runs, heads, None, [lost], NOW).phase == "running"
    assert diagnose(runs, heads[:1], None, [lost], NOW).reason is Reason.HEAD_LOST
    fails = job("Failed", rayClusterName="j-1-new", reason="AppFailed")
    assert diagnose(fails, [], None, [lost], NOW).reason is None
    waits = job("Initializing", rayClusterName="j-1-new", startTime=ago(10))
    refused = pod(labels=old, phase="Pending", conditions=[condition("PodScheduled", "False", "Unschedulable")])
    assert diagnose(waits, [refused], None, [lost], NOW).reason is None
