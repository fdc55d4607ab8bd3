import sys
from collections.abc import Callable, Iterator

import pytest

from services.launchers.ray_jobs import RayJobs
from tests.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="package")
def ray() -> Iterator[RayCluster]:
    # A usage report every second, so that a test of the free figures need not wait for five.
    with ray_cluster(cpus=2, env={"AUTOSCALER_UPDATE_INTERVAL_S": "1"}) as cluster:
        yield cluster


@pytest.fixture
def launcher(ray: RayCluster) -> Iterator[Callable[[str], RayJobs]]:
    """Makes a launcher on the cluster whose "trainer" is the Python program given."""
    made: list[RayJobs] = []

    def make(program: str) -> RayJobs:
        path = ray.folder / f"program-{len(list(ray.folder.glob('program-*')))}.py"
        path.write_text(program)
        made.append(RayJobs(ray.dashboard, trainer_command=f"{sys.executable} {path}", token_path=ray.token_path))
        return made[-1]

    yield make
    for item in made:
        item.close()
