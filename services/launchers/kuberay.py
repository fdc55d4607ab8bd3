"""Attempts on Kubernetes: a RayJob for each, and so a Ray cluster of its own, by KubeRay's operator.

The launcher holds nothing that could be lost: names are deterministic, and what it knows is a copy that a watch keeps.
Only a RayJob that Kubernetes itself says is not there, and whose pods are gone, counts as absent.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from services.launchers.base import (
    Launcher,
    LauncherUnavailable,
    LaunchRefused,
    LaunchRequest,
    Node,
    Observation,
    PoolUnknown,
)
from services.launchers.cluster_view import View
from services.launchers.diagnosis import Loss, deleted_at, vanished
from services.launchers.kube import EVENTS, PODS, RAY_JOBS, WORKLOADS, Kind, Kube, KubeError
from services.launchers.moments import Moment, Moments
from services.launchers.pools import Pool, Pools
from services.launchers.rayjob import ATTEMPT, BUCKET, JOB, KIND, QUEUE, WORKLOAD_OF, House, rayjob

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

CONFLICT, FORBIDDEN, TOO_MANY = 409, 403, 429
INVALID = frozenset({400, 413, 422})  # the manifest itself is wrong, and will be so the next time
LOSSES = 20  # of an attempt, the newest
SILENT_S = 1.0  # Kubernetes is not asked again for so long after it gave no answer
NOTES_S = 30.0  # events are read so often, of a cluster that should have pods and has none
PODLESS_S = 15.0  # KubeRay makes the pods within seconds


class KubeRay(Launcher):
    """RayJobs in one namespace.

    Args:
        api: URL of the Kubernetes API; left out, the cluster that this runs in, or else the kubeconfig's.
    """

    def __init__(self, pools: Pools, house: House, *, api: str | None = None, timeout_s: float = 5.0) -> None:
        self._pools, self._house = pools, house
        self._api, self._timeout_s = api, timeout_s
        self._kueue = any(pool.queue for pool in pools.pools)
        self._ours = f"{BUCKET}={house.bucket}"
        self._lock = threading.Lock()
        self._losses: dict[str, deque[Loss]] = {}
        self._notes: dict[str, tuple[float, str]] = {}
        self._pause = (0.0, "")  # until when Kubernetes is not asked, and why
        self._moments = Moments(self)
        self._kubes: list[Kube] = []
        self._calls: Kube | None = None
        self._jobs: View | None = None
        self._pods: View | None = None
        self._workloads: View | None = None

    def close(self) -> None:
        """Stop watching and drop the connections."""
        for view in (self._jobs, self._pods, self._workloads):
            if view is not None:
                view.close()
        for kube in self._kubes:
            kube.close()

    def pool_of(self, name: str | None) -> str:
        return self._pools.pools[0].name if name is None else name

    def pools(self) -> list[str]:
        return [pool.name for pool in self._pools.pools]

    def nodes(self, pool: str = "") -> list[Node] | None:
        """A pool without a queue as if all its nodes were there, for autoscaling may bring them; a queue's is Kueue's.

        So of gangs of ours no more are submitted than the pool can hold: Kubernetes' own scheduler places pod by pod,
        and two gangs that each got a half would wait for each other for good.
        """
        found = self._pools.find(pool or None)
        if found is None:
            raise PoolUnknown(f"there is no pool {pool} any more; there are: {self._pools.names}")
        self._check()
        if found.queue is not None:
            return None
        return _all_of(found)

    def capacity(self) -> list[Node]:
        return [node for pool in self._pools.pools for node in _all_of(pool)]

    def submit(self, request: LaunchRequest) -> None:
        pool = self._pools.find(request.pool)
        if pool is None:
            raise PoolUnknown(f"there is no pool {request.pool} any more; there are: {self._pools.names}")
        try:
            manifest = rayjob(request, pool, self._house, self._pools.heads)
        except ValueError as error:
            raise LaunchRefused(str(error)) from error
        try:
            self._kube().create(RAY_JOBS, manifest)
        except KubeError as error:
            if error.code == CONFLICT:
                return  # it was submitted before
            if error.code in INVALID:
                raise LaunchRefused(str(error)) from error
            if error.code:
                self._note_pause(error)
            # The answer may be lost though the submission arrived.
            if error.code not in (FORBIDDEN, TOO_MANY) and self.rayjob(request.name) is not None:
                return
            raise LauncherUnavailable(str(error)) from error

    def observe(self, name: str) -> Observation:
        jobs, pods = self._check()
        rayjob = next(iter(jobs.find(name)), None)
        workload = None
        if rayjob is not None and self._workloads is not None and QUEUE in (rayjob["metadata"].get("labels") or {}):
            try:
                self._workloads.check()
            except KubeError as error:
                raise LauncherUnavailable(str(error)) from error
            workload = next(iter(self._workloads.find(name)), None)
        copied = Moment(rayjob, pods.find(name), workload)
        with self._lock:
            losses = tuple(self._losses.get(name, ()))
        return self._moments.observe(name, copied, losses, datetime.now(UTC), self._note)

    def rayjob(self, name: str) -> Object | None:
        return self._find(name)

    def workload(self, rayjob: Object) -> Object | None:
        if not self._kueue or QUEUE not in (rayjob["metadata"].get("labels") or {}):
            return None
        return next(iter(self._select(WORKLOADS, f"{WORKLOAD_OF}={rayjob['metadata']['uid']}")), None)

    def pods(self, name: str) -> list[Object]:
        job, _, attempt = name.rpartition("-")
        return self._select(PODS, f"{self._ours},{JOB}={job},{ATTEMPT}={attempt}")

    def stop(self, name: str) -> None:
        """Remove the RayJob. KubeRay ends the driver, and Kubernetes then removes the cluster that it owned."""
        jobs, _ = self._check()
        if any(deleted_at(item) is not None for item in jobs.find(name)):
            return
        try:
            self._kube().delete(RAY_JOBS, name)
        except KubeError as error:
            self._note_pause(error)
            raise LauncherUnavailable(str(error)) from error

    def leftovers(self, live: Collection[str]) -> list[str]:
        jobs, pods = self._check()
        there = jobs.keys()
        with self._lock:
            for gone in self._losses.keys() - {*live, *there, *pods.keys()}:
                del self._losses[gone]
            for gone in self._notes.keys() - set(there):
                del self._notes[gone]
        self._moments.forget_all_but({*live, *there})
        ended = [name for name in there if name not in live]
        return sorted(name for name in ended if all(deleted_at(item) is None for item in jobs.find(name)))

    def _check(self) -> tuple[View, View]:
        """The copies of RayJobs and pods, once it is sure that they are up to date."""
        try:
            with self._lock:
                if self._jobs is None or self._pods is None:
                    self._jobs = View(self._connect(), RAY_JOBS, key=_name, labels=self._ours)
                    self._pods = View(self._connect(), PODS, key=_attempt, labels=self._ours, on_gone=self._pod_gone)
                    if self._kueue:
                        self._workloads = View(self._connect(), WORKLOADS, key=_owner)
                jobs, pods = self._jobs, self._pods
            for view in (jobs, pods):
                view.check()
        except KubeError as error:
            raise LauncherUnavailable(str(error)) from error
        return jobs, pods

    def _kube(self) -> Kube:
        """The connection for calls, unless Kubernetes has asked to be left alone for a while."""
        until, why = self._pause
        if time.monotonic() < until:
            raise KubeError(why, TOO_MANY)
        with self._lock:
            self._calls = self._calls or self._connect()
            return self._calls

    def _connect(self) -> Kube:
        kube = Kube(self._api, self._house.namespace, timeout_s=self._timeout_s)
        self._kubes.append(kube)
        return kube

    def _note_pause(self, error: KubeError) -> None:
        """Leave Kubernetes alone for as long as it asks, and a little where it is silent: the next need not wait."""
        if error.retry_after_s:
            until = time.monotonic() + min(error.retry_after_s, 60.0)
            self._pause = (until, f"{error}; it is left alone for the {error.retry_after_s:g} s that it asked for")
        elif not error.code:
            self._pause = (time.monotonic() + SILENT_S, str(error))

    def _select(self, kind: Kind, labels: str) -> list[Object]:
        try:
            return [*self._kube().select(kind, labels=labels)[1]]
        except KubeError as error:
            self._note_pause(error)
            raise LauncherUnavailable(str(error)) from error

    def _find(self, name: str) -> Object | None:
        try:
            return self._kube().find(RAY_JOBS, name)
        except KubeError as error:
            self._note_pause(error)
            raise LauncherUnavailable(str(error)) from error

    def _note(self, rayjob: Object) -> str:
        """What the events say of a cluster that should have pods by now, such as that a quota forbids them."""
        name, status = rayjob["metadata"]["name"], rayjob.get("status") or {}
        started = status.get("startTime")
        if status.get("jobDeploymentStatus") != "Initializing" or not started:
            return ""
        if (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() < PODLESS_S:
            return ""
        at, text = self._notes.get(name, (-NOTES_S, ""))
        if time.monotonic() - at < NOTES_S:
            return text
        try:
            text = self._warning(rayjob)
        except KubeError as error:
            logger.info("the events of %s can't be read now: %s", name, error)
        self._notes[name] = (time.monotonic(), text)
        return text

    def _warning(self, rayjob: Object) -> str:
        """The newest warning of the RayJob or its cluster."""
        status, found = rayjob.get("status") or {}, list[Object]()
        for kind, name in ((KIND, rayjob["metadata"]["name"]), ("RayCluster", status.get("rayClusterName"))):
            if name:
                fields = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
                found += self._kube().select(EVENTS, fields=fields)[1]
        newest = max(
            found, key=lambda item: str(item.get("lastTimestamp") or item.get("eventTime") or ""), default=None
        )
        return "" if newest is None else f"{newest.get('reason')}: {newest.get('message')}"

    def _pod_gone(self, attempt: str, pod: Object) -> None:
        """Remember what an attempt has lost: nobody else will know, now that the pod is removed."""
        loss = vanished(pod, datetime.now(UTC))
        if loss is not None:
            with self._lock:
                self._losses.setdefault(attempt, deque(maxlen=LOSSES)).append(loss)


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _attempt(pod: Object) -> str:
    """The name of the attempt that a pod belongs to."""
    labels = pod["metadata"].get("labels") or {}
    return f"{labels.get(JOB)}-{labels.get(ATTEMPT)}"


def _owner(workload: Object) -> str:
    """The RayJob that a workload stands for."""
    owners = workload["metadata"].get("ownerReferences") or ()
    return next((str(item["name"]) for item in owners if item.get("kind") == KIND), "")


def _all_of(pool: Pool) -> list[Node]:
    cpus, gpus = pool.cpus_per_node, pool.gpus_per_node
    return [Node(cpus=cpus, gpus=gpus, free_cpus=cpus, free_gpus=gpus)] * pool.max_nodes
