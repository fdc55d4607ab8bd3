"""Evaluates on the held-out images when epochs end, every image exactly once over all workers."""

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch import Callback

from resforge import metrics
from resforge.metrics import EvalPoint
from trainer.classifier import Classifier
from trainer.data.loader import Loader
from trainer.evaluate import EvalTotals, evaluate
from trainer.phases import EVALUATION
from trainer.run import Run


class Evaluation(Callback):
    """Runs outside DDP's forward pass, which would want as many batches on every rank.

    Each rank's batch norm statistics are its own; rank 0's are what a checkpoint holds. So they are sent out here
    first, and what is measured is what the checkpoint gives. Where an average of the weights is kept, it is that which
    is evaluated.

    Args:
        held_out: the images to evaluate on, of the split `split`.
        training: the training images, evaluated at the last step; None where the job does not ask for it.
    """

    def __init__(self, run: Run, held_out: Loader, split: str, training: Loader | None) -> None:
        self.run = run
        self.held_out = held_out
        self.split = split
        self.training = training

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        run = self.run
        due = run.ends_epochs(run.job.spec.training.evaluate_every_epochs)
        ended = run.step >= run.total_steps
        if not (due or ended):
            return
        with run.phases.on(EVALUATION):
            self._evaluate_all(module, ended=ended)

    def _evaluate_all(self, module: Classifier, *, ended: bool) -> None:
        run = self.run
        if run.workers > 1:
            for buffer in module.network.buffers():
                dist.broadcast(buffer, src=0)
        with module.evaluated():
            if ended and self.training is not None:  # first: the newest evaluation is the held-out one's
                run.record(self._evaluate(module, self.training, "train"))
            run.evaluation = self._evaluate(module, self.held_out, self.split)
        run.record(run.evaluation)
        run.progress(test_top1=run.evaluation.top1)
        if run.rank != 0:
            return
        values = {metrics.TEST_TOP1: run.evaluation.top1}
        if run.evaluation.loss is not None:
            values[metrics.TEST_LOSS] = run.evaluation.loss
        run.export(values)

    def _evaluate(self, module: Classifier, loader: Loader, split: str) -> EvalPoint:
        run = self.run
        own = evaluate(module.network, loader, module.normalise, run.device, precision=run.precision)
        totals = EvalTotals.from_tensor(run.total_over_ranks(own.tensor().to(run.device)))
        return totals.point(attempt=run.attempt, step=run.step, epoch=run.epoch, split=split)
