"""From an attempt and its pool to the RayJob that runs it: pure, so that what a cluster is sent can be read and tested.

A training's driver runs on the head, which has no CPUs for work, and each worker pod holds as many workers as fit on a
node. A job that is one process runs beside its driver, so it gets a cluster of the head alone with what that needs:
one pod to schedule instead of two, and the loss of the head ends the job in either case.
"""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from services.launchers.base import Gang, LaunchRequest
from services.launchers.pools import GPU, Heads, Pool, Toleration

GROUP, VERSION, KIND, PLURAL = "ray.io", "v1", "RayJob", "rayjobs"
DOMAIN = "resforge.dev"
JOB, PROJECT, ATTEMPT, BUCKET = (f"{DOMAIN}/{name}" for name in ("job-id", "project", "attempt", "bucket"))
QUEUE = "kueue.x-k8s.io/queue-name"
WORKLOAD_OF = "kueue.x-k8s.io/job-uid"  # Kueue's label on a workload: the uid of what it stands for
NODE_TYPE = "ray.io/node-type"  # KubeRay's label on pods: head or worker
CLUSTER = "ray.io/cluster"  # and this one: the RayCluster

# The head runs Ray's own services, the driver and Ray Train's controller, and no training.
# Raylet and /dev/shm of a pod of workers, and torch in each: less would be killed at once.
POD_MEMORY_GIB, WORKER_MEMORY_GIB = 2.0, 1.0
HEAD_CPUS, HEAD_MEMORY_GIB, HEAD_SHM_GIB = 1.0, 4.0, 1.0
OBJECT_STORE_BYTES = 512 << 20  # our data don't pass through it; the default would be 30% of the memory
USER = 1000
ANYWHERE = Heads()
# Kubernetes' default is to wait for 5 minutes before it gives up what ran on a node that does not answer.
GONE_NODE_S = 60
# For a controller that is away: it removes a RayJob as soon as it has settled the attempt.
TTL_S = 600
CACHE_SHARE = 0.9  # of a volume for cached data, which small files are on too
END_S = 10  # for Ray's own processes to end, after the training has


@dataclass(frozen=True)
class House:
    """What the service's own settings decide of each RayJob.

    Attributes:
        namespace: where RayJobs live; None for the configuration's own.
        bucket: where the service keeps its jobs; tells its RayJobs from those of another in the same namespace.
        grace_s: how long the training in a pod that is to end may go on, until it has written a checkpoint.
    """

    namespace: str | None
    image: str
    service_account: str
    ray_version: str
    trainer_command: str
    bucket: str
    env_secret: str | None = None
    s3_endpoint: str | None = None
    s3_region: str | None = None
    grace_s: float = 60.0


def rayjob(request: LaunchRequest, pool: Pool, house: House, heads: Heads = ANYWHERE) -> dict[str, Any]:
    """The manifest of an attempt's RayJob.

    Raises:
        ValueError: the pool's nodes can't hold such a worker.
    """
    gang = request.gang
    if gang is not None and pool.workers_per_node(gang) < 1:
        raise ValueError(f"no node of pool {pool.name} holds a worker with what this job asks for")
    build = _Build(request, pool, house, heads)
    job_labels = {**build.labels, **({QUEUE: pool.queue} if pool.queue else {})}
    cluster: dict[str, Any] = {
        "rayVersion": house.ray_version,
        "authOptions": {"mode": "token"},
        "headGroupSpec": build.head(),
    }
    if gang is not None:
        cluster["workerGroupSpecs"] = build.workers(gang)
    spec: dict[str, Any] = {
        "entrypoint": f"{house.trainer_command} {shlex.join([request.prefix_uri, str(request.attempt)])}",
        # The same on every try of the operator's, so that Ray refuses a second driver.
        "jobId": request.name,
        "submissionMode": "HTTPMode",
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "preRunningDeadlineSeconds": pool.start_deadline_s,
        "rayClusterSpec": cluster,
    }
    if pool.deadline_s is not None:
        spec["activeDeadlineSeconds"] = pool.deadline_s
    if pool.queue:
        spec["suspend"] = True  # Kueue's from now on
    if request.cpus:
        spec["entrypointNumCpus"] = request.cpus
    if request.gpus:
        spec["entrypointNumGpus"] = request.gpus
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": request.name,
            "labels": job_labels,
            **({"namespace": house.namespace} if house.namespace else {}),
        },
        "spec": spec,
    }


def pods_of(gang: Gang, pool: Pool) -> list[tuple[int, int]]:
    """How a gang is packed: (pods, workers in each). Nodes are filled, and what is left goes into one pod more."""
    each = min(pool.workers_per_node(gang), gang.workers)
    full, rest = divmod(gang.workers, each)
    return [(full, each), *([(1, rest)] if rest else [])]


@dataclass(frozen=True)
class _Build:
    request: LaunchRequest
    pool: Pool
    house: House
    heads: Heads

    @property
    def labels(self) -> dict[str, str]:
        request = self.request
        return {
            "app.kubernetes.io/name": "resforge",
            "app.kubernetes.io/component": "trainer",
            "app.kubernetes.io/managed-by": "resforge",
            BUCKET: self.house.bucket,
            JOB: request.job,
            PROJECT: request.project,
            ATTEMPT: str(request.attempt),
        }

    def head(self) -> dict[str, Any]:
        """The head: on the nodes for heads for a gang, and on the pool's for a job of one process."""
        request = self.request
        alone = request.gang is None
        if alone:
            gang = Gang(1, request.cpus or HEAD_CPUS, request.gpus)
            share = 1 / max(1, self.pool.workers_per_node(gang))
            # A process that asks for a whole node gets it, and shares it with Ray's services.
            cpus = min(HEAD_CPUS + request.cpus, self.pool.cpus_per_node)
            memory = min(max(HEAD_MEMORY_GIB, self.pool.memory_gib_per_node * share), self.pool.memory_gib_per_node)
            template = self._pod(cpus, request.gpus, memory, self._shm(share), on_pool=True)
        else:
            template = self._pod(HEAD_CPUS, 0, HEAD_MEMORY_GIB, HEAD_SHM_GIB, on_pool=False)
        template["spec"]["containers"][0]["ports"] = _ports(
            gcs=6379, dashboard=8265, client=10001, metrics=8080, **{"as-metrics": 44217, "dash-metrics": 44227}
        )
        start = {"dashboard-host": "0.0.0.0", **self._start(request.cpus, request.gpus)}
        return {"serviceType": "ClusterIP", "rayStartParams": start, "template": template}

    def workers(self, gang: Gang) -> list[dict[str, Any]]:
        most = self.pool.workers_per_node(gang)
        return [
            self._group(f"workers-{index}", gang, pods, each, each / most)
            for index, (pods, each) in enumerate(pods_of(gang, self.pool))
        ]

    def _group(self, name: str, gang: Gang, pods: int, each: int, share: float) -> dict[str, Any]:
        """Pods of `each` workers, which take `share` of a node that is full of such workers."""
        cpus, gpus = each * gang.cpus_per_worker, each * gang.gpus_per_worker
        least = POD_MEMORY_GIB + each * WORKER_MEMORY_GIB
        memory = min(max(least, self.pool.memory_gib_per_node * share), self.pool.memory_gib_per_node)
        template = self._pod(cpus, gpus, memory, self._shm(share), on_pool=True)
        container = template["spec"]["containers"][0]
        container["ports"] = _ports(metrics=8080)
        for resource, amount in self.pool.extra_resources.items():
            if of_these := math.floor(amount * share + 1e-9):
                container["resources"]["requests"][resource] = str(of_these)
                container["resources"]["limits"][resource] = str(of_these)
        if self.pool.topology_key:
            template["spec"]["affinity"] = self._near(self.pool.topology_key)
        # Fixed in size: Ray Train starts with the whole gang or not at all.
        return {
            "groupName": name,
            "replicas": pods,
            "minReplicas": pods,
            "maxReplicas": pods,
            "rayStartParams": self._start(cpus, gpus),
            "template": template,
        }

    def _pod(self, cpus: float, gpus: int, memory_gib: float, shm_gib: float, *, on_pool: bool) -> dict[str, Any]:
        house, pool = self.house, self.pool
        place = pool if on_pool else self.heads
        resources = {"cpu": f"{math.ceil(cpus * 1000 - 1e-6)}m", "memory": _mebibytes(memory_gib)}
        if gpus:
            resources[GPU] = str(gpus)
        container: dict[str, Any] = {
            "name": "ray",
            "image": pool.image or house.image,
            "env": self._env(on_pool),
            # The same for both: a worker that took a neighbour's memory would be killed for it.
            "resources": {"requests": dict(resources), "limits": dict(resources)},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if pool.ipc_lock and on_pool else {})},
            },
            # A drain or a preemption lets the training write a checkpoint before it ends the pod.
            "lifecycle": {"preStop": {"exec": {"command": ["python", "-m", "trainer.pod", str(self._notice_s)]}}},
            "volumeMounts": [
                {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": "scratch", "mountPath": "/scratch"},
            ],
        }
        if house.env_secret:
            container["envFrom"] = [{"secretRef": {"name": house.env_secret}}]
        spec: dict[str, Any] = {
            "serviceAccountName": house.service_account,
            "automountServiceAccountToken": False,  # Ray's pods ask Kubernetes for nothing
            "enableServiceLinks": False,
            "restartPolicy": "Never",  # a head that starts again in place has forgotten its driver
            "terminationGracePeriodSeconds": self._notice_s + END_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "tolerations": [*(_toleration(item) for item in place.tolerations), *_GONE_NODE],
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mebibytes(shm_gib)}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "scratch", **self._scratch(on_pool)},
            ],
        }
        if place.node_selector:
            spec["nodeSelector"] = dict(place.node_selector)
        if pool.priority_class:
            spec["priorityClassName"] = pool.priority_class
        return {"metadata": {"labels": self.labels, "annotations": dict(_NO_MOVE)}, "spec": spec}

    @property
    def _notice_s(self) -> int:
        return max(1, math.ceil(self.house.grace_s))

    def _shm(self, share: float) -> float:
        return max(HEAD_SHM_GIB, self.pool.shared_memory_gib * min(1.0, share))

    def _env(self, on_pool: bool) -> list[dict[str, str]]:
        env = {"HOME": "/tmp", "RESFORGE_SCRATCH": "/scratch", "RESFORGE_POD": "/tmp/pod"}
        if self.house.s3_endpoint:
            env["RESFORGE_S3_ENDPOINT"] = self.house.s3_endpoint
        if self.house.s3_region:
            env["AWS_DEFAULT_REGION"] = self.house.s3_region
        if on_pool and self.pool.cache is not None and self.pool.cache.size_gib is not None:
            # The volume is the pod's own; of a node's disk the trainer takes less.
            env["RESFORGE_CACHE_GIB"] = f"{CACHE_SHARE * self.pool.cache.size_gib:g}"
        return [{"name": name, "value": value} for name, value in env.items()]

    def _scratch(self, on_pool: bool) -> dict[str, Any]:
        cache = self.pool.cache
        if cache is None or not on_pool:
            return {"emptyDir": {}}
        if cache.host_path is not None:
            return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
        claim: dict[str, Any] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{cache.size_gib}Gi"}},
        }
        if cache.storage_class is not None:
            claim["storageClassName"] = cache.storage_class
        return {"ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": self.labels}, "spec": claim}}}

    def _near(self, topology_key: str) -> dict[str, Any]:
        """Prefer to be where the gang's other workers are. Required, it could wedge a gang larger than one place."""
        others = {JOB: self.request.job, ATTEMPT: str(self.request.attempt), NODE_TYPE: "worker"}
        term = {"topologyKey": topology_key, "labelSelector": {"matchLabels": others}}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}

    @staticmethod
    def _start(cpus: float, gpus: int) -> dict[str, str]:
        """What Ray counts as there for work; whole CPUs, which is all that it takes."""
        return {
            "num-cpus": str(math.ceil(cpus - 1e-6)),
            "num-gpus": str(gpus),
            "object-store-memory": str(OBJECT_STORE_BYTES),
        }


def _ports(**ports: int) -> list[dict[str, Any]]:
    return [{"name": name, "containerPort": port} for name, port in ports.items()]


def _mebibytes(gib: float) -> str:
    return f"{math.floor(gib * 1024)}Mi"


def _toleration(item: Toleration) -> dict[str, Any]:
    fields = {
        "key": item.key,
        "operator": item.operator,
        "value": item.value,
        "effect": item.effect,
        "tolerationSeconds": item.toleration_seconds,
    }
    return {name: value for name, value in fields.items() if value is not None}


# Autoscalers that would move a gang's pod to save a node.
_NO_MOVE = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}

_GONE_NODE = [
    {
        "key": f"node.kubernetes.io/{state}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": GONE_NODE_S,
    }
    for state in ("not-ready", "unreachable")
]
