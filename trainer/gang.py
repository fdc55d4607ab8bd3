"""How the workers of a gang find each other, as Ray Train is told of it.

The driver and Ray Train's controller import this module, so it imports neither torch nor Lightning, which neither of
them needs: each would take seconds of the cores on which the workers import theirs.
"""

import logging
import os
from dataclasses import dataclass

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.util import TrainingFramework

logger = logging.getLogger(__name__)

LEAVE_WITHIN_S = 30.0


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
        address, port = worker_group.execute_single(0, get_address_and_port)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        backend = "nccl" if gpus else "gloo"
        ray.get(worker_group.execute_async(_join, address, port, backend, backend_config.timeout_s))

    def on_shutdown(self, worker_group: WorkerGroup, backend_config: GangConfig) -> None:  # noqa: ARG002
        try:
            ray.get(worker_group.execute_async(_leave), timeout=LEAVE_WITHIN_S)
        except GetTimeoutError:
            logger.warning("the workers have not left their process group within %.0f s", LEAVE_WITHIN_S)


def _join(address: str, port: int, backend: str, timeout_s: int) -> None:
    """Enter the process group; on every worker. What is imported first, all of them import at the same time."""
    from trainer.start import mark, mark_process

    mark_process("worker")
    mark("worker called")
    from trainer.lean import import_lightning

    import_lightning()
    from datetime import timedelta

    import torch.distributed as dist

    import trainer.worker  # noqa: F401 - what training begins with, while the others are still on their way
    from trainer.rendezvous import use_this_store

    mark("worker imported")
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
