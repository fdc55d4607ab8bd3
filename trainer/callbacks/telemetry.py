"""Reports what training does every few steps: to the job's prefix, and to whatever collects metrics."""

import math
import time
from datetime import UTC, datetime

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from torch.nn.utils import get_total_norm

from resforge import metrics
from resforge.metrics import TrainPoint
from trainer.classifier import Classifier
from trainer.errors import NonFiniteLoss
from trainer.gpu import GpuReadings
from trainer.phases import Phases
from trainer.run import Run

WORKERS_EVERY_S = 1.0  # Ray's agent hands metrics on every ten seconds


class Telemetry(Callback):
    """Keeps the run's step, and every `log_every_steps` and at the last step reports means over the steps between.

    Rank 0 speaks for the job. Each rank tells its own pace, where its time went and how its GPU is, with the report,
    when the device has caught up in any case, and not more than once a second.

    A loss that is not finite is noticed here, by all ranks alike since the sums are reduced first, and before the
    checkpoint of the same step would be written.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.every = run.job.spec.training.log_every_steps
        self.grad_norm: float | None = None
        self.began = self.ended = time.perf_counter()
        self.waited = self.worked = self.aside = 0.0
        self.steps = 0
        self.gpu = GpuReadings(run.device)
        self.told = float("-inf")

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        self.started, self.first_step = time.monotonic(), self.run.step
        self.run.phases, self.seen_aside = Phases(), 0.0
        self.ended = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Classifier, batch: object, batch_idx: int) -> None:
        self.began = time.perf_counter()
        phases = self.run.phases
        aside = phases.aside - self.seen_aside
        waited = max(0.0, self.began - self.ended - aside)
        self.seen_aside += aside
        self.aside += aside
        self.waited += waited
        phases.waited(waited)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: Classifier, optimizer: torch.optim.Optimizer
    ) -> None:
        # DDP has reduced the gradient: it is the same on every rank, and rank 0 alone needs its norm.
        if self.run.rank == 0 and self._due(self.run.step + 1):
            gradients = [p.grad for p in module.network.parameters() if p.grad is not None]
            self.grad_norm = float(get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.run.step = module.step
        self.run.evaluation = None
        self.worked += time.perf_counter() - self.began
        self.steps += 1
        if self._due(self.run.step):
            self._report(module)
        self.ended = time.perf_counter()

    def _due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.run.total_steps or step % self.run.steps_per_epoch == 0

    def _report(self, module: Classifier) -> None:
        run = self.run
        loss, top1, top5, images = run.total_over_ranks(module.sums).tolist()
        module.sums.zero_()
        if not math.isfinite(loss):
            raise NonFiniteLoss(step=run.step, lr=module.last_lr)
        seconds = self.waited + self.aside + self.worked
        eta = (run.total_steps - run.step) * (time.monotonic() - self.started) / max(1, run.step - self.first_step)
        point = TrainPoint(
            at=datetime.now(UTC),
            attempt=run.attempt,
            step=run.step,
            epoch=run.epoch,
            loss=loss / images,
            top1=top1 / images,
            top5=top5 / images,
            lr=module.last_lr,
            grad_norm=self.grad_norm if self.grad_norm is None or math.isfinite(self.grad_norm) else None,
            images_per_second=images / seconds,
            step_time_s=seconds / self.steps,
            data_wait_s=self.waited / self.steps,
            eta_s=eta,
        )
        self._tell_worker(images / run.workers / seconds)
        self.waited = self.worked = self.aside = 0.0
        self.steps = 0
        if run.rank == 0:
            run.record(point)
            run.progress(loss=point.loss, top1=point.top1, images_per_second=point.images_per_second, eta_s=eta)
            run.export(
                {
                    metrics.TRAIN_LOSS: point.loss or 0.0,
                    metrics.TRAIN_TOP1: point.top1,
                    metrics.TRAIN_TOP5: point.top5,
                    metrics.LEARNING_RATE: point.lr,
                    metrics.GRAD_NORM: point.grad_norm if point.grad_norm is not None else math.nan,
                    metrics.IMAGES_PER_SECOND: point.images_per_second,
                    metrics.STEP_SECONDS: point.step_time_s,
                    metrics.DATA_WAIT_SECONDS: point.data_wait_s,
                    metrics.STEP: float(point.step),
                    metrics.EPOCH: float(point.epoch),
                    metrics.ETA_SECONDS: point.eta_s,
                }
            )

    def _tell_worker(self, images_per_second: float) -> None:
        run, now = self.run, time.monotonic()
        if now - self.told < WORKERS_EVERY_S:
            return
        self.told = now
        run.export({metrics.WORKER_IMAGES_PER_SECOND: images_per_second, **self.gpu.read()})
        for phase, seconds in run.phases.seconds().items():
            run.export({metrics.WORKER_SECONDS: seconds}, phase=phase)
