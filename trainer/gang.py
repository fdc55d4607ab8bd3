"""How the workers of a gang find each other, as Ray Train is told of it.

The driver, in which Ray Train's controller runs, imports this module, so it imports neither torch nor Lightning: each
would take seconds for which the workers wait.
"""

import logging
import os
from dataclasses import dataclass

import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.util import TrainingFramework

logger = logging.getLogger(__name__)

LEAVE_WITHIN_S = 30.0


class GangNotJoined(WorkerGroupStartupFailedError):
    """A worker was lost, or failed, before all had joined; Ray Train tries again with others."""


@dataclass
class GangConfig(BackendConfig):
    """Ray Train's set-up of torch's process group, with our store (see `trainer.rendezvous`).

    Attributes:
        timeout_s: a collective operation that takes longer is an error, in seconds.
    """

    timeout_s: int

    @property
    def framework(self) -> TrainingFramework:
        """What Ray's dashboard says that this is."""
        return TrainingFramework.TORCH

    @property
    def backend_cls(self) -> type["_GangBackend"]:
        return _GangBackend


class _GangBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: WorkerGroup, backend_config: GangConfig) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        try:
            ready = worker_group.execute_async(_prepare)
            # Behind rank 0's imports, so that nobody takes the port meanwhile.
            address, port = worker_group.execute_single(0, get_address_and_port)
            ray.get(ready)
            ray.get(worker_group.execute_async(_join, address, port, backend, backend_config.timeout_s))
        except RayError as error:
            # Ray would leave the workers where they are, and find no room for others.
            worker_group.abort()
            lines = str(error).strip().splitlines()
            raise GangNotJoined(f"{lines[-1] if lines else type(error).__name__}"[:500]) from error

    def on_shutdown(self, worker_group: WorkerGroup, backend_config: GangConfig) -> None:  # noqa: ARG002
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_WITHIN_S)
        except GetTimeoutError:
            logger.warning("the workers have not left their process group within %.0f s", LEAVE_WITHIN_S)


def _prepare() -> None:
    """Import what training begins with; on all workers at the same time."""
    from trainer.start import mark, mark_process

    mark_process("worker")
    mark("worker called")
    from trainer.lean import import_lightning

    import_lightning()
    import trainer.worker  # noqa: F401

    mark("worker imported")


def _join(address: str, port: int, backend: str, timeout_s: int) -> None:
    """Enter the process group; on every worker."""
    from datetime import timedelta

    import torch.distributed as dist

    from trainer.rendezvous import use_this_store
    from trainer.start import mark

    context = ray.train.get_context()
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(context.get_world_rank()),
        WORLD_SIZE=str(context.get_world_size()),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
    )
    use_this_store()
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    mark("group joined")


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
