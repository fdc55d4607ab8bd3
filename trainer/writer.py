"""Writes checkpoints behind the training's back: one thread at a time serialises, hashes, uploads and cleans up.

The training goes on as soon as its state is copied to the host's memory. At most one copy exists: when the next
checkpoint is due while one is still being written, the training waits for it.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Self

import torch

from resforge import metrics
from resforge.s3 import StorageError
from trainer.checkpoints import Moment, Snapshot, remove_old, write_checkpoint
from trainer.run import Run

logger = logging.getLogger(__name__)

GIVE_UP_S = 30.0  # how long a run that fails waits for the checkpoint in hand


class Writer:
    """Writes one checkpoint at a time, and tells of each how it went; rank 0 alone has any to write.

    One that can't be written is told and passed over, since the one before it still stands. What else goes wrong in the
    thread is raised in the training's, at its next step.

    Use it as a context manager: behind it, nothing is being written any more. Where the run failed, the checkpoint in
    hand may still be finished, for so long that a store which does not answer can't keep the run from ending.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.committed = self.failed = 0
        self._thread: threading.Thread | None = None
        self._failure: StorageError | None = None
        self._bug: BaseException | None = None

    def begin(self, snapshot: Snapshot, moment: Moment, *, spent: float) -> None:
        """Write a checkpoint from now on. The snapshot's tensors must be its own (`Snapshot.copied`).

        Args:
            spent: seconds that the checkpoint has taken already.
        """
        assert self._thread is None, "wait for the one before"
        copied = torch.cuda.Event() if self.run.device.type == "cuda" else None
        if copied:
            copied.record()  # behind the copies, on the training's stream
        arguments = (snapshot, moment, spent, copied)
        self._thread = threading.Thread(target=self._work, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the thread, if it was something that nobody thought of. Costs next to nothing."""
        if self._bug is not None:
            raise self._bug

    def wait(self) -> StorageError | None:
        """Return when nothing is being written: why the last one could not be, or None where it was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()
        return self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(GIVE_UP_S)
            if self._thread.is_alive():
                logger.warning("a checkpoint that is still being written is given up")

    def _work(self, snapshot: Snapshot, moment: Moment, spent: float, copied: torch.cuda.Event | None) -> None:
        self._failure = None
        try:
            if copied:
                copied.synchronize()
            self._write(snapshot, moment, spent)
        except BaseException as bug:  # noqa: BLE001 - raised by `check`
            self._bug = bug

    def _write(self, snapshot: Snapshot, moment: Moment, spent: float) -> None:
        run, step = self.run, snapshot.step  # the run's own step is further on by now
        started = time.perf_counter()
        try:
            # First: whoever resumes from this step will not report those before it again. What is reported of later
            # steps may be written with them; whoever resumes reports those anew.
            if run.shipper:
                run.shipper.flush()
            written = write_checkpoint(run.store, run.prefix, run.job, snapshot, moment)
        except StorageError as error:
            self._failure = error
            self.failed += 1
            run.export({metrics.CHECKPOINT_FAILURES: float(self.failed)})
            run.event("CheckpointFailed", f"no checkpoint of step {step}: {error}", step=step)
            return
        self.committed += 1
        seconds = spent + time.perf_counter() - started
        run.event(
            "CheckpointCommitted",
            f"step {step}, {written.manifest.size} bytes in {seconds:.2f} s",
            step=step,
            seconds=round(seconds, 3),
            bytes=written.manifest.size,
        )
        try:
            remove_old(run.store, run.prefix, run.told, run.job.spec.checkpoint.keep_last, written)
        except StorageError as error:
            run.event("CleanUpFailed", f"old checkpoints can't be removed: {error}", step=step)
        run.export(
            {
                metrics.CHECKPOINT_SECONDS: seconds,
                metrics.CHECKPOINT_BYTES: float(written.manifest.size),
                metrics.CHECKPOINTS: float(self.committed),
            }
        )
