"""A gang of one: its driver looks after a single worker process, and needs no Ray Train for that.

Ray schedules the driver with the worker's CPUs and GPU, and the worker inherits them. The driver imports neither torch
nor Ray, so that one heavy start is left of the three that a gang takes (driver, Ray Train's controller, worker). A
worker that dies is replaced, as in a gang, up to `retry.worker_restarts` times.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resforge.jobs import Reason
from resforge.metrics import Metric
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import JobDocument, JobPrefix, Result
from trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from trainer.run import Export

logger = logging.getLogger(__name__)

# Ray's metrics take seconds of a core to import, which a job of seconds can do without.
EXPORT_AFTER_S = 15.0


def drive(
    store: ObjectStore, prefix: JobPrefix, attempt: int, job: JobDocument, settings: TrainerSettings
) -> Result | None:
    """Run the attempt to its end, and say how it ended; None where another attempt has taken over meanwhile."""
    assert isinstance(job.spec, TrainSpec)
    keys = prefix.attempt(attempt)
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=settings.scratch, prefix=f"{job.job}-{attempt}-") as folder:
        told = Path(folder) / "failure"
        for restarts in range(job.spec.retry.worker_restarts + 1):
            told.unlink(missing_ok=True)
            command = [sys.executable, "-m", "trainer.single", f"s3://{store.bucket}/{prefix.key.rstrip('/')}"]
            code = subprocess.run([*command, str(attempt), str(told), str(os.getpid())], check=False).returncode
            verdict = store.find(keys.verdict)
            if verdict is not None:
                result = Result.model_validate_json(verdict)
                break
            if store.find(prefix.attempt(attempt + 1).attempt) is not None:
                logger.warning("attempt %d was given up, and another has begun", attempt)
                return None
            message = _why(code, told)
            logger.error("the worker has ended without a verdict, after %d restarts: %s", restarts, message)
            result = Result(
                at=datetime.now(UTC), outcome="failed", reason=Reason.TRAINING_ERROR, message=f"rank 0: {message}"
            )
    logger.info("attempt %d %s: %s", attempt, result.outcome, result.message or "no message")
    return result


def _why(code: int, told: Path) -> str:
    """How the worker ended: by what it says itself, or by its exit code."""
    if told.exists():
        return told.read_text()
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return "the worker ended and left no result" if code == 0 else f"the process ended with the exit code {code}"


def main() -> None:
    """The worker."""
    parser = argparse.ArgumentParser(prog="python -m trainer.single", description=__doc__)
    parser.add_argument("prefix", help="the job's prefix, s3://bucket/project/job")
    parser.add_argument("attempt", type=int, help="the attempt's number, from 1")
    parser.add_argument("told", type=Path, help="where to write what went wrong")
    parser.add_argument("driver", type=int, help="the process that looks after this one")
    arguments = parser.parse_args()
    _end_with_the_driver(arguments.driver)
    try:
        _work(arguments.prefix, arguments.attempt, TrainerSettings.from_environment())
    except BaseException as error:
        logger.exception("the worker failed")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        arguments.told.write_text(f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500])
        logging.shutdown()
        os._exit(1)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # what counts is written, and libraries' farewells take a second


def _work(uri: str, attempt: int, settings: TrainerSettings) -> None:
    import torch
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from trainer.worker import Place, run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s rank 0 %(levelname)s %(name)s: %(message)s", force=True)
    logging.captureWarnings(True)
    where = urlsplit(uri)
    store, prefix = ObjectStore(where.netloc, endpoint=settings.s3_endpoint), JobPrefix(where.path.strip("/") + "/")
    job = JobDocument.model_validate_json(store.get(prefix.spec))
    cuda = job.spec.scaling.gpus_per_worker > 0
    # What torchrun would say of a world of one; Lightning reads it.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    os.environ.update(alone, TORCHELASTIC_RUN_ID=prefix.key)
    # Nobody else is to be met, so the store needs no port.
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    place = Place(
        rank=0,
        workers=1,
        device=torch.device("cuda", 0) if cuda else torch.device("cpu"),
        strategy=DDPStrategy(),
        environment=TorchElasticEnvironment(),
        export=_LateGauges(job_id=prefix.key.rstrip("/").rsplit("/", 1)[1], attempt=str(attempt), rank="0"),
    )
    # Where kill-tests and people with a debugger find this worker.
    logger.info("process %d is rank 0 of 1", os.getpid())
    run(store, prefix, attempt, place, cache=settings.scratch / "data")


class _LateGauges:
    """Exports metrics through Ray's agent once the training has lasted a while; a thread sets that up."""

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._began = time.monotonic()
        self._waiting: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._gauges: Export | None = None
        self._starting: threading.Thread | None = None

    def __call__(self, values: dict[Metric, float], /, **labels: str) -> None:
        with self._lock:
            if self._gauges is None:
                self._waiting |= {(metric, tuple(labels.items())): value for metric, value in values.items()}
            else:
                self._gauges(values, **labels)
        if self._starting is None and time.monotonic() - self._began > EXPORT_AFTER_S:
            self._starting = threading.Thread(target=self._start, name="metrics", daemon=True)
            self._starting.start()

    def _start(self) -> None:
        try:
            import ray

            from trainer.ray_metrics import Gauges

            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
            gauges = Gauges(**self._labels)
        except Exception:
            logger.warning("metrics are not exported through Ray; the streams have them all", exc_info=True)
            return
        with self._lock:
            for (metric, labels), value in self._waiting.items():
                gauges({metric: value}, **dict(labels))
            self._waiting.clear()
            self._gauges = gauges


def _end_with_the_driver(driver: int) -> None:
    """Let this process be killed when its driver is: an attempt that was given up must not go on training."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != driver:  # it died before
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="driver", daemon=True).start()


if __name__ == "__main__":
    main()
