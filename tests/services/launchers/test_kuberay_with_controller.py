"""The real controller, database and object storage over the KubeRay launcher, with a stand-in Kubernetes behind it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from resforge.jobs import TERMINAL, AttemptState, DatasetInfo, Job, JobState, Reason
from resforge.s3 import ObjectStore
from resforge.spec import RetrySpec, ScalingSpec, TrainSpec
from resforge.storage import JobPrefix
from services.controller.loop import Controller
from services.launchers import cluster_view
from services.launchers.kuberay import KubeRay
from services.launchers.pools import Pool, Pools
from services.settings import Settings
from services.store.store import JobStore
from tests.kube.cluster import Cluster
from tests.kube.server import KubeApi, kube_api
from tests.s3 import S3Server, start_s3
from tests.services.controller.stage import Driver
from tests.services.launchers.kube_stage import house

pytestmark = pytest.mark.stack

SMALL = Pool(name="small", cpus_per_node=2, memory_gib_per_node=16, max_nodes=1)
QUEUED = Pool(name="queued", cpus_per_node=64, memory_gib_per_node=512, max_nodes=4, queue="training")
S = JobState


@dataclass
class Town:
    """All parts, and what tests ask of them."""

    api: KubeApi
    cluster: Cluster
    launcher: KubeRay
    controller: Controller
    store: JobStore
    objects: ObjectStore
    project: str
    spec: TrainSpec
    dataset: DatasetInfo

    def submit(self, workers: int = 1, pool: str | None = None, infrastructure: int = 8) -> Job:
        changes = {
            "scaling": ScalingSpec(workers=workers, pool=pool),
            "retry": RetrySpec(infrastructure=infrastructure),
        }
        return self.store.submit(self.project, self.spec.model_copy(update=changes), self.dataset)[0]

    def job(self, job: Job) -> Job:
        return self.store.job(self.project, job.id)

    def until(self, accept: Callable[[], object], timeout_s: float = 40) -> None:
        """Tick and let the cluster go on, until it is so."""
        deadline = time.monotonic() + timeout_s
        while not accept():
            jobs = self.store.jobs(self.project)[0] if time.monotonic() > deadline else None
            assert jobs is None, jobs
            self.controller.tick()
            self.cluster.step()
            time.sleep(0.02)

    def running(self, job: Job, attempt: int = 1) -> Driver:
        """Bring an attempt to RUNNING, and give its driver."""
        name = f"{job.id}-{attempt}"
        self.until(lambda: name in self.cluster.drivers)
        driver = Driver(self.objects, JobPrefix.of(self.project, job.id).attempt(attempt), attempt)
        driver.heartbeat()
        driver.progress(1)
        self.until(lambda: (self.job(job).state, self.job(job).attempts) == (S.RUNNING, attempt))
        return driver


@pytest.fixture
def town(
    sqlite_url: str,
    connected: Callable[[str], Engine],
    project: str,
    spec: TrainSpec,
    digits: DatasetInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Town]:
    monkeypatch.setattr(cluster_view, "PATIENCE_S", 0.5)
    monkeypatch.setattr(cluster_view, "BACKOFF_S", (0.05, 0.2))
    store = JobStore(connected(sqlite_url))
    store.create_project(project)
    s3: S3Server = start_s3(tmp_path)
    objects = s3.store()
    with kube_api() as api:
        launcher = KubeRay(Pools(pools=(SMALL, QUEUED)), house(), api=api.url, timeout_s=3.0)
        settings = Settings(database_url="sqlite:///unused", s3_bucket=s3.bucket, stop_grace_s=1.0)
        controller = Controller(store, objects, launcher, settings)
        yield Town(api, Cluster(api), launcher, controller, store, objects, project, spec, digits)
        assert api.refusals == []
        controller.close()
        launcher.close()
    s3.stop()


def test_a_job_from_its_submission_to_the_last_pod(town: Town) -> None:
    job = town.submit()
    driver = town.running(job)
    manifest = town.api.get("rayjobs", f"{job.id}-1")
    assert manifest is not None
    assert manifest["metadata"]["labels"]["resforge.dev/job-id"] == job.id
    assert manifest["spec"]["entrypoint"].endswith(f"s3://{town.objects.bucket}/{town.project}/{job.id} 1")
    driver.succeed()
    town.cluster.finish(f"{job.id}-1")
    town.until(lambda: town.job(job).state is S.SUCCEEDED)
    town.until(lambda: not town.api.names("rayjobs") and not town.api.names("pods"))


def test_a_lost_node_makes_a_new_attempt_that_resumes(town: Town) -> None:
    job = town.submit()
    town.running(job)
    head = town.cluster.pods(f"{job.id}-1", "head")[0]
    town.until(lambda: town.launcher._check()[1].find(f"{job.id}-1"))
    town.cluster.disrupt(head, "DeletionByTaintManager", "deleting due to NoExecute taint")
    driver = town.running(job, 2)
    first, second = town.store.attempts(town.project, job.id)
    assert (first.state, first.reason) == (AttemptState.LOST, Reason.NODE_LOST)
    assert f"node-of-{head}" in first.message
    assert second.resume_from == (1,)
    driver.succeed()
    town.cluster.finish(f"{job.id}-2")
    town.until(lambda: town.job(job).state is S.SUCCEEDED and not town.api.names("rayjobs"))


def test_a_gang_waits_in_the_service_for_a_pool_and_in_kueue_for_a_queue(town: Town) -> None:
    first, second = town.submit(2), town.submit(1)
    too_big, queued = town.submit(4), town.submit(64, pool="queued")
    town.running(first)
    town.until(lambda: town.job(second).reason is Reason.NO_CAPACITY)
    assert town.job(too_big).reason is Reason.UNSCHEDULABLE
    assert "1 node with 2 CPUs" in town.job(too_big).message
    name = f"{queued.id}-1"
    town.until(lambda: town.job(queued).reason is Reason.NO_CAPACITY)
    assert (town.job(queued).state, town.job(queued).message) == (S.STARTING, "Kueue: waits")
    assert sorted(town.api.names("rayjobs")) == sorted([f"{first.id}-1", name])
    town.cluster.admit(name)
    town.running(queued)
    assert town.job(queued).reason is None


def test_waiting_in_a_queue_is_no_failure_to_start(town: Town) -> None:
    town.controller._policy = town.controller._policy.__class__(60, 0.2, 1)
    job = town.submit(pool="queued")
    town.until(lambda: town.job(job).reason is Reason.NO_CAPACITY)
    later = time.monotonic() + 1.0
    town.until(lambda: time.monotonic() > later)
    assert (town.job(job).state, town.job(job).attempts) == (S.STARTING, 1)


def test_kueues_preemption_ends_the_attempt_and_another_waits(town: Town) -> None:
    job = town.submit(pool="queued")
    town.until(lambda: town.job(job).reason is Reason.NO_CAPACITY)
    town.cluster.admit(f"{job.id}-1")
    town.running(job)
    town.cluster.preempt(f"{job.id}-1")
    town.until(lambda: town.job(job).attempts == 2 and town.job(job).reason is Reason.NO_CAPACITY)
    first = town.store.attempts(town.project, job.id)[0]
    assert (first.state, first.reason) == (AttemptState.LOST, Reason.PREEMPTED)
    assert "higher priority" in first.message
    town.cluster.admit(f"{job.id}-2")
    town.running(job, 2)


@pytest.mark.parametrize("pool", ["small", "queued"])
def test_an_attempt_that_makes_way_ends_by_itself_and_nobody_stops_its_driver(town: Town, pool: str) -> None:
    job = town.submit(pool=pool)
    name = f"{job.id}-1"
    if pool == "queued":
        town.until(lambda: town.job(job).reason is Reason.NO_CAPACITY)
        town.cluster.admit(name)
    driver = town.running(job)
    town.cluster.grace_s = 60
    if pool == "queued":
        town.cluster.preempt(name)
    else:
        town.cluster.disrupt(f"{name}-head", "EvictionByEvictionAPI", "Eviction API: evicting")
    later = time.monotonic() + 1.0
    town.until(lambda: time.monotonic() > later)
    assert (town.job(job).state, town.job(job).attempts, town.cluster.stopped) == (S.RUNNING, 1, [])
    driver.stop()  # the checkpoint is written
    town.cluster.grace_s = 0
    town.until(lambda: town.job(job).attempts == 2)
    first, second = town.store.attempts(town.project, job.id)
    assert (first.state, first.reason, second.resume_from) == (AttemptState.STOPPED, Reason.PREEMPTED, (1,))


def test_an_image_that_cannot_be_pulled_is_told_and_given_up(town: Town) -> None:
    job = town.submit(infrastructure=0)
    town.cluster.stays[f"{job.id}-1"], town.cluster.message = "image", "manifest unknown"
    town.until(lambda: town.job(job).reason is Reason.IMAGE_PULL_FAILED)
    assert "manifest unknown" in town.job(job).message
    town.controller._policy = town.controller._policy.__class__(60, 0.5, 1)
    town.until(lambda: town.job(job).state is S.FAILED)
    assert town.job(job).reason is Reason.IMAGE_PULL_FAILED
    town.until(lambda: not town.api.names("rayjobs"))


def test_a_cancelled_job_leaves_nothing(town: Town) -> None:
    job = town.submit()
    town.running(job)  # and its driver does not heed control.json
    town.store.request_cancel(town.project, job.id)
    town.until(lambda: town.job(job).state is S.CANCELLED)
    town.until(lambda: not town.api.names("rayjobs") and not town.api.names("pods"))


def test_the_api_server_is_away_for_a_while(town: Town) -> None:
    runs, waits = town.submit(2), town.submit(1)
    driver = town.running(runs)
    town.api.stop_answering()
    town.until(lambda: town.job(runs).reason is Reason.LAUNCHER_UNAVAILABLE)
    town.until(lambda: town.job(waits).reason is Reason.LAUNCHER_UNAVAILABLE)
    assert town.api.url in town.job(runs).message
    driver.progress(50)
    driver.heartbeat()
    town.until(lambda: (seen := town.job(runs).progress) is not None and seen.step == 50)  # jobs go on
    town.api.answer_again()
    town.until(lambda: town.job(runs).reason is None and town.job(waits).reason is Reason.NO_CAPACITY)
    assert (town.job(runs).state, town.job(runs).attempts) == (S.RUNNING, 1)
    driver.succeed()
    town.cluster.finish(f"{runs.id}-1")
    second = town.running(waits)
    second.succeed()
    town.cluster.finish(f"{waits.id}-1")
    town.until(lambda: all(town.job(job).state is S.SUCCEEDED for job in (runs, waits)))
    assert sorted(town.cluster.drivers) == sorted([f"{runs.id}-1", f"{waits.id}-1"])


def test_answers_that_are_lost_start_nothing_twice(town: Town) -> None:
    town.api.fail(verb="create", after=True)
    town.api.fail(verb="create", code=500)
    town.api.fail(verb="get", code=429, times=2)
    jobs = [town.submit(), town.submit()]
    for job in jobs:
        town.running(job).succeed()
        town.cluster.finish(f"{job.id}-1")
    town.until(lambda: all(town.job(job).state in TERMINAL for job in jobs) and not town.api.names("rayjobs"))
    assert [(town.job(job).state, town.job(job).attempts) for job in jobs] == [(S.SUCCEEDED, 1)] * 2
    assert len(town.cluster.drivers) == 2


def test_a_new_controller_takes_up_what_the_old_one_started(town: Town) -> None:
    job = town.submit()
    driver = town.running(job)
    town.controller.close()
    settings = Settings(database_url="sqlite:///unused", s3_bucket=town.objects.bucket)
    launcher = KubeRay(Pools(pools=(SMALL, QUEUED)), house(), api=town.api.url)
    town.controller = Controller(town.store, town.objects, launcher, settings)
    driver.progress(7)
    town.until(lambda: (seen := town.job(job).progress) is not None and seen.step == 7)
    driver.succeed()
    town.cluster.finish(f"{job.id}-1")
    town.until(lambda: town.job(job).state is S.SUCCEEDED and not town.api.names("rayjobs"))
    assert town.cluster.drivers == [f"{job.id}-1"]
    launcher.close()
