"""Evaluates on the held-out images when epochs end, every image exactly once over all workers."""

from datetime import UTC, datetime

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from resforge import metrics
from resforge.metrics import EvalPoint
from trainer.classifier import Classifier
from trainer.evaluate import evaluate
from trainer.run import Run


class Evaluation(Callback):
    """Runs outside DDP's forward pass, which would want as many batches on every rank.

    Each rank's batch norm statistics are its own; rank 0's are what a checkpoint holds and what DDP sends out before
    its next forward pass. So they are sent out here first, and what is measured is what the checkpoint gives.
    """

    def __init__(self, run: Run, loader: DataLoader) -> None:
        self.run = run
        self.loader = loader

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        run = self.run
        due = run.ends_epochs(run.job.spec.training.evaluate_every_epochs)
        if not (due or run.step >= run.total_steps):
            return
        if run.workers > 1:
            for buffer in module.network.buffers():
                dist.broadcast(buffer, src=0)
        own = evaluate(module.network, self.loader, module.normalise, run.device, precision=run.precision)
        sums = torch.tensor(
            [own.loss_sum, own.correct1, own.correct5, own.images], dtype=torch.float64, device=run.device
        )
        loss, top1, top5, images = run.total_over_ranks(sums).tolist()
        run.evaluation = EvalPoint(
            at=datetime.now(UTC),
            attempt=run.attempt,
            step=run.step,
            epoch=run.epoch,
            loss=loss / images,
            top1=top1 / images,
            top5=top5 / images,
            images=int(images),
        )
        run.record(run.evaluation)
        run.progress(test_top1=run.evaluation.top1)
        run.export({metrics.TEST_TOP1: run.evaluation.top1, metrics.TEST_LOSS: loss / images})
