"""The controller and the launcher together, on a real Ray, S3 and database; only the trainer is a stand-in."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from resforge.jobs import TERMINAL, DatasetInfo, Job, JobState, Reason
from resforge.spec import ScalingSpec, TrainSpec
from services.controller.loop import Controller
from services.launchers.ray_jobs import RayJobs
from services.settings import Settings
from services.store.store import JobStore
from tests.ray_cluster import RayCluster
from tests.s3 import S3Server, start_s3

pytestmark = pytest.mark.stack

# Dies by itself in its first attempt; in its second it succeeds, if the first may be resumed.
DRIVER = """
import os, signal, sys
from datetime import UTC, datetime
os.environ.update({environment!r})
from resforge.metrics import Progress
from resforge.s3 import ObjectStore
from resforge.storage import AttemptDocument, Heartbeat, JobDocument, JobPrefix, Result

bucket, _, path = sys.argv[1].removeprefix("s3://").partition("/")
number, now = int(sys.argv[2]), datetime.now(UTC)
store, prefix = ObjectStore(bucket, endpoint={endpoint!r}), JobPrefix(path + "/")
keys = prefix.attempt(number)
job = JobDocument.model_validate_json(store.get(prefix.spec))
told = AttemptDocument.model_validate_json(store.get(keys.attempt))
store.put(keys.heartbeat, Heartbeat(at=now, beat=1, every_s=1).to_bytes())
step = Progress(at=now, attempt=number, step=number, total_steps=9, epoch=0, total_epochs=1)
store.put(keys.progress, step.model_dump_json().encode())
if number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
outcome = "succeeded" if told.resume_from == (1,) and job.spec.scaling.workers == 1 else "failed"
store.put(keys.result, Result(at=now, outcome=outcome, step=9).to_bytes())
"""


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Server]:
    server = start_s3(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def store(sqlite_url: str, connected: Callable[[str], Engine], project: str) -> JobStore:
    store = JobStore(connected(sqlite_url))
    store.create_project(project)
    return store


@pytest.fixture
def controller(ray: RayCluster, s3: S3Server, store: JobStore, tmp_path: Path) -> Iterator[Controller]:
    program = tmp_path / "driver.py"
    program.write_text(DRIVER.format(environment=s3.environment, endpoint=s3.endpoint))
    launcher = RayJobs(ray.dashboard, trainer_command=f"{sys.executable} {program}", token_path=ray.token_path)
    settings = Settings(database_url="sqlite:///unused", s3_bucket=s3.bucket, s3_endpoint=s3.endpoint)
    made = Controller(store, s3.store(), launcher, settings)
    yield made
    made.close()
    launcher.close()


def test_jobs_on_a_real_cluster(
    controller: Controller, store: JobStore, project: str, spec: TrainSpec, digits: DatasetInfo
) -> None:
    def submit(workers: int) -> Job:
        asked = spec.model_copy(update={"scaling": ScalingSpec(workers=workers)})
        return store.submit(project, asked, digits)[0]

    too_big, small = submit(4), submit(1)
    deadline = time.monotonic() + 120
    while store.job(project, small.id).state not in TERMINAL and time.monotonic() < deadline:
        controller.tick()
        time.sleep(0.1)
    ended = store.job(project, small.id)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2), ended
    first, second = store.attempts(project, small.id)
    assert (first.reason, second.resume_from) == (Reason.DRIVER_LOST, (1,))
    assert "the launcher calls it failed" in first.message
    waiting = store.job(project, too_big.id)
    assert (waiting.state, waiting.reason) == (JobState.QUEUED, Reason.UNSCHEDULABLE)
    assert "1 node with 2 CPUs" in waiting.message
