"""Plays what is behind an API server: KubeRay's operator, Kueue, the scheduler and the nodes.

RayJobs go through the transitions of KubeRay 1.7 one step at a time. Tests say where they stay, and what breaks.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from services.launchers.rayjob import CLUSTER, NODE_TYPE, QUEUE, WORKLOAD_OF
from tests.kube.server import APIS, KubeApi, Object, now

FINALIZER = "ray.io/rayjob-finalizer"


@dataclass
class Cluster:
    """The cluster's own parts, on a server's objects.

    Attributes:
        stays: names and what holds them where they are: `kueue`, `unscheduled`, `image`, or `pods` (not ready).
        message: what the scheduler, Kueue or the kubelet says of whatever stays.
        operator_works: KubeRay reconciles. If not, nothing moves, and finalizers stay.
        on_driver: called with (name, entrypoint) when KubeRay submits a driver.
        grace_s: how long a pod that is removed still runs.
        drivers, stopped: whose drivers were submitted, and whose were stopped since their RayJob was deleted.
    """

    api: KubeApi
    stays: dict[str, str] = field(default_factory=dict)
    message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    operator_works: bool = True
    on_driver: Callable[[str, str], None] | None = None
    grace_s: float = 0.0
    drivers: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    _made: dict[str, dict[str, str]] = field(default_factory=dict)  # by RayJob: its pods, by what each is for
    _replaced: Counter[str] = field(default_factory=Counter)
    _begun: Counter[str] = field(default_factory=Counter)
    _driven: dict[str, tuple[str, str]] = field(default_factory=dict)  # the RayJob and the head that have a driver

    def step(self) -> None:
        """Take every RayJob one step further."""
        if not self.operator_works:
            return
        for name in self.api.names("rayjobs"):
            job = self.api.peek("rayjobs", name)
            if job is not None:
                self._reconcile(name, job)

    def settle(self, steps: int = 8) -> None:
        """As many steps as a RayJob needs to run, or to be gone."""
        for _ in range(steps):
            self.step()

    @contextmanager
    def working(self, every_s: float = 0.03) -> Iterator[None]:
        """Step in the background."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(every_s):
                self.step()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    # What tests let happen.

    def finish(self, name: str, status: str = "SUCCEEDED", message: str = "") -> None:
        """The Ray job of a RayJob has ended."""
        failed = status == "FAILED"
        self._status(
            name, jobDeploymentStatus="Failed" if failed else "Complete", jobStatus=status, message=message,
            endTime=now(), **({"reason": "AppFailed"} if failed else {}),
        )  # fmt: skip

    def fail(self, name: str, reason: str, message: str = "") -> None:
        """KubeRay gives a RayJob up."""
        self._status(name, jobDeploymentStatus="Failed", reason=reason, message=message, endTime=now())

    def admit(self, name: str) -> None:
        """Kueue lets a RayJob start."""
        if self.stays.get(name) == "kueue":
            del self.stays[name]
        self._condition("workloads", f"rayjob-{name}", "QuotaReserved", "True", "QuotaReserved", "Quota reserved")
        self._condition("workloads", f"rayjob-{name}", "Evicted", "False", "QuotaReserved", "")
        self.api.edit("rayjobs", name, lambda job: job["spec"].update(suspend=False))

    def preempt(self, name: str, message: str = "Preempted to accommodate a workload of higher priority") -> None:
        """Kueue takes a RayJob's room away."""
        self.stays[name] = "kueue"
        self._condition("workloads", f"rayjob-{name}", "Evicted", "True", "Preempted", message)
        self._condition("workloads", f"rayjob-{name}", "QuotaReserved", "False", "Pending", message)
        self.api.edit("rayjobs", name, lambda job: job["spec"].update(suspend=True))

    def pods(self, name: str, role: str = "") -> list[str]:
        """The pods that a RayJob has now."""
        made = [self.api.peek("pods", pod) for pod in self._made.get(name, {}).values()]
        return sorted(
            pod["metadata"]["name"] for pod in made if pod and role in ("", pod["metadata"]["labels"][NODE_TYPE])
        )

    def expire(self, name: str) -> None:
        """A RayJob has ended, and its ttlSecondsAfterFinished are over: its cluster is removed, and it stays."""
        self._remove_pods(name)

    def disrupt(self, pod: str, reason: str, message: str) -> None:
        """A pod is ended by its node or by somebody else's claim: at once, or after its grace."""
        self._condition("pods", pod, "DisruptionTarget", "True", reason, message)
        if self.grace_s:
            self.api.delete("pods", pod, self.grace_s)
        else:
            self.api.remove("pods", pod)

    def kill_for_memory(self, pod: str) -> None:
        """The kernel kills a pod's process for its memory; KubeRay removes the pod."""
        ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": now()}

        def change(item: Object) -> None:
            item["status"] |= {"phase": "Failed"}
            item["status"]["containerStatuses"][0]["state"] = {"terminated": ended}

        self.api.edit("pods", pod, change)
        self.api.remove("pods", pod)

    def warn(self, kind: str, name: str, reason: str, message: str) -> None:
        self.api.create(
            "events",
            {
                "metadata": {"name": f"{name}.{reason.lower()}"}, "type": "Warning", "reason": reason,
                "message": message, "lastTimestamp": now(), "involvedObject": {"kind": kind, "name": name},
            },
        )  # fmt: skip

    # KubeRay's reconciliation.

    def _reconcile(self, name: str, job: Object) -> None:
        metadata, status = job["metadata"], job.get("status") or {}
        if metadata.get("deletionTimestamp"):
            if status.get("jobDeploymentStatus") == "Running":
                self.stopped.append(name)  # KubeRay's StopJob: the driver is ended, whatever it does
            self._remove_pods(name)
            self.api.edit("rayjobs", name, lambda item: item["metadata"].pop("finalizers", None))
            if self.api.exists("workloads", f"rayjob-{name}"):
                self.api.remove("workloads", f"rayjob-{name}")
            return
        match status.get("jobDeploymentStatus", ""):
            case "":
                self._begin(name, job)
            case "Initializing" if job["spec"].get("suspend"):
                self._status(name, jobDeploymentStatus="Suspending")
            case "Initializing":
                self._start_pods(name, job)
            case "Running" if job["spec"].get("suspend"):
                self._status(name, jobDeploymentStatus="Suspending")
            case "Running":
                self._drive(name, job)
            case "Suspending":
                self._remove_pods(name)
                gone = {"jobId": "", "jobStatus": "", "rayClusterName": "", "message": "", "reason": ""}
                self._status(name, jobDeploymentStatus="Suspended", **gone)
            case "Suspended":
                if not job["spec"].get("suspend"):
                    self._begun[name] += 1
                    self._status(name, jobDeploymentStatus="")
            case "Failed" if status.get("reason") in ("DeadlineExceeded", "PreRunningDeadlineExceeded"):
                self._remove_pods(name)

    def _cluster(self, name: str) -> str:
        """The name of a RayJob's cluster, which is another one after each suspension."""
        return f"{name}-abcd{chr(ord('e') + self._begun[name])}"

    def _begin(self, name: str, job: Object) -> None:
        def change(item: Object) -> None:
            item["metadata"]["finalizers"] = [FINALIZER]
            item["status"] = {
                **(item.get("status") or {}),
                "jobDeploymentStatus": "Initializing",
                "jobId": item["spec"].get("jobId", name),
                "rayClusterName": self._cluster(name),
                "startTime": now(),
            }

        self.api.edit("rayjobs", name, change)
        if job["metadata"]["labels"].get(QUEUE) and not self.api.exists("workloads", f"rayjob-{name}"):
            owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": job["metadata"]["uid"]}
            pod_sets = [
                {"name": name, "count": count, "template": {"spec": template["spec"]}}
                for name, count, template in _pod_sets(job)
            ]
            spec = {"queueName": job["metadata"]["labels"][QUEUE], "podSets": pod_sets}
            labels = {WORKLOAD_OF: job["metadata"]["uid"]}
            metadata = {"name": f"rayjob-{name}", "labels": labels, "ownerReferences": [owner]}
            workload = {"metadata": metadata, "spec": spec}
            self.api.create("workloads", {"apiVersion": APIS["workloads"], "kind": "Workload", **workload})
            told = self.message if self.stays.get(name) == "kueue" else "waits"
            self._condition("workloads", f"rayjob-{name}", "QuotaReserved", "False", "Pending", told)

    def _start_pods(self, name: str, job: Object) -> None:
        if self._all_run(name, job):
            self._status(name, jobDeploymentStatus="Running", jobStatus="PENDING")

    def _all_run(self, name: str, job: Object) -> bool:
        """Whether the cluster has all its pods. Those that it lacks are made, and those that are made are started."""
        if self.stays.get(name) == "pods":
            return False
        made, all_run = self._made.setdefault(name, {}), True
        for slot, role, template in _wanted(job):
            pod = self.api.peek("pods", made.get(slot, ""))
            if pod is None:
                all_run = False
                self._replaced[name] += slot in made
                made[slot] = f"{name}-{slot}" + (f"-r{self._replaced[name]}" if slot in made else "")
                self._make_pod(name, made[slot], role, template)
            elif pod["status"]["phase"] == "Pending":
                all_run = False
                self._start_pod(name, made[slot])
        return all_run

    def _make_pod(self, name: str, pod: str, role: str, template: Object) -> None:
        image = template["spec"]["containers"][0]["image"]
        labels = {**template["metadata"]["labels"], NODE_TYPE: role, CLUSTER: self._cluster(name)}
        self.api.create(
            "pods",
            {
                "metadata": {"name": pod, "labels": labels},
                "spec": template["spec"],
                "status": {
                    "phase": "Pending",
                    "containerStatuses": [{"name": "ray", "image": image, "restartCount": 0, "state": {}}],
                },
            },
        )

    def _start_pod(self, name: str, pod: str) -> None:
        stays = self.stays.get(name)
        if stays == "unscheduled":
            self._condition("pods", pod, "PodScheduled", "False", "Unschedulable", self.message)
            return

        def change(item: Object) -> None:
            if stays == "image":
                waiting = {"reason": "ImagePullBackOff", "message": self.message}
                item["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
            else:
                item["status"] |= {"phase": "Running"}
                item["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": now()}}
                item["spec"] = {**item["spec"], "nodeName": f"node-of-{pod}"}

        self._condition("pods", pod, "PodScheduled", "True", "Scheduled", "")
        self.api.edit("pods", pod, change)

    def _drive(self, name: str, job: Object) -> None:
        """Replace lost pods, and submit the driver where the head does not know it."""
        self._all_run(name, job)
        head = self.api.peek("pods", self._made[name]["head"])
        if head is None or head["status"]["phase"] != "Running":
            return
        uid = head["metadata"]["uid"]
        if self._driven.get(name) == (job["metadata"]["uid"], uid):
            return
        self._driven[name] = (job["metadata"]["uid"], uid)
        self._status(name, jobStatus="RUNNING", rayJobInfo={"startTime": now()})
        self.drivers.append(name)
        if self.on_driver is not None:
            self.on_driver(name, job["spec"]["entrypoint"])

    def _remove_pods(self, name: str) -> None:
        for pod in self.pods(name):
            if self.grace_s:
                self.api.delete("pods", pod, self.grace_s)
            else:
                self.api.remove("pods", pod)

    def _status(self, name: str, **values: Any) -> None:
        self.api.edit("rayjobs", name, lambda job: job.update(status={**(job.get("status") or {}), **values}))

    def _condition(self, plural: str, name: str, kind: str, status: str, reason: str, message: str) -> None:
        made = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}

        def change(item: Object) -> None:
            told = item.setdefault("status", {})
            told["conditions"] = [old for old in told.get("conditions", []) if old["type"] != kind] + [made]

        self.api.edit(plural, name, change)


def _pod_sets(job: Object) -> Iterator[tuple[str, int, Object]]:
    """The head and each group of workers: name, how many pods, and their template."""
    cluster = job["spec"]["rayClusterSpec"]
    yield "head", 1, cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", ()):
        yield group["groupName"], group["replicas"], group["template"]


def _wanted(job: Object) -> Iterator[tuple[str, str, Object]]:
    """Each pod that a RayJob's cluster is to have: what tells it from the others, its role, and its template."""
    for name, count, template in _pod_sets(job):
        if name == "head":
            yield name, "head", template
            continue
        for index in range(count):
            yield f"{name}-{index}", "worker", template
