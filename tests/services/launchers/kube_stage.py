"""What the tests of the KubeRay launcher play on: a stand-in API server, the cluster behind it, and pools."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from services.launchers.base import Gang, LauncherUnavailable, LaunchRequest, Observation
from services.launchers.cluster_view import View
from services.launchers.kuberay import KubeRay
from services.launchers.pools import Pool, Pools
from services.launchers.rayjob import House
from tests.kube.cluster import Cluster
from tests.kube.server import KubeApi, kube_api

T = TypeVar("T")
JOB = "job-abcdefgh2345"
NAME = f"{JOB}-1"
GANG = Gang(workers=12, cpus_per_worker=4, gpus_per_worker=1)
PLAIN = Pool(name="plain", gpus_per_node=8, cpus_per_node=64, memory_gib_per_node=512, max_nodes=4)
QUEUED = Pool(**{**PLAIN.model_dump(), "name": "queued", "queue": "training"})
POOLS = Pools(pools=(PLAIN, QUEUED))


def house(namespace: str = "jobs", **changes: Any) -> House:
    values: dict[str, Any] = {
        "namespace": namespace,
        "image": "registry.example/trainer:1",
        "service_account": "trainer",
        "ray_version": "2.60.0",
        "trainer_command": "python -m trainer run",
        "bucket": "resforge",
        **changes,
    }
    return House(**values)


def request(name: str = NAME, *, pool: str | None = None, gang: Gang | None = GANG, **changes: Any) -> LaunchRequest:
    job, _, number = name.rpartition("-")
    uri = f"s3://resforge/demo/{job}"
    return LaunchRequest(name, uri, int(number), gang=gang, pool=pool, project="demo", **changes)


@dataclass
class KubeStage:
    api: KubeApi
    cluster: Cluster
    launcher: KubeRay

    def until(self, accept: Callable[[Observation], object], name: str = NAME, timeout_s: float = 20) -> Observation:
        """Observe an attempt until the observation is accepted; the cluster goes on meanwhile.

        A launcher that can't tell for now is asked again, as the controller does.
        """

        def look() -> Observation | LauncherUnavailable:
            self.cluster.step()
            try:
                return self.launcher.observe(name)
            except LauncherUnavailable as error:
                return error

        seen = wait_for(look, lambda seen: isinstance(seen, Observation) and accept(seen), timeout_s)
        assert isinstance(seen, Observation)
        return seen

    def phase(self, *phases: str, name: str = NAME) -> Observation:
        return self.until(lambda seen: seen.phase in phases, name)

    def start(self, name: str = NAME, **options: Any) -> None:
        """Submit an attempt and let it run."""
        self.launcher.submit(request(name, **options))
        self.until(lambda seen: seen.phase == "running" and name in self.cluster.drivers, name)
        wait_for(lambda: all(view.find(name) for view in self._views()), bool)  # as its copies have it too

    def _views(self) -> tuple[View, ...]:
        jobs, pods = self.launcher._jobs, self.launcher._pods
        assert jobs is not None
        assert pods is not None
        return jobs, pods


def wait_for(look: Callable[[], T], accept: Callable[[T], object], timeout_s: float = 20) -> T:
    deadline = time.monotonic() + timeout_s
    while not accept(seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; last seen: {seen}")
        time.sleep(0.02)
    return seen


@contextmanager
def kube_stage(pools: Pools = POOLS, **options: Any) -> Iterator[KubeStage]:
    with kube_api() as api:
        launcher = KubeRay(pools, house(), api=api.url, timeout_s=10.0, **options)
        try:
            yield KubeStage(api, Cluster(api), launcher)
        finally:
            launcher.close()
