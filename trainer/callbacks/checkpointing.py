"""Takes checkpoints when they are due: a copy of the run's state, which is written behind the training's back."""

import time
from dataclasses import replace

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch import Callback

from trainer.checkpoints import Moment, Snapshot, rng_state
from trainer.classifier import Classifier
from trainer.errors import CheckpointUploadFailed, NonFiniteLoss
from trainer.phases import CHECKPOINT
from trainer.run import Run
from trainer.writer import Writer


class Checkpointing(Callback):
    """Every rank gives its random states; rank 0 copies the rest and has it written.

    A checkpoint that can't be written is told and passed over while training goes on: the one before it still stands.
    The last one is different: without it the job has not succeeded, so it is waited for, and its failure ends the
    attempt.
    """

    def __init__(self, run: Run, inputs: dict[str, torch.Tensor], writer: Writer) -> None:
        self.run = run
        self.inputs = inputs
        self.writer = writer

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.writer.check()
        run, wanted = self.run, self.run.job.spec.checkpoint
        by_step = wanted.every_steps is not None and run.step % wanted.every_steps == 0
        if not (by_step or run.ends_epochs(wanted.every_epochs) or run.last):
            return
        with run.phases.on(CHECKPOINT):
            self._checkpoint(trainer, module)

    def _checkpoint(self, trainer: pl.Trainer, module: Classifier) -> None:
        run = self.run
        states = [None] * run.workers
        if run.workers > 1:
            dist.all_gather_object(states, rng_state())
        else:
            states = [rng_state()]
        schedule = module.schedule
        if module.awaits_error:
            hits, images = map(int, run.total_over_ranks(module.window).tolist())
            schedule = replace(schedule, hits=hits, images=images)
        # Weights are alike on all ranks, so all come to the same. A device is waited for once, not for each weight.
        if not bool(torch.stack([torch.isfinite(p).all() for p in module.network.parameters()]).all()):
            raise NonFiniteLoss(step=run.step, lr=module.last_lr)
        if run.rank != 0:
            return
        self.writer.wait()  # so that there is one copy at most
        started = time.perf_counter()
        snapshot = Snapshot(
            weights=module.network.state_dict(),
            averaged=module.average.state_dict() if module.average else None,
            inputs=self.inputs,
            optimizer=trainer.optimizers[0].state_dict(),
            rng=states,
            step=run.step,
            schedule=schedule,
        ).copied()
        moment = Moment(
            attempt=run.attempt,
            epoch=run.step // run.steps_per_epoch,
            offset=run.step % run.steps_per_epoch,
            workers=run.workers,
            final=run.step >= run.total_steps,
            evaluation=run.evaluation,
        )
        self.writer.begin(snapshot, moment, spent=time.perf_counter() - started)
        if run.last:
            failure = self.writer.wait()
            if failure:
                raise CheckpointUploadFailed(
                    f"the last checkpoint, of step {run.step}, can't be written: {failure}"
                ) from failure
