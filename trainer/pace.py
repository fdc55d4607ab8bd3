"""What jobs of one process share that train nothing: how far they are, whether they are to stop, and how they end."""

import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from resforge.jobs import Reason
from resforge.metrics import Progress
from resforge.s3 import ObjectStore, StorageError
from resforge.storage import Control, JobPrefix, Result
from trainer.errors import TrainingFault
from trainer.streams import Shipper

logger = logging.getLogger(__name__)

POLL_S = 2.0


class Stopped(Exception):
    """The control plane wants this attempt to stop."""


class Pace:
    """Tells how far the work has come, about once a second, and hears whether it is to stop.

    Called with pieces done and pieces in all, and with further fields of Progress. Raises Stopped when the control
    plane asks for it.
    """

    def __init__(self, store: ObjectStore, prefix: JobPrefix, attempt: int, shipper: Shipper) -> None:
        self._store, self._prefix, self._attempt, self._shipper = store, prefix, attempt, shipper
        self._told = self._asked = -math.inf

    def __call__(self, done: int, total: int, **figures: float | None) -> None:
        now = time.monotonic()
        if now - self._told >= 1.0 or done == total:
            self._told = now
            progress = Progress(
                at=datetime.now(UTC), attempt=self._attempt, step=done, total_steps=total, epoch=0, total_epochs=0,
                **figures,
            )  # fmt: skip
            self._shipper.document(self._prefix.attempt(self._attempt).progress, progress)
        if now - self._asked >= POLL_S:
            self._asked = now
            try:
                data = self._store.find(self._prefix.control)
            except StorageError as error:
                logger.warning("control.json can't be read now: %s", error)
                return
            if data and Control.model_validate_json(data).desired == "stop":
                raise Stopped


def conclude(work: Callable[[], Result]) -> Result:
    """Do the work; say how it ended where it came to no end of its own.

    Raises:
        StorageError: object storage does not answer; another attempt may do better.
    """
    try:
        return work()
    except Stopped:
        return ended("stopped", message="Stopped before the report was made.")
    except TrainingFault as fault:
        logger.error("%s: %s", fault.reason, fault)
        return ended("failed", reason=fault.reason, message=str(fault))
    except StorageError:
        raise
    except Exception as error:
        logger.exception("the work failed")
        return ended("failed", reason=Reason.TRAINING_ERROR, message=f"{type(error).__name__}: {error}"[:500])


def given_up(store: ObjectStore, prefix: JobPrefix, attempt: int) -> bool:
    """Whether another attempt has taken over meanwhile."""
    later = store.find(prefix.attempt(attempt + 1).attempt) is not None
    if later:
        logger.warning("attempt %d was given up, and another has begun", attempt)
    return later


def ended(outcome: Any, **fields: Any) -> Result:
    return Result(at=datetime.now(UTC), outcome=outcome, **fields)
