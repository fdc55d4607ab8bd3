"""An operator's `helm upgrade` in the middle of jobs: real controllers as processes, started with the environment and
the pools that the chart renders, one after the other as the Deployment rolls, over a stand-in Kubernetes.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from resforge.jobs import AttemptState, DatasetInfo, Job, JobState, Reason
from resforge.s3 import ObjectStore
from resforge.spec import RetrySpec, ScalingSpec, TrainSpec
from resforge.storage import JobPrefix
from services.store.store import JobStore
from tests.deploy import helm
from tests.kube.cluster import Cluster
from tests.kube.server import KubeApi, kube_api
from tests.s3 import S3Server, free_port, start_s3
from tests.services.controller.stage import Driver
from tests.services.local.waiting import until

pytestmark = [pytest.mark.stack, pytest.mark.postgres]

S = JobState


def pool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "cpus_per_node": 2, "memory_gib_per_node": 16, "max_nodes": 1, **more}


BEFORE: dict[str, Any] = {
    "database": {"existingSecret": "database"},
    "objectStorage": {"bucket": "resforge"},
    "jobs": {"namespace": "jobs"},
    "images": {"trainer": {"repository": "registry.example/trainer", "tag": "1"}},
    "controller": {"tickSeconds": 0.1, "leaseSeconds": 5},
    "pools": [pool("small"), pool("extra"), pool("queued", queue="training", max_nodes=8)],
}
AFTER = helm.merge(
    BEFORE,
    {
        "images": {"trainer": {"tag": "2"}},
        "controller": {"stopGraceSeconds": 90, "tickSeconds": 0.2},
        "jobs": {"serviceAccount": {"create": False, "name": "another"}},
        "heads": {"node_selector": {"role": "heads"}},
        "pools": [pool("small", max_nodes=2, node_selector={"kind": "new"}), pool("queued", queue="training")],
    },
)


@dataclass
class Upgraded:
    """What the releases share."""

    api: KubeApi
    cluster: Cluster
    store: JobStore
    objects: ObjectStore
    environment: dict[str, str]
    folder: Path
    project: str
    spec: TrainSpec
    dataset: DatasetInfo
    stages: contextlib.ExitStack
    running: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def release(self, values: dict[str, Any]) -> None:
        """Start a controller as the chart says, and end the one before once it answers."""
        items = helm.objects(helm.render(values, upgrade=bool(self.running)))
        named = {(item["kind"], item["metadata"]["name"]): item for item in items}
        pools = self.folder / f"pools-{len(self.running)}.yaml"
        pools.write_text(named["ConfigMap", "resforge-pools"]["data"]["pools.yaml"])
        [container] = named["Deployment", "resforge-controller"]["spec"]["template"]["spec"]["containers"]
        told = {item["name"]: item["value"] for item in container["env"] if item.get("value") is not None}
        port = free_port()
        here = {"RESFORGE_POOLS_FILE": str(pools), "RESFORGE_METRICS_PORT": str(port), "RESFORGE_HOST": "127.0.0.1"}
        environment = {**os.environ, **told, **self.environment, **here}
        hook = [sys.executable, "-m", "services", "migrate"]
        subprocess.run(hook, env=environment, check=True, timeout=120)
        log = self.stages.enter_context((self.folder / f"controller-{len(self.running)}.log").open("wb"))
        command = [sys.executable, "-m", "services", *container["args"]]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.stages.callback(process.kill)
        probe = container["startupProbe"]["httpGet"]["path"]

        def answers() -> bool:
            assert process.poll() is None, (self.folder / f"controller-{len(self.running)}.log").read_text()
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"http://127.0.0.1:{port}{probe}", trust_env=False).status_code == 200
            return False

        until(answers, what="the new controller's probe")
        if self.running:
            self.running[-1].send_signal(signal.SIGTERM)
            assert self.running[-1].wait(30) == 0
        self.running.append(process)

    def submit(self, pool: str, workers: int = 1) -> Job:
        scaling = ScalingSpec(workers=workers, pool=pool)
        changes = {"scaling": scaling, "retry": RetrySpec(infrastructure=3)}
        return self.store.submit(self.project, self.spec.model_copy(update=changes), self.dataset)[0]

    def job(self, job: Job) -> Job:
        return self.store.job(self.project, job.id)

    def runs(self, job: Job, attempt: int = 1) -> Driver:
        """The driver of an attempt, once the job runs in it."""
        until(lambda: f"{job.id}-{attempt}" in self.cluster.drivers, what=f"the driver of {job.id}")
        driver = Driver(self.objects, JobPrefix.of(self.project, job.id).attempt(attempt), attempt)
        driver.heartbeat()
        driver.progress(1)
        until(lambda: (self.job(job).state, self.job(job).attempts) == (S.RUNNING, attempt), what=f"{job.id} to run")
        return driver

    def rayjob(self, job: Job, attempt: int = 1) -> dict[str, Any]:
        found = self.api.get("rayjobs", f"{job.id}-{attempt}")
        assert found is not None
        return found

    def succeeds(self, job: Job, driver: Driver) -> None:
        driver.succeed()
        self.cluster.finish(f"{job.id}-{driver.attempt}")
        until(lambda: self.job(job).state is S.SUCCEEDED, what=f"the end of {job.id}")


@pytest.fixture
def upgraded(
    postgres_url: str,
    connected: Callable[[str], Engine],
    project: str,
    spec: TrainSpec,
    digits: DatasetInfo,
    tmp_path: Path,
) -> Iterator[Upgraded]:
    store = JobStore(connected(postgres_url))
    store.create_project(project)
    s3_server: S3Server = start_s3(tmp_path)
    objects = s3_server.store()
    with kube_api() as api, contextlib.ExitStack() as stages:
        environment = {
            **s3_server.environment,
            "RESFORGE_DATABASE_URL": postgres_url,
            "RESFORGE_S3_BUCKET": s3_server.bucket,
            "RESFORGE_S3_ENDPOINT": s3_server.endpoint,
            "RESFORGE_KUBE_API": api.url,
        }
        cluster = Cluster(api)
        stages.enter_context(cluster.working())
        yield Upgraded(api, cluster, store, objects, environment, tmp_path, project, spec, digits, stages)
        assert api.refusals == []
    s3_server.stop()


def image_of(rayjob: dict[str, Any]) -> str:
    return str(rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])


def test_an_upgrade_with_other_images_pools_and_settings_loses_no_job(upgraded: Upgraded) -> None:
    upgraded.release(BEFORE)
    trains, waits = upgraded.submit("small", workers=2), upgraded.submit("small")
    gone, held_up = upgraded.submit("extra", workers=2), upgraded.submit("extra")
    queued, starts = upgraded.submit("queued", workers=4), upgraded.submit("queued")
    upgraded.cluster.stays[f"{starts.id}-1"] = "unscheduled"
    drivers = {job.id: upgraded.runs(job) for job in (trains, gone)}
    for job, reason in ((waits, Reason.NO_CAPACITY), (held_up, Reason.NO_CAPACITY), (queued, Reason.NO_CAPACITY)):
        until(lambda job=job, reason=reason: upgraded.job(job).reason is reason, what=f"{reason} of {job.id}")
    upgraded.cluster.admit(f"{starts.id}-1")
    until(lambda: upgraded.job(starts).reason is Reason.UNSCHEDULABLE, what="the pods that find no node")
    before = {job.id: upgraded.rayjob(job) for job in (trains, gone, queued, starts)}

    upgraded.release(AFTER)

    # What waited for room finds it in the larger pool, and is made as the new values say.
    second = upgraded.runs(waits)
    made = upgraded.rayjob(waits)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert made["containers"][0]["image"] == "registry.example/trainer:2"
    assert (made["serviceAccountName"], made["nodeSelector"]) == ("another", {"kind": "new"})
    # What ran, was starting, or was in Kueue's queue is the same RayJob as before.
    for job in (trains, gone, queued, starts):
        now = upgraded.rayjob(job)
        assert now["metadata"]["uid"] == before[job.id]["metadata"]["uid"]
        assert image_of(now) == "registry.example/trainer:1"
    upgraded.cluster.admit(f"{queued.id}-1")
    del upgraded.cluster.stays[f"{starts.id}-1"]
    drivers |= {job.id: upgraded.runs(job) for job in (queued, starts)}
    drivers[trains.id].progress(50)
    until(lambda: (seen := upgraded.job(trains).progress) is not None and seen.step == 50, what="the training's step")
    for job, driver in ((trains, drivers[trains.id]), (waits, second), (queued, drivers[queued.id])):
        upgraded.succeeds(job, driver)
    # Of a pool that is no more, what runs goes on, and what needs a place waits with the reason, and is not failed.
    until(lambda: "there is no pool extra any more" in upgraded.job(held_up).message, what="the word on the pool")
    assert upgraded.job(held_up).state is S.QUEUED
    upgraded.cluster.disrupt(f"{gone.id}-1-head", "DeletionByTaintManager", "deleting due to NoExecute taint")
    until(lambda: upgraded.job(gone).state is S.RECOVERING, within_s=60, what="the loss of its head")
    until(lambda: "there is no pool extra any more" in upgraded.job(gone).message, what="the word on the pool")

    upgraded.release(helm.merge(AFTER, {"pools": [*AFTER["pools"], pool("extra", max_nodes=2)]}))

    upgraded.succeeds(gone, upgraded.runs(gone, 2))
    upgraded.succeeds(held_up, upgraded.runs(held_up))
    upgraded.succeeds(starts, drivers[starts.id])
    first, again = upgraded.store.attempts(upgraded.project, gone.id)
    assert (first.state, first.reason, again.resume_from) == (AttemptState.LOST, Reason.NODE_LOST, (1,))
    head = upgraded.rayjob(gone, 2) if upgraded.api.exists("rayjobs", f"{gone.id}-2") else None
    assert head is None or image_of(head) == "registry.example/trainer:2"
    until(lambda: not upgraded.api.names("rayjobs") and not upgraded.api.names("pods"), what="nothing to be left")
    # KubeRay submitted the one that lost its head once more; the controllers started nothing twice.
    started = [name for name in upgraded.cluster.drivers if name != f"{gone.id}-1"]
    assert sorted(started) == sorted(
        [*(f"{job.id}-1" for job in (trains, waits, queued, starts, held_up)), f"{gone.id}-2"]
    )
    assert [process.poll() for process in upgraded.running] == [0, 0, None]
