"""Listens to what the control plane wants of this attempt."""

import logging
import threading

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

from resforge.s3 import StorageError
from resforge.storage import Control as ControlDocument
from trainer.classifier import Classifier
from trainer.run import Run

logger = logging.getLogger(__name__)

POLL_S = 2.0


class Control(Callback):
    """Rank 0 reads control.json behind the training's back; all ranks agree on a stop at steps that they all report.

    The step after the agreement is the last: it gets a checkpoint, and training ends in good order.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.every = run.job.spec.training.log_every_steps
        self.wanted = threading.Event()
        self.done = threading.Event()

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        if self.run.rank == 0:
            threading.Thread(target=self._listen, name="control", daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Classifier, batch: object, batch_idx: int) -> None:
        run = self.run
        if run.step % self.every == 0 and not run.stop:
            asked = run.total_over_ranks(torch.tensor([float(self.wanted.is_set())], device=run.device))
            run.stop = bool(asked.item())
            if run.stop:
                run.event("StopRequested", f"stopping after step {run.step + 1}", step=run.step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self.run.stop:
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, module: Classifier, stage: str) -> None:
        self.done.set()

    def _listen(self) -> None:
        while not self.done.wait(POLL_S):
            try:
                data = self.run.store.find(self.run.prefix.control)
            except StorageError as error:
                logger.warning("control.json can't be read now: %s", error)
                continue
            if data and ControlDocument.model_validate_json(data).desired == "stop":
                self.wanted.set()
                return
