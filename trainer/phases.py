"""Where a worker's time goes: waiting for data, evaluation, checkpoints, and the rest, which is the training itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVALUATION = "evaluation"
CHECKPOINT = "checkpoint"


class Phases:
    """Wall-clock seconds by phase since it was made. It reads the host's clock alone and never waits for a device.

    A GPU works behind the host's back, so what is left over when the other phases are taken off is what training took,
    once the device has caught up, as it does at each report.

    Attributes:
        aside: seconds of evaluations and checkpoints.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = clock()
        self._data = 0.0
        self._apart = {EVALUATION: 0.0, CHECKPOINT: 0.0}
        self.aside = 0.0  # their sum, read at each step

    @contextmanager
    def on(self, phase: str) -> Iterator[None]:
        """Count the time within as that of an evaluation or a checkpoint."""
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._apart[phase] += seconds
            self.aside += seconds

    def waited(self, seconds: float) -> None:
        """Add time in which there was no batch yet."""
        self._data += seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now; together they are all the time since the beginning."""
        spent = {"data": self._data, **self._apart}
        return {**spent, "compute": max(0.0, self._clock() - self._started - sum(spent.values()))}
