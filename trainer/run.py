"""The state of one worker's run, which the callbacks share: where it is, and how it speaks to the world."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from resforge.jobs import Reason
from resforge.metrics import (
    CHECKPOINT_FAILURES,
    CHECKPOINTS,
    JOB_INFO,
    RESTARTS,
    TOTAL_STEPS,
    EvalPoint,
    Metric,
    Progress,
    TrainPoint,
)
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import AttemptPrefix, JobDocument, JobPrefix, Result, Stream, best, list_checkpoints, read_stream
from trainer.hardware import device_name, versions
from trainer.phases import Phases
from trainer.streams import Shipper

logger = logging.getLogger(__name__)

STARTED = "WorkersStarted"


class Export(Protocol):
    """Hands metrics to whatever collects them; `labels` are those beyond job, attempt and rank."""

    def __call__(self, values: dict[Metric, float], /, **labels: str) -> None: ...


@dataclass
class Run:
    """One worker's part in one attempt.

    Attributes:
        told: attempts whose checkpoints belong to this job's past, and this one.
        step: optimiser steps done.
        evaluation: the newest evaluation, if it was made at `step`.
        phases: where this worker's time goes.
        stop: agreed by all ranks: end after this step.
        preempted: the stop is for a pod that is to end, and nobody asked the job to.
    """

    store: ObjectStore
    prefix: JobPrefix
    job: JobDocument
    attempt: int
    told: tuple[int, ...]
    rank: int
    workers: int
    device: torch.device
    steps_per_epoch: int
    total_steps: int
    shipper: Shipper | None
    export: Export
    step: int = 0
    restarts: int = 0
    stop: bool = False
    preempted: bool = False
    evaluation: EvalPoint | None = None
    phases: Phases = field(default_factory=Phases)
    _progress: dict[str, object] = field(default_factory=dict)

    @property
    def keys(self) -> AttemptPrefix:
        return self.prefix.attempt(self.attempt)

    @property
    def precision(self) -> str:
        """What `auto` comes to on this device: bf16 on a GPU, fp32 on a CPU."""
        asked = self.job.spec.training.precision
        return asked if asked != "auto" else "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to, from 0."""
        return max(0, self.step - 1) // self.steps_per_epoch

    @property
    def last(self) -> bool:
        """Whether this step is the last: the job's, or the one that a stop was agreed for."""
        return self.stop or self.step >= self.total_steps

    def ends_epochs(self, every: int | None) -> bool:
        """Whether the last step ended an epoch, and the number of epochs done is a multiple of `every`."""
        return every is not None and self.step % (self.steps_per_epoch * every) == 0

    def total_over_ranks(self, values: Tensor) -> Tensor:
        """The elementwise sum over all ranks. Every rank calls this equally often."""
        total = values.clone()
        if self.workers > 1:
            dist.all_reduce(total)
        return total

    def event(self, type: str, message: str, **data: object) -> None:
        """Tell the job's history; rank 0 alone speaks."""
        if self.shipper:
            self.shipper.event(type, message, **data)
            logger.info("%s: %s", type, message)

    def record(self, point: TrainPoint | EvalPoint) -> None:
        """Add to the metrics stream; rank 0 alone."""
        if self.shipper:
            self.shipper.append(Stream.METRICS, point)

    def progress(self, **changes: object) -> None:
        """Overwrite what is known of where the run is; rank 0 alone."""
        if not self.shipper:
            return
        self._progress.update(changes)
        now = Progress(
            at=datetime.now(UTC),
            attempt=self.attempt,
            restarts=self.restarts,
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.epoch,
            total_epochs=self.total_steps / self.steps_per_epoch,
            **self._progress,
        )
        self.shipper.document(self.keys.progress, now)

    def announce(self, start: Mapping[str, float]) -> None:
        """Say that the workers stand, and count how often they were replaced before in this attempt.

        Args:
            start: how far the start had come when, in seconds since 1970.
        """
        if not self.shipper:
            return
        before = read_stream(self.store, self.prefix, Stream.EVENTS, [self.attempt])
        self.restarts = sum(b'"' + STARTED.encode() + b'"' in line for _, line in before)
        self.event(
            STARTED,
            f"{self.workers} workers train from step {self.step} of {self.total_steps}",
            step=self.step,
            device=device_name(self.device),
            versions=versions(),
            start=dict(start),
        )
        self.progress()
        self.export(
            {
                RESTARTS: float(self.restarts),
                TOTAL_STEPS: float(self.total_steps),
                CHECKPOINTS: 0.0,
                CHECKPOINT_FAILURES: 0.0,
            }
        )
        spec = self.job.spec
        assert isinstance(spec, TrainSpec)
        self.export({JOB_INFO: 1.0}, project=self.job.project, model=spec.model.name, dataset=self.job.dataset.name)

    def finish(self) -> None:
        """Write down how the attempt ended, as the very last thing."""
        if not self.shipper:
            return
        self.progress(eta_s=0.0)
        outcome = "succeeded" if self.step >= self.total_steps else "stopped"
        self.event("TrainingEnded", f"{outcome} at step {self.step} of {self.total_steps}", step=self.step)
        self.shipper.close()  # so that no line comes after the verdict
        top = best(list_checkpoints(self.store, self.prefix, self.told))
        taken = outcome == "stopped" and self.preempted
        verdict = Result(
            at=datetime.now(UTC),
            outcome=outcome,
            reason=Reason.PREEMPTED if taken else None,
            message=f"A pod of it was to end, so it stopped at step {self.step}, with a checkpoint." if taken else "",
            step=self.step,
            evaluation=top.manifest.evaluation if top else None,
        )
        self.store.put(self.keys.verdict, verdict.to_bytes(), "application/json")
