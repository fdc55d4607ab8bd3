"""One real stack for all end-to-end tests: API, controller, Ray, S3 server, as `resforge up` starts them.

A real Prometheus scrapes it, where that is installed, and one job, the main job, is looked at by several modules.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from resforge import metrics
from resforge.client import Client
from resforge.jobs import Job
from resforge.s3 import ObjectStore
from tests import prometheus as real
from tests.deploy.promql import RULES
from tests.e2e.following import reach
from tests.embedded import EmbeddedStack, listening
from tests.services.local.waiting import until
from tests.system_packages import PROMETHEUS


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    stack = EmbeddedStack(tmp_path_factory.mktemp("e2e") / "home")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="package")
def scraping(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.PrometheusServer | None]:
    """A Prometheus with our rules that scrapes the stack; None where none is installed."""
    if PROMETHEUS.path() is None:
        yield None
        return
    connection = stack.connection
    parts = {"resforge-api": "url", "resforge-controller": "controller_metrics", "resforge-ray": "ray_metrics"}
    targets = {job: connection[key].removeprefix("http://") for job, key in parts.items()}
    server = real.PrometheusServer(tmp_path_factory.mktemp("prometheus"), targets, RULES)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class MainJob:
    """The main job, ended; what Ray's agent told of it while it ran, and a time at which Prometheus had all of that.

    `sockets` are those that took what came while its two workers were connected: process, address and port.
    """

    job: Job
    scraped: str
    during: float | None
    sockets: list[tuple[str, str, int]]


SCRAPED = (metrics.TRAIN_LOSS, metrics.IMAGES_PER_SECOND, metrics.STEP, metrics.GRAD_NORM)


@pytest.fixture(scope="package")
def main_job(stack: EmbeddedStack, scraping: real.PrometheusServer | None) -> MainJob:
    with stack.client() as client:
        job = client.submit({"recipe": "digits/resnet-20", "scaling": {"workers": 2}, "labels": {"test": "main"}})
        reach(client, job.id, 20, within_s=300)

        def scrape() -> str | None:
            text = httpx.get(stack.connection["ray_metrics"], trust_env=False).text
            return text if all(sample(text, metric, job.id) for metric in SCRAPED) else None

        sockets = listening(stack)
        scraped = until(scrape, within_s=60, what="the trainer's metrics at Ray's agent")
        during = None
        if scraping is not None:
            # The last to come: each worker's agent hands on by itself, and a rate takes two scrapes.
            own = f'job_id="{job.id}"'
            last = [
                f"rate({metrics.scraped_name(metrics.WORKER_SECONDS)}{{{own}}}[1m])",
                f'{metrics.scraped_name(metrics.WORKER_IMAGES_PER_SECOND)}{{{own}, rank="1"}}',
                f"{metrics.scraped_name(metrics.TEST_TOP1)}{{{own}}}",
                f"{metrics.scraped_name(metrics.CHECKPOINT_SECONDS)}{{{own}}}",
            ]
            until(lambda: all(map(scraping.query, last)), within_s=60, what="the job's metrics in Prometheus")
            during = time.time()
        return MainJob(client.wait(job.id, 180), scraped, during, sockets)


def sample(text: str, metric: metrics.Metric, job_id: str) -> float:
    """The value of a metric of that job's first attempt; 0 where there is none yet."""
    for line in text.splitlines():
        if line.startswith(f"ray_{metric.name}{{") and f'job_id="{job_id}"' in line and 'attempt="1"' in line:
            return float(line.rpartition(" ")[2])
    return 0.0


@pytest.fixture
def client(stack: EmbeddedStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client


@pytest.fixture
def objects(stack: EmbeddedStack, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The stack's bucket, read with the keys that connection.json gives to people."""
    connection = stack.connection
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", connection["s3_access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", connection["s3_secret_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return ObjectStore(connection["s3_bucket"], endpoint=connection["s3_endpoint"])
