"""How the workers of a gang find each other, as Ray Train is told of it.

The driver and Ray Train's controller import this module, so it imports neither torch nor Lightning: the one needs them
not at all, the other only once the workers are there, which import theirs at the same time.
"""

from dataclasses import dataclass

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.util import TrainingFramework


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
        prepared = worker_group.execute_async(_prepare)
        backend, config = _torch(backend_config)
        ray.get(prepared)
        backend.on_start(worker_group, config)

    def on_shutdown(self, worker_group: WorkerGroup, backend_config: GangConfig) -> None:
        backend, config = _torch(backend_config)
        backend.on_shutdown(worker_group, config)


def _torch(config: GangConfig) -> tuple[Backend, BackendConfig]:
    from ray.train.torch.config import TorchConfig, _TorchBackend

    return _TorchBackend(), TorchConfig(timeout_s=config.timeout_s)


def _prepare() -> None:
    from trainer.lean import import_lightning
    from trainer.rendezvous import use_this_store

    import_lightning()
    use_this_store()
