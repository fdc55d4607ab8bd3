"""What a worker's GPU says of itself, asked from the host without waiting for the work on it."""

import logging
import time
from collections.abc import Callable

import torch

from resforge.metrics import GPU_MEMORY, GPU_MEMORY_USED, GPU_UTILISATION, Metric

logger = logging.getLogger(__name__)

EVERY_S = 5.0


class GpuReadings:
    """Readings of one device, at most every five seconds; none of a CPU.

    Memory is what torch's allocator has taken from the device, which torch counts on the host. Utilisation comes from
    the driver's library; where that is not to be had, as on a part of a GPU (MIG), it is left out.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._next = float("-inf")
        self._utilisation_known = True

    def read(self) -> dict[Metric, float]:
        """The readings, or nothing where there is no GPU or the last ones are fresh still."""
        if self._device.type != "cuda" or self._clock() < self._next:
            return {}
        self._next = self._clock() + EVERY_S
        values = {
            GPU_MEMORY_USED: float(torch.cuda.memory_reserved(self._device)),
            GPU_MEMORY: float(torch.cuda.get_device_properties(self._device).total_memory),
        }
        if self._utilisation_known:
            try:
                values[GPU_UTILISATION] = torch.cuda.utilization(self._device) / 100
            except Exception as error:  # noqa: BLE001 - whatever the driver's library raises, training goes on
                self._utilisation_known = False
                logger.warning("the GPU's utilisation can't be read and is left out: %s", error)
        return values
