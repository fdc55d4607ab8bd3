"""Writes checkpoints when they are due, and removes those that need not be kept."""

import logging
import time
from dataclasses import replace

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from resforge import metrics
from resforge.s3 import StorageError
from trainer.checkpoints import Moment, Snapshot, remove_old, rng_state, write_checkpoint
from trainer.classifier import Classifier
from trainer.errors import CheckpointUploadFailed, NonFiniteLoss
from trainer.phases import CHECKPOINT
from trainer.run import Run

logger = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Every rank gives its random states; rank 0 writes.

    A checkpoint that can't be written is told and passed over while training goes on: the one before it still stands.
    The last one is different: without it the job has not succeeded, so its failure ends the attempt.
    """

    def __init__(self, run: Run, inputs: dict[str, torch.Tensor]) -> None:
        self.run = run
        self.inputs = inputs
        self.committed = self.failed = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        run, wanted = self.run, self.run.job.spec.checkpoint
        by_step = wanted.every_steps is not None and run.step % wanted.every_steps == 0
        if not (by_step or run.ends_epochs(wanted.every_epochs) or run.last):
            return
        with run.phases.on(CHECKPOINT):
            self._checkpoint(trainer, module)

    def _checkpoint(self, trainer: pl.Trainer, module: Classifier) -> None:
        run = self.run
        started = time.perf_counter()
        states = [None] * run.workers
        if run.workers > 1:
            dist.all_gather_object(states, rng_state())
        else:
            states = [rng_state()]
        schedule = module.schedule
        if module.awaits_error:
            hits, images = map(int, run.total_over_ranks(module.window).tolist())
            schedule = replace(schedule, hits=hits, images=images)
        # Sums of the whole: NaN or infinity anywhere shows. Weights are alike on all ranks, so all come to the same.
        if not all(bool(torch.isfinite(p).all()) for p in module.network.parameters()):
            raise NonFiniteLoss(step=run.step, lr=module.last_lr)
        if run.rank == 0:
            snapshot = Snapshot(
                weights=module.network.state_dict(),
                averaged=module.average.state_dict() if module.average else None,
                inputs=self.inputs,
                optimizer=trainer.optimizers[0].state_dict(),
                rng=states,
                step=run.step,
                schedule=schedule,
            )
            self._write(snapshot, time.perf_counter() - started)

    def _write(self, snapshot: Snapshot, spent: float) -> None:
        run = self.run
        started = time.perf_counter()
        moment = Moment(
            attempt=run.attempt,
            epoch=run.step // run.steps_per_epoch,
            offset=run.step % run.steps_per_epoch,
            workers=run.workers,
            final=run.step >= run.total_steps,
            evaluation=run.evaluation,
        )
        try:
            # First: whoever resumes from this step will not report those before it again.
            if run.shipper:
                run.shipper.flush()
            written = write_checkpoint(run.store, run.prefix, run.job, snapshot, moment)
        except StorageError as error:
            self.failed += 1
            run.export({metrics.CHECKPOINT_FAILURES: float(self.failed)})
            run.event("CheckpointFailed", f"no checkpoint of step {run.step}: {error}", step=run.step)
            if run.last:
                raise CheckpointUploadFailed(
                    f"the last checkpoint, of step {run.step}, can't be written: {error}"
                ) from error
            return
        self.committed += 1
        seconds = spent + time.perf_counter() - started
        run.event(
            "CheckpointCommitted",
            f"step {run.step}, {written.manifest.size} bytes in {seconds:.2f} s",
            step=run.step,
            seconds=round(seconds, 3),
            bytes=written.manifest.size,
        )
        try:
            remove_old(run.store, run.prefix, run.told, run.job.spec.checkpoint.keep_last, written)
        except StorageError as error:
            run.event("CleanUpFailed", f"old checkpoints can't be removed: {error}", step=run.step)
        run.export(
            {
                metrics.CHECKPOINT_SECONDS: seconds,
                metrics.CHECKPOINT_BYTES: float(written.manifest.size),
                metrics.CHECKPOINTS: float(self.committed),
            }
        )
