"""Listens to what the control plane wants of this attempt, and to whether its pods are to end."""

import logging
import threading

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

from resforge.s3 import StorageError
from resforge.storage import Control as ControlDocument
from resforge.storage import Heartbeat
from trainer.classifier import Classifier
from trainer.pod import Pod
from trainer.run import Run

logger = logging.getLogger(__name__)

POLL_S = 2.0
POD_POLL_S = 0.5


class Control(Callback):
    """Behind the training's back, rank 0 reads control.json and the driver's heartbeat, and every rank looks whether
    its pod is to end; all ranks agree on a stop at steps that they all report.

    The step after the agreement is the last: it gets a checkpoint, and training ends in good order.
    """

    def __init__(self, run: Run, pod: Pod) -> None:
        self.run = run
        self.pod = pod
        self.every = run.job.spec.training.log_every_steps
        self.wanted = threading.Event()
        self.leaves = threading.Event()
        self.done = threading.Event()

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        if self.run.rank == 0:
            threading.Thread(target=self._listen, name="control", daemon=True).start()
        if self.pod.folder is not None:
            threading.Thread(target=self._watch_pod, name="pod", daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Classifier, batch: object, batch_idx: int) -> None:
        run = self.run
        if run.step % self.every == 0 and not run.stop:
            asked = torch.tensor([float(self.wanted.is_set()), float(self.leaves.is_set())], device=run.device)
            wanted, leaves = (value > 0 for value in run.total_over_ranks(asked).tolist())
            run.stop, run.preempted = wanted or leaves, leaves and not wanted
            if run.stop:
                why = "as the service asked" if wanted else "since a pod of the attempt is to end"
                run.event("StopRequested", f"stopping after step {run.step + 1}, {why}", step=run.step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Classifier, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self.run.stop:
            trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, module: Classifier, stage: str) -> None:
        self.done.set()

    def _listen(self) -> None:
        run = self.run
        while not self.done.wait(POLL_S):
            try:
                data = run.store.find(run.prefix.control)
                # A worker alone is in its driver's pod.
                beat = run.store.find(run.keys.heartbeat) if self.pod.folder is not None and run.workers > 1 else None
            except StorageError as error:
                logger.warning("control.json can't be read now: %s", error)
                continue
            if beat and Heartbeat.model_validate_json(beat).leaves:
                self.leaves.set()
            if data and ControlDocument.model_validate_json(data).desired == "stop":
                self.wanted.set()
                return

    def _watch_pod(self) -> None:
        while not self.done.wait(POD_POLL_S):
            if self.pod.ends:
                self.leaves.set()
                return
