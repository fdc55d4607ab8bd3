"""A gang of real worker processes without Ray: the loop of trainer/worker.py over gloo, which tests can kill.

Workers are forked from a server that has torch and Lightning imported, so a gang stands in a fraction of a second.
"""

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from resforge import metrics
from resforge.jobs import DatasetInfo
from resforge.metrics import Metric
from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import AttemptDocument, JobDocument, JobPrefix, Result
from tests.s3 import S3Server, free_port
from tests.services.local.waiting import until

DIGITS = DatasetInfo(
    name="digits", format="digits", channels=1, classes=10, image_size=8, train_images=1437, test_images=360
)


@dataclass(frozen=True)
class Kill:
    """Kill rank `rank` with SIGKILL as soon as rank 0 has reported step `step`; with `when`, a file, once that is there
    as well: until then no rank gets further."""

    rank: int
    step: int
    when: Path | None = None


def write_job(store: ObjectStore, spec: TrainSpec, job: str, dataset: DatasetInfo = DIGITS) -> JobPrefix:
    """What the controller writes before a job's first attempt."""
    prefix = JobPrefix.of("default", job)
    document = JobDocument(job=job, project="default", spec=spec, dataset=dataset)
    store.put(prefix.spec, document.to_bytes())
    return prefix


def run_gang(
    s3: S3Server,
    prefix: JobPrefix,
    attempt: int,
    workers: int,
    *,
    cache: Path,
    resume_from: Sequence[int] = (),
    kill: Kill | None = None,
    exports: Path | None = None,
    pods: Path | None = None,
    plain_ddp: bool = False,
    backend: str | None = None,
    timeout_s: float = 120,
) -> Result | None:
    """Run one attempt to its end, or until a kill brings the gang down; its verdict, if it left one.

    Workers that are done live on until all are, as under Ray Train.
    When one worker dies, the others are killed too, as Ray Train does. With `exports`, a folder, each rank adds what it
    exports to the file of its number there, a line of JSON each time. With `pods`, each rank is in a pod of its own,
    whose folder there has its number. With `plain_ddp`, DDP has none of our options. With `backend`, what is compiled
    is compiled by it, whether or not this host has a C++ compiler, and cut where DDP's small buckets end.
    """
    store = s3.store()
    keys = prefix.attempt(attempt)
    store.put(keys.attempt, AttemptDocument(number=attempt, resume_from=tuple(resume_from)).to_bytes())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.worker", "tests.trainer.gang"])
    pids = context.Array("i", workers)
    port, done = free_port(), context.Barrier(workers)
    processes = [
        context.Process(
            target=_work,
            args=(
                rank,
                workers,
                port,
                pids,
                s3.endpoint,
                s3.environment,
                s3.bucket,
                prefix,
                attempt,
                cache,
                kill,
                exports,
                pods,
                plain_ddp,
                backend,
                done,
            ),
            daemon=True,
        )
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        waiting = {process.sentinel: process for process in processes}
        while waiting:
            ended = multiprocessing.connection.wait(list(waiting), timeout_s)
            assert ended, f"the gang did not end within {timeout_s} s"
            if any(waiting.pop(sentinel).exitcode for sentinel in ended):  # type: ignore[call-overload]
                break
    finally:
        for process in processes:
            process.kill()
            process.join()
    data = store.find(keys.verdict)
    return Result.model_validate_json(data) if data else None


def _work(
    rank: int, workers: int, port: int, pids: Any, endpoint: str, environment: dict[str, str], bucket: str,
    prefix: JobPrefix, attempt: int, cache: Path, kill: Kill | None, exports: Path | None,
    pods: Path | None, plain_ddp: bool, backend: str | None, done: Any,
) -> None:  # fmt: skip
    import torch
    import torch.distributed as dist
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from trainer import step, worker
    from trainer.pod import Pod
    from trainer.worker import Place, run

    strategy: Callable[..., DDPStrategy] = DDPStrategy
    if backend:
        import torch._dynamo

        graphs: list[object] = []

        def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
            graphs.append(graph)
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

        worker.why_not_compiled = lambda *_: None
        worker.compiled = partial(step.compiled, backend=counting)
        # Buckets as small as the network: its graph is cut where they end.
        dist._DEFAULT_FIRST_BUCKET_BYTES = 16_000
        strategy = partial(DDPStrategy, bucket_cap_mb=0.02)

    logging.basicConfig(level=logging.WARNING)
    pids[rank] = os.getpid()
    os.environ.update(
        environment, RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_RANK=str(rank), NODE_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    dist.init_process_group("gloo", rank=rank, world_size=workers, timeout=timedelta(seconds=60))

    class Environment(LightningEnvironment):
        @property
        def creates_processes_externally(self) -> bool:
            return True

        def world_size(self) -> int:
            return workers

        def global_rank(self) -> int:
            return rank

        def set_world_size(self, size: int) -> None: ...

        def set_global_rank(self, rank: int) -> None: ...

    def export(values: dict[Metric, float], /, **labels: str) -> None:
        if exports:
            with (exports / str(rank)).open("a") as file:
                named = {metric.name: value for metric, value in values.items()}
                file.write(json.dumps({"at": time.monotonic(), "values": named, "labels": labels}) + "\n")
        if kill and values.get(metrics.STEP, -1) >= kill.step:
            if kill.when:
                until(kill.when.exists, within_s=60, what="the moment to kill")
            os.kill(pids[kill.rank], signal.SIGKILL)

    place = Place(
        rank=rank, workers=workers, device=torch.device("cpu"),
        strategy=(lambda **_: DDPStrategy()) if plain_ddp else strategy, environment=Environment(),
        export=export, devices=workers, pod=Pod(pods / str(rank) if pods else None),
    )  # fmt: skip
    try:
        run(ObjectStore(bucket, endpoint=endpoint), prefix, attempt, place, cache=cache)
    except Exception:  # noqa: BLE001 - told by the exit code
        traceback.print_exc()
        os._exit(1)
    if backend and len(graphs) < 3:
        raise AssertionError(f"the compiled step was cut into {len(graphs)} graphs, and has more buckets")
    done.wait(60)
    os._exit(0)  # without the farewells of a process group whose other members may be dead
