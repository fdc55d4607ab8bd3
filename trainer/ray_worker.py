"""What Ray Train calls on each worker: it stands between Ray and `worker.run`, which knows nothing of Ray."""

import logging
import os
from pathlib import Path
from typing import TypedDict

from resforge.s3 import ObjectStore
from resforge.storage import JobPrefix
from trainer.lean import import_lightning


class WorkerConfig(TypedDict):
    """What the driver hands to each worker. Nothing secret: keys to object storage are the node's own."""

    bucket: str
    prefix: str
    attempt: int
    s3_endpoint: str | None
    scratch: str
    start: dict[str, float]


def train(config: WorkerConfig) -> None:
    """Ray Train's training function. The driver imports this module too, and needs nothing of what a worker needs."""
    import_lightning()
    import ray.train.torch
    import torch
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    from trainer.pod import Pod
    from trainer.ray_metrics import Gauges
    from trainer.settings import TrainerSettings
    from trainer.start import marks
    from trainer.step import keep_compiled
    from trainer.worker import Place, run

    context = ray.train.get_context()
    rank = context.get_world_rank()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.captureWarnings(True)
    prefix = JobPrefix(config["prefix"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL takes objects from
    settings = TrainerSettings.from_environment()  # this node's, not the driver's
    place = Place(
        rank=rank,
        workers=context.get_world_size(),
        device=device,
        strategy=RayDDPStrategy,
        environment=RayLightningEnvironment(),
        export=Gauges(job_id=prefix.key.rstrip("/").rsplit("/", 1)[1], attempt=str(config["attempt"]), rank=str(rank)),
        pod=Pod(settings.pod),
        start={**config["start"], **marks},
    )
    # Where kill-tests and people with a debugger find this worker.
    logging.getLogger(__name__).info("process %d is rank %d of %d", os.getpid(), rank, place.workers)
    store = ObjectStore(config["bucket"], endpoint=config["s3_endpoint"])
    keep_compiled(Path(config["scratch"]) / "compiled")
    cache = Path(config["scratch"]) / "data"
    run(store, prefix, config["attempt"], place, cache=cache, cache_bytes=settings.cache_bytes)
