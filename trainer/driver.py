"""The Ray driver of one attempt: a sign of life, the workers under Ray Train, and the reason where it fails.

Ray holds no checkpoint of ours: its storage path is scratch, and workers write to object storage themselves. What
tells success is the verdict that rank 0 committed, not how `fit()` or this process ended.
"""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.runtime_context import RuntimeContext
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.state_manager import StateManagerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result as FitResult

from resforge.jobs import Reason
from resforge.s3 import ObjectStore
from resforge.storage import JobDocument, JobPrefix, Result
from trainer import forked
from trainer.gang import GangConfig, GangNotJoined
from trainer.ray_worker import WorkerConfig, train
from trainer.settings import TrainerSettings
from trainer.start import marks

logger = logging.getLogger(__name__)


@contextmanager
def _no_controller_actor() -> Iterator[None]:
    told = RuntimeContext.current_actor
    RuntimeContext.current_actor = None
    try:
        yield
    finally:
        RuntimeContext.current_actor = told


class _Group(WorkerGroup):
    """Workers of a controller that is no actor. All they would ask it for are checkpoints; ours report none to it."""

    def _init_train_context_on_workers(self, *given: Any, **named: Any) -> None:
        with _no_controller_actor():
            super()._init_train_context_on_workers(*given, **named)


class _Controller(TrainController):
    worker_group_cls = _Group


class _Trainer(DataParallelTrainer):
    """Without three processes that Ray Train starts beside the workers; each imports for two seconds of a core.

    One hands out Ray's data sets, which no job has. One removes the workers' placement group should the controller die;
    that ends the driver as well, with which Ray removes it. The third is the controller itself, for which the workers'
    processes would wait: it does its work here, where nothing else is done and Ray Train is imported already.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        # The last is for Ray's page of trainings, which knows a training by its controller's actor.
        spared = (DatasetsCallback, PlacementGroupCleanerCallback, StateManagerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, spared)]

    def _initialize_and_run_controller(self, **parts: Any) -> FitResult:
        controller = _Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


def drive(
    store: ObjectStore, prefix: JobPrefix, attempt: int, job: JobDocument, settings: TrainerSettings
) -> Result | None:
    """Run the attempt to its end, and say how it ended; None where another attempt has taken over meanwhile."""
    keys = prefix.attempt(attempt)
    scaling, retry = job.spec.scaling, job.spec.retry
    name = f"{job.job}-{attempt}"
    scratch = settings.scratch / "ray-train"
    config = WorkerConfig(
        bucket=store.bucket,
        prefix=prefix.key,
        attempt=attempt,
        s3_endpoint=settings.s3_endpoint,
        scratch=str(settings.scratch),
        start=dict(marks),
    )
    trainer = _Trainer(
        train,
        train_loop_config=dict(config),
        backend_config=GangConfig(timeout_s=settings.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.gpus_per_worker > 0,
            resources_per_worker={
                "CPU": scaling.cpus_per_worker,
                **({"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            # GPUs start cold, since CUDA does not survive a fork.
            worker_runtime_env=(
                {"py_executable": forked.COMMAND} if settings.warm_s > 0 and not scaling.gpus_per_worker else None
            ),
            failure_config=FailureConfig(
                max_failures=retry.worker_restarts,
                max_preemption_failures=retry.worker_restarts,
                # A gang that finds no place for its workers any more is given up, not tried for ever: another attempt
                # gets a cluster of its own.
                controller_failure_limit=1,
            ),
        ),
    )
    failure: TrainingFailedError | None = None
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error
        logger.error("%s", error)
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)

    verdict = store.find(keys.verdict)
    if verdict is not None:
        result = Result.model_validate_json(verdict)
    elif store.find(prefix.attempt(attempt + 1).attempt) is not None:
        logger.warning("attempt %d was given up, and another has begun", attempt)
        return None
    else:
        reason, message = _why(failure)
        result = Result(at=datetime.now(UTC), outcome="failed", reason=reason, message=message)
    logger.info("attempt %d %s: %s", attempt, result.outcome, result.message or "no message")
    return result


def _why(failure: TrainingFailedError | None) -> tuple[Reason, str]:
    """The reason and its message where no worker left a verdict."""
    if failure is None:
        return Reason.TRAINING_ERROR, "the workers ended and left no result"
    if isinstance(failure, ControllerError) and isinstance(failure.controller_failure, GangNotJoined):
        return Reason.NODE_LOST, f"its workers did not find each other: {_last_line(failure.controller_failure)}"
    if isinstance(failure, ControllerError) and isinstance(
        failure.controller_failure, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError
    ):
        return Reason.UNSCHEDULABLE, f"its workers found no place again: {_last_line(failure.controller_failure)}"
    causes = failure.worker_failures if isinstance(failure, WorkerGroupError) else {}
    lines = [f"rank {rank}: {_last_line(error)}" for rank, error in sorted(causes.items())]
    message = "; ".join(lines) or _last_line(failure)
    if any(isinstance(error, OutOfMemoryError) for error in causes.values()):
        return Reason.OUT_OF_MEMORY, message
    if causes and all("timed out" in str(error).lower() for error in causes.values()):
        return Reason.COLLECTIVE_TIMEOUT, message
    return Reason.TRAINING_ERROR, message


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
