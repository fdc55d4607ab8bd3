"""What one worker does: open the data, build the network, take up the newest verified checkpoint, train, and say how it
ended. It knows nothing of Ray; whoever starts it has set up the process group and hands it a Lightning strategy.

The step is the unit of everything. Lightning sees one pass over a loader that begins at the step to go on from, and
ends at the job's last; an epoch is a fact of the sampler. So resuming in the middle of an epoch is no special case.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from resforge.s3 import ObjectStore
from resforge.spec import TrainSpec
from resforge.storage import AttemptDocument, JobDocument, JobPrefix, Result, StoredCheckpoint
from trainer.callbacks.checkpointing import Checkpointing
from trainer.callbacks.control import Control
from trainer.callbacks.evaluation import Evaluation
from trainer.callbacks.restore import Restore
from trainer.callbacks.schedule import Schedule
from trainer.callbacks.telemetry import Telemetry
from trainer.checkpoints import Snapshot, newest_verified, read_checkpoint, set_aside
from trainer.classifier import Classifier
from trainer.compiled import Artifacts
from trainer.data.image_set import ImageSet
from trainer.data.loader import Loader, eval_loader, train_loader
from trainer.data.progressive import Sizes
from trainer.data.sampler import TrainSampler, steps_per_epoch
from trainer.data.sets import input_normalisation
from trainer.data.splits import open_split
from trainer.errors import CannotCompile, OutOfMemory, TrainingFault
from trainer.initial import described, freeze_backbone, initial_network
from trainer.models import build
from trainer.pod import Pod
from trainer.run import Export, Run
from trainer.step import compile_mode, compiled, ddp_options, forward_pass, why_not_compiled
from trainer.streams import Shipper
from trainer.threads import use_cores
from trainer.writer import Writer

logger = logging.getLogger(__name__)

T = TypeVar("T")
EVAL_BATCH = 256


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        rank, workers: this worker's number, from 0, and how many there are.
        device: what it trains on.
        strategy: makes Lightning's strategy, of DDP's options (`trainer.step.ddp_options`).
        environment: Lightning's, for the process group that stands already.
        export: hands metrics to whatever collects them. Every rank exports its own; rank 0 also the job's.
        pod: where the worker learns that its pod is to end.
        start: when the start had come how far (trainer.start), here and in the driver.
        devices, nodes: Lightning's: workers on this node, and nodes. Under Ray each worker is its own.
    """

    rank: int
    workers: int
    device: torch.device
    strategy: Callable[..., DDPStrategy]
    environment: ClusterEnvironment
    export: Export
    pod: Pod = field(default_factory=Pod)
    start: Mapping[str, float] = field(default_factory=dict)
    devices: int = 1
    nodes: int = 1


def run(
    store: ObjectStore, prefix: JobPrefix, attempt: int, place: Place, *, cache: Path, cache_bytes: int | None = None
) -> None:
    """Train to the end of the job, or until asked to stop. Every rank calls it; all see the same attempt.

    What is wrong with the job itself is written down as the attempt's verdict and not raised, since trying again would
    not help. Everything else (a peer that died, a store that is gone) is raised, so that the workers are replaced.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it advertises otherwise
    keys = prefix.attempt(attempt)
    if store.find(keys.verdict) is not None:
        logger.info("attempt %d has ended already; nothing to do", attempt)
        return
    if store.find(prefix.attempt(attempt + 1).attempt) is not None:
        logger.warning("attempt %d was given up, and another has begun; nothing to do", attempt)
        return
    place.pod.hold()
    job = JobDocument.model_validate_json(store.get(prefix.spec))
    told = AttemptDocument.model_validate_json(store.get(keys.attempt))
    try:
        with Shipper(store, keys) if place.rank == 0 else nullcontext() as shipper, _memory_named():
            _train(store, prefix, job, told, place, shipper, partial(_open, job, store, cache, cache_bytes))
    except TrainingFault as fault:
        logger.error("%s: %s", fault.reason, fault)
        # Any rank may be the one that found it; of several that write, each says the same.
        verdict = Result(at=datetime.now(UTC), outcome="failed", reason=fault.reason, message=str(fault))
        store.put(keys.verdict, verdict.to_bytes(), "application/json")
        if not fault.agreed:
            raise


def _train(
    store: ObjectStore,
    prefix: JobPrefix,
    job: JobDocument,
    told: AttemptDocument,
    place: Place,
    shipper: Shipper | None,
    open_images: Callable[[], tuple[ImageSet, ImageSet]],
) -> None:
    assert isinstance(job.spec, TrainSpec)
    spec, training = job.spec, job.spec.training
    started = time.monotonic()
    use_cores(spec.scaling.cpus_per_worker)
    opened = _beside(open_images)
    _over_ranks(place, None)  # the group's first exchange, before which NCCL connects all ranks
    with _agreement(place):
        images, held_out = opened.result()
        per_epoch = steps_per_epoch(len(images), training.global_batch)
        normalisation = input_normalisation(images, spec.data.mean).to(place.device)
        total_steps = training.total_steps(per_epoch)
        sizes = Sizes.of(spec, full=images.info.image_size, steps_per_epoch=per_epoch, total_steps=total_steps)
    run = Run(
        store=store,
        prefix=prefix,
        job=job,
        attempt=told.number,
        told=(*told.resume_from, told.number),
        rank=place.rank,
        workers=place.workers,
        device=place.device,
        steps_per_epoch=per_epoch,
        total_steps=total_steps,
        shipper=shipper,
        export=place.export,
    )
    snapshot = _resume(run)
    with _agreement(place):
        network = _network(job, store, snapshot).to(place.device, memory_format=torch.channels_last)
    run.step = snapshot.step if snapshot else 0
    run.announce({**place.start, "ready": time.time()})
    forward, artifacts = _forward(run, place, forward_pass(network, normalisation.normalise), sizes)
    module = Classifier(
        network,
        normalisation.normalise,
        forward,
        spec.optim.resolved(training.global_batch, per_epoch),
        spec.regularisation,
        sizes,
        device=place.device,
        seed=training.seed,
        rank=place.rank,
        start_step=run.step,
        total_steps=run.total_steps,
        frozen=spec.init is not None and spec.init.freeze,
    )
    sampler = TrainSampler(
        len(images), training.global_batch, seed=training.seed, rank=place.rank, workers=place.workers,
        start_step=run.step, total_steps=run.total_steps, order=images.order(training.global_batch, training.seed),
    )  # fmt: skip
    cpus, cuda = spec.scaling.cpus_per_worker, place.device.type == "cuda"
    loader = train_loader(images, sampler, spec.data.augment, cpus=cpus, pin_memory=cuda)

    def shown(images: ImageSet) -> Loader:
        return eval_loader(images, batch=EVAL_BATCH, rank=place.rank, workers=place.workers, cpus=cpus, pin_memory=cuda)

    tests, held_out_split = shown(held_out), "validation" if spec.data.validation else "test"
    own = shown(images) if training.evaluate_train else None
    logger.info("ready to train from step %d of %d after %.1f s", run.step, run.total_steps, time.monotonic() - started)
    writer, restore = Writer(run), Restore(run, snapshot, artifacts)
    del snapshot  # which is let go once it is restored
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator=place.device.type,
        devices=place.devices,
        num_nodes=place.nodes,
        strategy=place.strategy(
            **ddp_options(training, device=place.device, compiles=artifacts is not None, workers=place.workers)
        ),
        plugins=[place.environment],
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
        gradient_clip_val=spec.optim.clip_norm,
        # Ours, in this order: a checkpoint holds the evaluation of its step and what the schedule made of it, and a
        # stop comes after both.
        callbacks=[
            restore,
            Telemetry(run),
            Evaluation(run, tests, held_out_split, own),
            Schedule(run),
            Checkpointing(run, normalisation.state(), writer),
            Control(run, place.pod),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    if run.step < run.total_steps:
        with writer:
            trainer.fit(module, loader)
    run.finish()


def _network(job: JobDocument, store: ObjectStore, snapshot: Snapshot | None) -> nn.Module:
    """The network to train. A resumed run takes its weights from its own checkpoint, and needs no source any more."""
    assert isinstance(job.spec, TrainSpec)
    if snapshot is None:
        network = initial_network(job, store)
    else:
        torch.manual_seed(job.spec.training.seed)
        network = build(described(job))
    if job.spec.init is not None and job.spec.init.freeze:
        freeze_backbone(network, described(job).head)
    return network


def _forward(
    run: Run, place: Place, forward: Callable[..., Tensor], sizes: Sizes
) -> tuple[Callable[..., Tensor], Artifacts | None]:
    """The forward pass as the spec wants it computed, and what was compiled of it, if it is: on all ranks or on none.

    Raises:
        CannotCompile: the spec names a mode, and the host of some rank has no compiler that works.
    """
    assert isinstance(run.job.spec, TrainSpec)
    training = run.job.spec.training
    mode = compile_mode(training, place.device)
    if mode is None:
        return forward, None
    artifacts = Artifacts(run.store, run.job, place.device, workers=place.workers)
    artifacts.load()
    reasons = _over_ranks(place, why_not_compiled(mode, place.device))
    reason = next((f"rank {rank}: {why}" for rank, why in enumerate(reasons) if why), None)
    if reason is None:
        return compiled(forward, mode, sizes=sizes.count, alone=place.workers == 1), artifacts
    if training.compile != "auto":
        fault = CannotCompile(
            f"training.compile asks for {mode}, and the step can't be compiled here ({reason}); "
            "auto and off run it uncompiled"
        )
        fault.agreed = True
        raise fault
    run.event("NotCompiled", f"the step runs uncompiled, since it can't be compiled here: {reason}")
    return forward, None


@contextmanager
def _memory_named() -> Iterator[None]:
    """Give the want of memory its own name: trying again on the same device would not help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"the device's memory does not suffice; a smaller global batch may: {error}") from error


def _open(job: JobDocument, store: ObjectStore, cache: Path, cache_bytes: int | None) -> tuple[ImageSet, ImageSet]:
    """The training images, as many as the spec asks for, and the held-out ones."""
    data = job.spec.data

    def opened(split: str) -> ImageSet:
        return open_split(
            job, split, store_factory=lambda name: ObjectStore(name, endpoint=store.endpoint), cache_dir=cache,
            cache_bytes=cache_bytes,
        )  # fmt: skip

    images = opened("train")
    images.check(data.augment)
    return images, opened("validation" if data.validation else "test")


def _beside(work: Callable[[], T]) -> "Future[T]":
    """Do something in a thread, which nobody waits for who does not ask for what it gives."""
    given = Future[T]()

    def do() -> None:
        try:
            given.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for
            given.set_exception(error)

    threading.Thread(target=do, name="beside", daemon=True).start()
    return given


@contextmanager
def _agreement(place: Place) -> Iterator[None]:
    """Let a fault that any rank finds within be raised on every rank, so that none waits for one that has gone."""
    found: TrainingFault | None = None
    try:
        yield
    except TrainingFault as fault:
        found = fault
    for fault in _over_ranks(place, found):
        if fault:
            fault.agreed = True
            raise fault


def _over_ranks(place: Place, value: T | None) -> list[T | None]:
    """Every rank's value, by rank."""
    values: list[T | None] = [value]
    if place.workers > 1:
        values = [None] * place.workers
        dist.all_gather_object(values, value)
    return values


def _resume(run: Run) -> Snapshot | None:
    """The newest verified checkpoint that this attempt may use; rank 0 chooses, so that all take the same."""
    chosen: list[StoredCheckpoint | None] = [None]
    if run.rank == 0:
        chosen[0], damaged = newest_verified(run.store, run.prefix, run.told)
        for bad, why in damaged:
            run.event("CheckpointDamaged", f"the checkpoint of step {bad.manifest.step} is passed over: {why}")
            set_aside(run.store, bad)
    if run.workers > 1:
        dist.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return None
    manifest = chosen[0].manifest
    run.event(
        "Resumed", f"going on from step {manifest.step}, written by attempt {manifest.attempt}", step=manifest.step
    )
    run.evaluation = manifest.evaluation
    return read_checkpoint(run.store, chosen[0])
