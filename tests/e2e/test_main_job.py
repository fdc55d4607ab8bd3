"""The main job: posted over REST, trained by real workers on real digits, pulled from S3 and evaluated elsewhere."""

import json
import math
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from resforge import metrics
from resforge.client import Client
from resforge.jobs import Job
from resforge.resources import EvalEntry, TrainEntry
from tests.e2e.conftest import MainJob, sample
from tests.embedded import EmbeddedStack, off_loopback

# The first test to ask waits for the stack and for the job.
pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


@pytest.fixture
def job(main_job: MainJob) -> Job:
    return main_job.job


def test_it_succeeds_with_more_than_96_percent(job: Job) -> None:
    assert (job.state, job.attempts, job.message) == ("SUCCEEDED", 1, job.message)
    assert job.result is not None
    assert job.result.top1 > 0.96
    assert job.result.images == 360
    assert job.progress is not None
    assert (job.progress.step, job.progress.restarts) == (352, 0)


def test_its_history_tells_every_transition_and_checkpoint(client: Client, job: Job) -> None:
    events = client.events(job.id)
    assert [event.after for event in events if event.type == "JobStateChanged"] == ["STARTING", "RUNNING", "SUCCEEDED"]
    types = [event.type for event in events]
    assert types.count("CheckpointCommitted") == 16
    assert types.count("WorkersStarted") == 1
    assert [event.id for event in events] == sorted(event.id for event in events)


def test_the_best_checkpoint_evaluates_to_what_was_reported(client: Client, job: Job, tmp_path: Path) -> None:
    assert job.result is not None
    best = client.checkpoint(job.id, "best")
    assert best.evaluation is not None
    assert best.evaluation.top1 == max(item.evaluation.top1 for item in client.checkpoints(job.id) if item.evaluation)
    client.download(job.id, "best", tmp_path / "best")
    command = [sys.executable, "-m", "trainer", "evaluate", str(tmp_path / "best"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    evaluated = json.loads(done.stdout)
    assert (evaluated["top1"], evaluated["top5"], evaluated["images"]) == (job.result.top1, job.result.top5, 360)


def test_its_metrics_are_all_there_in_order(client: Client, job: Job) -> None:
    points = client.metrics(job.id)
    training = [point for point in points if isinstance(point, TrainEntry)]
    steps = [point.step for point in training]
    assert steps == sorted(set(steps))
    assert steps[-1] == 352
    assert all(point.images_per_second > 0 and point.grad_norm and point.eta_s >= 0 for point in training)
    assert training[-1].loss is not None
    assert training[0].loss is not None
    assert training[-1].loss < training[0].loss
    assert [point.epoch for point in points if isinstance(point, EvalEntry)] == list(range(16))


def test_driver_and_workers_are_heard_in_the_logs(client: Client, job: Job) -> None:
    lines = client.logs(job.id)
    sources = {line.source for line in lines}
    assert "driver" in sources
    assert any("RayTrainWorker" in source for source in sources)
    text = "\n".join(line.line for line in lines)
    assert "is rank 0 of 2" in text
    assert "is rank 1 of 2" in text
    assert "\x1b" not in text


def test_rays_agent_tells_prometheus_of_the_job(main_job: MainJob) -> None:
    job, text = main_job.job, main_job.scraped
    assert 0 < sample(text, metrics.STEP, job.id) <= 352
    assert sample(text, metrics.IMAGES_PER_SECOND, job.id) > 0
    assert math.isfinite(sample(text, metrics.TRAIN_LOSS, job.id))
    assert not any("NaN" in line for line in text.splitlines() if job.id in line)


def test_no_secret_was_logged_or_shown_by_ray(stack: EmbeddedStack, client: Client, job: Job) -> None:
    secrets = [stack.connection["s3_secret_key"], stack.connection["api_key"], stack.home.ray_token.read_text().strip()]
    headers = {"Authorization": f"Bearer {secrets[-1]}"}
    shown = httpx.get(f"{stack.connection['ray_dashboard']}/api/jobs/", headers=headers, trust_env=False).text
    assert job.id in shown
    said = shown + "\n".join(line.line for line in client.logs(job.id))
    assert not any(secret in said for secret in secrets)


def test_its_workers_listen_on_loopback_only(main_job: MainJob) -> None:
    assert len([name for name, _, _ in main_job.sockets if name == "ray::RayTrainWorker"]) > 2
    assert off_loopback(main_job.sockets) == []
