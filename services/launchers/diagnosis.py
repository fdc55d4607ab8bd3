"""What a RayJob, its pods and Kueue's word on it come to: pure, over the objects as Kubernetes gives them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from resforge.jobs import Reason
from services.launchers.base import Observation
from services.launchers.rayjob import CLUSTER, NODE_TYPE

Object = Mapping[str, Any]

# What was lost longer ago than this has been replaced, and is not why a driver fails now.
FRESH = timedelta(minutes=10)
# A pod that is to be gone since so long is on a node that does not answer. Its keys in storage are its own.
OVERDUE = timedelta(seconds=60)
_MESSAGE_LIMIT = 2000

# Kubernetes' reasons of a pod's condition DisruptionTarget.
_DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "PreemptionByKubeScheduler": Reason.PREEMPTED,
    "EvictionByEvictionAPI": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
    "TerminationByKubelet": Reason.NODE_LOST,
}
# Reasons of a pod's own status, which older nodes give instead.
_POD_REASONS = {
    "Evicted": Reason.NODE_LOST,
    "NodeLost": Reason.NODE_LOST,
    "NodeShutdown": Reason.NODE_LOST,
    "Shutdown": Reason.NODE_LOST,
    "Terminated": Reason.NODE_LOST,
    "Preempting": Reason.PREEMPTED,
}
_PULL_FAILURES = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
_START_FAILURES = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

# KubeRay's reasons of a RayJob that has failed.
_FAILURES = {
    "DeadlineExceeded": Reason.DEADLINE_EXCEEDED,
    "PreRunningDeadlineExceeded": Reason.DEADLINE_EXCEEDED,
    "JobStatusCheckTimeoutExceeded": Reason.HEAD_LOST,
    "ValidationFailed": Reason.UNSCHEDULABLE,
}


@dataclass(frozen=True)
class Loss:
    """A pod of an attempt that ended before its time.

    Attributes:
        told: the pod itself says why. One that is removed without a word may as well have been removed in good order.
        cluster: the Ray cluster that it was part of. A RayJob that Kueue has put back gets another.
    """

    reason: Reason
    message: str
    at: datetime
    head: bool = False
    told: bool = True
    cluster: str = ""


def diagnose(
    rayjob: Object | None,
    pods: Sequence[Object] | None,
    workload: Object | None,
    losses: Iterable[Loss],
    now: datetime,
    note: str = "",
) -> Observation:
    """What is known of an attempt. What follows from several arguments holds if these were true at one moment.

    Args:
        rayjob: None if Kubernetes says that there is none.
        pods: None if nothing is known of them, so that nothing follows from one that is not there.
        workload: Kueue's, if there is one.
        losses: what the attempt has lost so far, oldest first.
        note: what the events say of a cluster that has no pods.
    """
    known, pods = pods is not None, pods or ()
    if rayjob is None:
        return _after(pods, losses, now)
    status = rayjob.get("status") or {}
    cluster = status.get("rayClusterName") or ""
    seen = [*losses, *(loss for pod in pods if (loss := _coming(pod, now)))]
    seen = [loss for loss in seen if loss.cluster in ("", cluster) or not cluster]
    phase = status.get("jobDeploymentStatus", "")
    if phase in ("Complete", "Failed"):
        return _ended(status, seen, now)
    if deleted_at(rayjob) is not None:
        return Observation("running", "It is being removed.")
    if rayjob["spec"].get("suspend"):
        ending = sorted(pod["metadata"]["name"] for pod in pods if _lives(pod, now))
        if ending:  # they may be writing a checkpoint
            message = f"Kueue takes its room back, and its pods are ending: {', '.join(ending[:3])}."
            return Observation("running", message, Reason.PREEMPTED)
        return _suspended(workload)
    own = [pod for pod in pods if cluster_of(pod) in ("", cluster) or not cluster]
    return (
        _running(status, own if known else None, seen, now) if phase == "Running" else _pending(status, own, note, now)
    )


def loss_of(pod: Object, now: datetime) -> Loss | None:
    """Why a pod ended before its time, if it says so."""
    loss = _loss_of(pod, now)
    return loss and replace(loss, cluster=cluster_of(pod))


def _loss_of(pod: Object, now: datetime) -> Loss | None:
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    head = is_head(pod)
    for item in _containers(status):
        for state in (item.get("state"), item.get("lastState")):
            ended = (state or {}).get("terminated") or {}
            if ended.get("reason") == "OOMKilled":
                message = f"Pod {name} was killed for using more memory than its limit."
                return Loss(Reason.OUT_OF_MEMORY, message, _time(ended.get("finishedAt")) or now, head)
    disrupted = _condition(status, "DisruptionTarget")
    if disrupted.get("status") == "True":
        reason = _DISRUPTIONS.get(disrupted.get("reason", ""), Reason.PREEMPTED)
        told = disrupted.get("message") or disrupted.get("reason", "")
        return Loss(reason, _of_node(pod, told), _time(disrupted.get("lastTransitionTime")) or now, head)
    if status.get("reason") in _POD_REASONS:
        told = status.get("message") or status["reason"]
        return Loss(_POD_REASONS[status["reason"]], _of_node(pod, told), now, head)
    if head and status.get("phase") == "Failed":
        ends = [(item.get("state") or {}).get("terminated", {}).get("finishedAt") for item in _containers(status)]
        return Loss(
            Reason.HEAD_LOST,
            f"The head pod {name} has ended.",
            _time(max(filter(None, ends), default=None)) or now,
            head,
        )
    return None


def _coming(pod: Object, now: datetime) -> Loss | None:
    """What a pod that is there still says of its end.

    A head that was given notice and lives on is not lost before it is gone: its driver has that time to bring the
    attempt to an end.
    """
    loss = loss_of(pod, now)
    return replace(loss, head=loss.head and not _lives(pod, now)) if loss is not None else None


def vanished(pod: Object, now: datetime) -> Loss | None:
    """What the removal of a pod means for its attempt, if it should have lived on."""
    told = loss_of(pod, now)
    if told is not None or not is_head(pod):
        return told
    message = f"The head pod {pod['metadata']['name']} was removed."
    return Loss(Reason.HEAD_LOST, message, now, head=True, told=False, cluster=cluster_of(pod))


def is_head(pod: Object) -> bool:
    return bool((pod["metadata"].get("labels") or {}).get(NODE_TYPE) == "head")


def cluster_of(pod: Object) -> str:
    """The Ray cluster that a pod is part of."""
    return str((pod["metadata"].get("labels") or {}).get(CLUSTER, ""))


def deleted_at(item: Object) -> datetime | None:
    """When an object is to be gone, if its removal was asked for."""
    return _time(item["metadata"].get("deletionTimestamp"))


def _after(pods: Sequence[Object], losses: Iterable[Loss], now: datetime) -> Observation:
    """An attempt without a RayJob: gone, once its pods are."""
    left = [pod["metadata"]["name"] for pod in pods if _lives(pod, now)]
    if not left:
        why = _latest([loss for loss in losses if loss.told], now)
        return Observation("absent") if why is None else Observation("absent", why.message, why.reason)
    return Observation("running", f"It was removed, and its pods are ending: {', '.join(sorted(left)[:3])}.")


def _lives(pod: Object, now: datetime) -> bool:
    gone = deleted_at(pod)
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and (
        gone is None or now < gone + OVERDUE
    )


def _ended(status: Object, losses: Sequence[Loss], now: datetime) -> Observation:
    told = _said(status)
    if status["jobDeploymentStatus"] == "Complete":
        return Observation("stopped" if status.get("jobStatus") == "STOPPED" else "succeeded", told)
    reason = _FAILURES.get(status.get("reason", ""))
    # KubeRay removes the pods of a RayJob that has ended, so their going alone is no cause.
    fresh = _latest([loss for loss in losses if loss.told], now)
    if fresh is not None and reason in (None, Reason.HEAD_LOST):
        return Observation("failed", f"{fresh.message} {told}".strip(), fresh.reason)
    return Observation("failed", told, reason)


def _running(status: Object, pods: Sequence[Object] | None, losses: Sequence[Loss], now: datetime) -> Observation:
    """KubeRay gives a lost head a successor and submits the driver anew. We want a new attempt instead."""
    heads = [loss for loss in losses if loss.head]
    if heads:
        return Observation("failed", heads[-1].message, heads[-1].reason)
    began = _time((status.get("rayJobInfo") or {}).get("startTime"))
    if began is not None and pods is not None:
        live = [pod for pod in pods if is_head(pod) and _lives(pod, now)]
        if not live:
            return Observation("failed", "The head pod is gone.", Reason.HEAD_LOST)
        if all((_time(pod["metadata"].get("creationTimestamp")) or began) > began for pod in live):
            name = live[0]["metadata"]["name"]
            return Observation("failed", f"The head pod was replaced by {name}.", Reason.HEAD_LOST)
    fresh = _latest([loss for loss in losses if not loss.head], now)
    if fresh is not None:
        return Observation("running", fresh.message, fresh.reason)
    return Observation("running", _said(status))


def _suspended(workload: Object | None) -> Observation:
    if workload is None:
        return Observation("pending", "Kueue has not taken note of it yet.", Reason.NO_CAPACITY, queued=True)
    status = workload.get("status") or {}
    evicted, reserved = _condition(status, "Evicted"), _condition(status, "QuotaReserved")
    if (workload.get("spec") or {}).get("active") is False:
        message = "Kueue has deactivated it: " + (evicted.get("message") or "its workload is not active")
        return Observation("pending", message, Reason.UNSCHEDULABLE, queued=True)
    if evicted.get("status") == "True":
        message = f"Kueue has put it back into the queue ({evicted.get('reason')}): {evicted.get('message')}"
        return Observation("pending", message, Reason.NO_CAPACITY, queued=True)
    if reserved.get("status") == "False":
        never = reserved.get("reason") == "Inadmissible"
        reason = Reason.UNSCHEDULABLE if never else Reason.NO_CAPACITY
        return Observation("pending", f"Kueue: {reserved.get('message')}", reason, queued=True)
    return Observation("pending", "It waits in Kueue's queue.", Reason.NO_CAPACITY, queued=True)


def _pending(status: Object, pods: Sequence[Object], note: str, now: datetime) -> Observation:
    """An attempt whose pods do not all run yet, and the most telling of what keeps them."""
    since = _time(status.get("startTime"))
    unscheduled: list[tuple[str, str]] = []
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        name, told = pod["metadata"]["name"], pod.get("status") or {}
        for item in _containers(told):
            waiting = (item.get("state") or {}).get("waiting") or {}
            reason, message = waiting.get("reason"), f"{waiting.get('reason')}: {waiting.get('message', '')}"
            if reason in _PULL_FAILURES:
                text = f"Pod {name} can't get the image {item.get('image', '')}: {message}"
                return Observation("pending", text, Reason.IMAGE_PULL_FAILED, since=since)
            if reason in _START_FAILURES:
                return Observation("pending", f"Pod {name} can't start: {message}", Reason.UNSCHEDULABLE, since=since)
        scheduled = _condition(told, "PodScheduled")
        if scheduled.get("status") == "False":
            unscheduled.append((name, scheduled.get("message") or scheduled.get("reason", "")))
        elif (at := _time(scheduled.get("lastTransitionTime"))) is not None:
            since = max(since or at, at)
    if unscheduled:
        name, message = unscheduled[0]
        text = f"{len(unscheduled)} of {len(pods)} pods can't be scheduled; {name}: {message}"
        return Observation("pending", text[:_MESSAGE_LIMIT], Reason.UNSCHEDULABLE, since=now)
    if note:
        return Observation("pending", note[:_MESSAGE_LIMIT], Reason.UNSCHEDULABLE, since=since)
    return Observation("pending", _said(status), since=since)


def _latest(losses: Iterable[Loss], now: datetime) -> Loss | None:
    """The newest loss that may be why something fails now; one of the head goes first, since it ends all."""
    fresh = [loss for loss in losses if now - loss.at <= FRESH]
    return max(fresh, key=lambda loss: (loss.head, loss.at), default=None)


def _said(status: Object) -> str:
    parts = (status.get("reason"), status.get("message"))
    return ": ".join(str(part).strip() for part in parts if part)[-_MESSAGE_LIMIT:]


def _of_node(pod: Object, told: str) -> str:
    node = (pod.get("spec") or {}).get("nodeName")
    where = f" on node {node}" if node else ""
    return f"Pod {pod['metadata']['name']}{where}: {told.rstrip('.')}."


def _condition(status: Object, kind: str) -> Object:
    found: Object = next((item for item in status.get("conditions") or () if item.get("type") == kind), {})
    return found


def _containers(status: Object) -> list[Object]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None
