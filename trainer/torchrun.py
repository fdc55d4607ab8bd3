"""The same worker loop without Ray: `torchrun --nproc-per-node 2 -m trainer.torchrun s3://bucket/project/job ATTEMPT`.

For machines without Ray, for debugging, and as the other side of benchmarks/start.py. Nobody replaces a dead worker.
"""

import argparse
import logging
import os
from datetime import timedelta
from urllib.parse import urlsplit

from resforge.metrics import Metric
from resforge.s3 import ObjectStore
from resforge.storage import JobPrefix
from trainer.lean import import_lightning
from trainer.settings import TrainerSettings
from trainer.start import mark, mark_process, marks


def main() -> None:
    mark_process("worker")
    mark("worker called")
    import_lightning()
    import torch
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from trainer.step import keep_compiled
    from trainer.worker import Place, run

    mark("worker imported")
    parser = argparse.ArgumentParser(prog="python -m trainer.torchrun", description=__doc__)
    parser.add_argument("prefix", help="the job's prefix, s3://bucket/project/job")
    parser.add_argument("attempt", type=int, help="the attempt's number, from 1")
    arguments = parser.parse_args()
    settings = TrainerSettings.from_environment()
    where = urlsplit(arguments.prefix)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=settings.collective_timeout_s))
    mark("group joined")
    keep_compiled(settings.scratch / "compiled")
    place = Place(
        rank=rank,
        workers=dist.get_world_size(),
        device=torch.device("cuda", local) if cuda else torch.device("cpu"),
        strategy=DDPStrategy,
        environment=TorchElasticEnvironment(),
        export=_nowhere,
        start=marks,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        nodes=dist.get_world_size() // int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    store = ObjectStore(where.netloc, endpoint=settings.s3_endpoint)
    prefix = JobPrefix(where.path.strip("/") + "/")
    run(store, prefix, arguments.attempt, place, cache=settings.scratch / "data", cache_bytes=settings.cache_bytes)
    dist.destroy_process_group()
    if rank == 0:
        keys = prefix.attempt(arguments.attempt)
        store.put(keys.result, store.get(keys.verdict), "application/json")


def _nowhere(values: dict[Metric, float], /, **labels: str) -> None:
    """Metrics are exported under Ray alone; the streams in object storage hold them all."""


if __name__ == "__main__":
    main()
