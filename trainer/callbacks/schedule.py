"""Tells the schedule what training and evaluation have come to, by which it may change the learning rate."""

import lightning.pytorch as pl
from lightning.pytorch import Callback

from trainer.classifier import Classifier
from trainer.run import Run
from trainer.schedule import WINDOW, after_evaluation, after_window


class Schedule(Callback):
    """Comes behind the evaluation and before the checkpoint, which holds what was decided.

    Errors are those over all ranks, so every rank decides the same.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        run, optim = self.run, module.optim
        if module.awaits_error and run.step % WINDOW == 0:
            hits, images = run.total_over_ranks(module.window).tolist()
            module.window.zero_()
            error = 1 - hits / images
            module.schedule = after_window(optim.schedule, module.schedule, run.step, error)
            if not module.awaits_error:
                limit = optim.schedule.warmup_until_error
                message = f"the training error is {error:.3f}, below {limit:g}: the warm-up is over"
                run.event("WarmUpEnded", message, step=run.step)
        if run.evaluation is not None:
            before = module.schedule
            module.schedule = after_evaluation(optim, before, run.step, 1 - run.evaluation.top1)
            if module.schedule.cuts > before.cuts:
                message = f"the held-out error stays at {before.best_error:.4f}: the learning rate is {module.lr:g} now"
                run.event("LearningRateCut", message, step=run.step)
