"""A gang of one under its real driver: replaced when it dies, ended with it, and told of where it can't go on."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from resforge.storage import AttemptDocument, JobPrefix, Result, Stream, read_stream
from tests.s3 import S3Server
from tests.services.local.waiting import until
from tests.trainer.gang import write_job
from tests.trainer.test_resume import STEPS, small_spec

pytestmark = pytest.mark.stack
WARM_S = 60


class Driver:
    """`python -m trainer run` of one attempt, as Ray starts it."""

    def __init__(self, s3: S3Server, prefix: JobPrefix, attempt: int, scratch: Path, warm_s: float = 0) -> None:
        self.store, self.prefix, self.keys = s3.store(), prefix, prefix.attempt(attempt)
        told = AttemptDocument(number=attempt, resume_from=tuple(range(1, attempt)))
        self.store.put(self.keys.attempt, told.to_bytes())
        environment = {**os.environ, **s3.environment, "RESFORGE_S3_ENDPOINT": s3.endpoint, "GLOO_SOCKET_IFNAME": "lo",
                       "RESFORGE_SCRATCH": str(scratch), "RESFORGE_WARM_S": str(warm_s)}  # fmt: skip
        uri = f"s3://{s3.bucket}/{prefix.key.rstrip('/')}"
        self.process = subprocess.Popen([sys.executable, "-m", "trainer", "run", uri, str(attempt)], env=environment)

    def lines(self, stream: Stream = Stream.LOGS) -> str:
        number = int(self.keys.attempt.rstrip("/").split("/")[-2])
        return b"\n".join(line for _, line in read_stream(self.store, self.prefix, stream, [number])).decode()

    def worker(self) -> psutil.Process:
        """The worker, once it has reported a step."""

        def there() -> psutil.Process | None:
            assert self.process.poll() is None, "the driver has ended"
            told = re.findall(r"process (\d+) is rank 0 of 1", self.lines())
            return psutil.Process(int(told[-1])) if told and '"step"' in self.lines(Stream.METRICS) else None

        return until(there, within_s=90, what="a step of the worker")

    def result(self) -> Result:
        assert self.process.wait(120) in (0, 1)
        return Result.model_validate_json(self.store.get(self.keys.result))


@pytest.fixture
def drivers(s3: S3Server) -> Iterator[list[Driver]]:
    started: list[Driver] = []
    yield started
    for driver in started:
        driver.process.kill()
        driver.process.wait()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, and so one warm process."""
    return tmp_path_factory.mktemp("single")


def drive(s3: S3Server, job: str, drivers: list[Driver], scratch: Path, warm_s: float = 0, **changes: object) -> Driver:
    job = f"{job}-{'warm' if warm_s else 'cold'}"
    drivers.append(Driver(s3, write_job(s3.store(), small_spec(1, **changes), job), 1, scratch, warm_s))
    return drivers[-1]


def warm_process(scratch: Path) -> psutil.Process:
    """The warm process of that folder: of those with its command line, the one whose parent has another."""

    lines = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    found = [
        process
        for process, line in lines.items()
        if "trainer.warm" in line and any(word.startswith(str(scratch)) for word in line)
    ]
    [process] = [process for process in found if process.parent() not in found]
    return process


@pytest.mark.parametrize("warm_s", [0, WARM_S])
def test_one_worker_trains_without_ray(s3: S3Server, drivers: list[Driver], scratch: Path, warm_s: float) -> None:
    driver = drive(s3, "single-whole", drivers, scratch, warm_s)
    result = driver.result()
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    logs = driver.lines()
    assert "is rank 0 of 1" in logs
    assert "a cold start" not in logs
    assert "Started a local Ray" not in logs
    assert '"WorkersStarted"' in driver.lines(Stream.EVENTS)
    assert not [entry for entry in scratch.iterdir() if entry.name.startswith("single-whole-")]


@pytest.mark.parametrize("warm_s", [0, WARM_S])
def test_a_killed_worker_is_replaced(s3: S3Server, drivers: list[Driver], scratch: Path, warm_s: float) -> None:
    changes = {
        "training": {"global_batch": 32, "steps": 200}, "checkpoint": {"every_steps": 50, "every_epochs": None},
    }  # fmt: skip
    driver = drive(s3, "single-killed", drivers, scratch, warm_s, **changes)
    driver.worker().kill()
    assert driver.result().outcome == "succeeded"
    assert driver.lines(Stream.EVENTS).count('"WorkersStarted"') == 2
    assert "the process was ended by SIGKILL" in driver.lines()


def test_a_worker_that_keeps_dying_fails_the_attempt(s3: S3Server, drivers: list[Driver], scratch: Path) -> None:
    training = {"global_batch": 32, "steps": 300}
    driver = drive(s3, "single-dying", drivers, scratch, WARM_S, training=training, retry={"worker_restarts": 0})
    driver.worker().send_signal(signal.SIGSEGV)
    result = driver.result()
    assert (result.outcome, result.reason) == ("failed", "TrainingError")
    assert result.message == "rank 0: the process was ended by SIGSEGV"


def test_what_the_worker_says_of_its_end_is_the_message(s3: S3Server, drivers: list[Driver], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")  # where data are cached
    init = {"checkpoint": {"job": "job-aaaaaaaaaaaa"}}
    driver = drive(s3, "single-fault", drivers, tmp_path, init=init)
    result = driver.result()
    assert (result.outcome, result.reason) == ("failed", "SourceUnavailable")
    assert "job-aaaaaaaaaaaa has left nothing" in result.message


@pytest.mark.parametrize("warm_s", [0, WARM_S])
def test_the_worker_ends_with_its_driver(s3: S3Server, drivers: list[Driver], scratch: Path, warm_s: float) -> None:
    driver = drive(s3, "single-orphan", drivers, scratch, warm_s, training={"global_batch": 32, "steps": 100_000})
    worker = driver.worker()
    driver.process.kill()
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, within_s=20, what="its end")


def test_the_warm_process_dies_and_the_worker_goes_on(s3: S3Server, drivers: list[Driver], scratch: Path) -> None:
    driver = drive(s3, "single-bereft", drivers, scratch, WARM_S, training={"global_batch": 32, "steps": 200})
    driver.worker()
    warm_process(scratch).kill()
    assert driver.result().outcome == "succeeded"
    assert driver.lines(Stream.EVENTS).count('"WorkersStarted"') == 1


def test_object_storage_that_is_away_is_for_another_attempt(s3: S3Server, drivers: list[Driver], scratch: Path) -> None:
    training = {"global_batch": 32, "steps": 300}
    driver = drive(s3, "single-away", drivers, scratch, WARM_S, training=training, retry={"worker_restarts": 0})
    driver.worker()
    s3.stop()
    try:
        code = driver.process.wait(120)
    finally:
        s3.start()
    assert code == 3
    assert driver.store.find(driver.keys.result) is None
