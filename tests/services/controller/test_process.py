"""The controller as a process: `python -m services controller`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resforge.jobs import DatasetInfo, Reason
from resforge.spec import TrainSpec
from services.controller.leadership import LEASE
from services.store import connect
from services.store.store import JobStore
from tests.s3 import S3Server, free_port

pytestmark = pytest.mark.stack


@contextmanager
def controller(database_url: str, s3: S3Server, ray_dashboard: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        **s3.environment,
        "RESFORGE_DATABASE_URL": database_url,
        "RESFORGE_S3_BUCKET": s3.bucket,
        "RESFORGE_S3_ENDPOINT": s3.endpoint,
        "RESFORGE_RAY_DASHBOARD": ray_dashboard,
        "RESFORGE_METRICS_PORT": str(free_port()),
        "RESFORGE_TICK_S": "0.05",
        "RESFORGE_LEASE_S": "60",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services", "controller"], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    sqlite_url: str, project: str, spec: TrainSpec, digits: DatasetInfo, s3_server: S3Server, tmp_path: Path,
    number: signal.Signals,
) -> None:  # fmt: skip
    engine = connect(sqlite_url)
    store = JobStore(engine)
    store.create_project(project)
    job = store.submit(project, spec, digits)[0]
    log = tmp_path / "log"
    # Something that takes connections and never answers, so that the signal comes while it waits.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with controller(sqlite_url, s3_server, address, log) as process:
            deadline = time.monotonic() + 60
            while store.job(project, job.id).reason is None and time.monotonic() < deadline:
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            seen = store.job(project, job.id)
            assert (seen.reason, address in seen.message) == (Reason.LAUNCHER_UNAVAILABLE, True)
            assert store.acquire_lease(LEASE, "another", 1) is None
            process.send_signal(number)
            assert process.wait(60) == 0, log.read_text()
        # The lease would be good for a minute more, had it not been given back.
        assert store.acquire_lease(LEASE, "another", 1) is not None
    assert "Traceback" not in log.read_text()
    engine.dispose()
