"""Work for one process, a training, an evaluation, a reading or an ingest: its driver looks after a single worker
process, and needs no Ray Train for that.

Ray schedules the driver with the worker's CPUs and GPU, and the worker inherits them. The driver imports neither torch
nor Ray, so that one heavy start is left of the two that a gang takes one after the other (driver, workers). A worker
that dies is replaced, as in a gang, up to `retry.worker_restarts` times.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resforge.jobs import Reason
from resforge.metrics import Metric
from resforge.s3 import ObjectStore, StorageError
from resforge.storage import JobDocument, JobPrefix, Result
from trainer import warm
from trainer.lean import import_lightning
from trainer.pod import Pod
from trainer.settings import TrainerSettings
from trainer.start import mark, mark_process, marks
from trainer.streams import Shipper

if TYPE_CHECKING:
    from trainer.run import Export

logger = logging.getLogger(__name__)

# Ray's metrics take seconds of a core to import, which a job of seconds can do without.
EXPORT_AFTER_S = 15.0
START = "RESFORGE_START"  # how the driver tells its worker when it came how far
STORAGE_AWAY = 75  # the exit code by which a worker tells that object storage did not answer it


def drive(
    store: ObjectStore, prefix: JobPrefix, attempt: int, job: JobDocument, settings: TrainerSettings
) -> Result | None:
    """Run the attempt to its end, and say how it ended; None where another attempt has taken over meanwhile.

    Raises:
        StorageError: object storage did not answer the worker; another attempt may do better.
    """
    keys = prefix.attempt(attempt)
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=settings.scratch, prefix=f"{job.job}-{attempt}-") as folder:
        told = Path(folder) / "failure"
        for restarts in range(job.spec.retry.worker_restarts + 1):
            told.unlink(missing_ok=True)
            code = _run([f"s3://{store.bucket}/{prefix.key.rstrip('/')}", str(attempt), str(told)], job, settings)
            verdict = store.find(keys.verdict)
            if verdict is not None:
                result = Result.model_validate_json(verdict)
                break
            if store.find(prefix.attempt(attempt + 1).attempt) is not None:
                logger.warning("attempt %d was given up, and another has begun", attempt)
                return None
            message = _why(code, told)
            logger.error("the worker has ended without a verdict, after %d restarts: %s", restarts, message)
            if code == STORAGE_AWAY and restarts == job.spec.retry.worker_restarts:
                raise StorageError(message)
            result = Result(
                at=datetime.now(UTC), outcome="failed", reason=Reason.TRAINING_ERROR, message=f"rank 0: {message}"
            )
    logger.info("attempt %d %s: %s", attempt, result.outcome, result.message or "no message")
    return result


def _run(arguments: list[str], job: JobDocument, settings: TrainerSettings) -> int | None:
    """Run the worker to its end, warm where that is wanted and possible; its exit code, if that was seen."""
    os.environ[START] = json.dumps(marks)
    life, held = os.pipe()  # it reads the end of this process, or of this call
    try:
        if settings.warm_s > 0 and job.spec.scaling.gpus_per_worker == 0:
            try:
                return warm.run(settings.scratch, settings.warm_s, "trainer.single", arguments, life)
            except warm.Cold as cold:
                logger.warning("a cold start: %s", cold)
        command = [sys.executable, "-m", "trainer.single", *arguments, str(life)]
        return subprocess.run(command, pass_fds=[life], check=False).returncode
    finally:
        os.close(life)
        os.close(held)


def _why(code: int | None, told: Path) -> str:
    """How the worker ended: by what it says itself, or by its exit code."""
    if told.exists():
        return told.read_text()
    if code is None:
        return "the worker ended together with the process that it was forked from"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return "the worker ended and left no result" if code == 0 else f"the process ended with the exit code {code}"


def main(argv: Sequence[str] | None = None) -> None:
    """The worker."""
    parser = argparse.ArgumentParser(prog="python -m trainer.single", description=__doc__)
    parser.add_argument("prefix", help="the job's prefix, s3://bucket/project/job")
    parser.add_argument("attempt", type=int, help="the attempt's number, from 1")
    parser.add_argument("told", type=Path, help="where to write what went wrong")
    parser.add_argument("life", type=int, help="a pipe's reading end; the driver has the other one")
    arguments = parser.parse_args(argv)
    warm.end_with(arguments.life)
    try:
        _work(arguments.prefix, arguments.attempt, TrainerSettings.from_environment())
    except BaseException as error:
        logger.exception("the worker failed")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        arguments.told.write_text(f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:500])
        logging.shutdown()
        os._exit(STORAGE_AWAY if isinstance(error, StorageError) else 1)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # what counts is written, and libraries' farewells take a second


def _work(uri: str, attempt: int, settings: TrainerSettings) -> None:
    mark_process("worker")
    mark("worker called")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s rank 0 %(levelname)s %(name)s: %(message)s", force=True)
    logging.captureWarnings(True)
    where = urlsplit(uri)
    store, prefix = ObjectStore(where.netloc, endpoint=settings.s3_endpoint), JobPrefix(where.path.strip("/") + "/")
    job = JobDocument.model_validate_json(store.get(prefix.spec))
    # Where kill-tests and people with a debugger find this worker.
    logger.info("process %d is rank 0 of 1", os.getpid())
    if job.spec.kind == "train":
        _train(store, prefix, job, attempt, settings)
        return
    if job.spec.kind == "ingest":
        from trainer.ingest.job import perform
    else:
        from trainer.tasks import perform

    keys = prefix.attempt(attempt)
    if store.find(keys.verdict) is not None:
        return
    with Shipper(store, keys) as shipper:
        result = perform(store, prefix, job, attempt, settings, shipper)
    if result is not None:
        store.put(keys.verdict, result.to_bytes(), "application/json")


def _train(store: ObjectStore, prefix: JobPrefix, job: JobDocument, attempt: int, settings: TrainerSettings) -> None:
    import_lightning()
    import torch
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from trainer.step import keep_compiled
    from trainer.worker import Place, run

    mark("worker imported")
    cuda = job.spec.scaling.gpus_per_worker > 0
    # What torchrun would say of a world of one; Lightning reads it.
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    os.environ.update(alone, TORCHELASTIC_RUN_ID=prefix.key)
    # Nobody else is to be met, so the store needs no port.
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    keep_compiled(settings.scratch / "compiled")
    place = Place(
        rank=0,
        workers=1,
        device=torch.device("cuda", 0) if cuda else torch.device("cpu"),
        strategy=DDPStrategy,
        environment=TorchElasticEnvironment(),
        export=_LateGauges(job_id=prefix.key.rstrip("/").rsplit("/", 1)[1], attempt=str(attempt), rank="0"),
        pod=Pod(settings.pod),
        start={**json.loads(os.environ.get(START, "{}")), **marks},
    )
    run(store, prefix, attempt, place, cache=settings.scratch / "data", cache_bytes=settings.cache_bytes)


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


if __name__ == "__main__":
    main()
