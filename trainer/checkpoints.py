"""Checkpoints: written as parts first and a manifest last, verified before anything is trusted to them.

Weights are safetensors, for people; what is needed to go on lies beside them in `trainer.pt`, which is loaded with
`weights_only`. Where an average of the weights is kept, it is what people get, since it is what was evaluated; the
weights that training goes on with are in `trainer.pt` then. Only rank 0 writes and removes.
"""

import hashlib
import io
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from resforge.metrics import EvalPoint
from resforge.s3 import ObjectNotFound, ObjectStore
from resforge.storage import (
    DAMAGED,
    INPUT,
    MANIFEST,
    TRAINER_STATE,
    WEIGHTS,
    CorruptCheckpoint,
    JobDocument,
    JobPrefix,
    Manifest,
    Part,
    StoredCheckpoint,
    best,
    list_checkpoints,
)
from trainer.schedule import BEGUN, ScheduleState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """The state of a training run between two steps: all that a run needs to go on as if it had never stopped.

    Attributes:
        weights: the network's state dict (parameters, and rank 0's batch norm statistics).
        inputs: mean and standard deviation by which images are normalised.
        optimizer: the optimiser's state dict (momentum).
        rng: each rank's random states, by rank.
        step: optimiser steps done; the sampler's place follows from it.
        schedule: what the schedule of the learning rate remembers.
        averaged: the same as `weights` with their moving average, where one is kept.
    """

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: list[dict[str, Any]]
    step: int
    schedule: ScheduleState = BEGUN
    averaged: dict[str, Tensor] | None = None

    def copied(self) -> Self:
        """The same in the host's memory, which later steps do not change.

        From a GPU the copies are only asked for, into pinned memory: they are there once its current stream has come so
        far, and what the training asks of that stream next comes behind them.
        """
        return replace(
            self,
            weights=_copied(self.weights),
            inputs=_copied(self.inputs),
            optimizer=_copied(self.optimizer),
            averaged=_copied(self.averaged),
        )


@dataclass(frozen=True)
class Moment:
    """What a manifest says of the moment it was taken at."""

    attempt: int
    epoch: int
    offset: int
    workers: int
    final: bool
    evaluation: EvalPoint | None


def rng_state() -> dict[str, Any]:
    """This process's random states, of tensors and plain values only, so that `weights_only` loads them."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [
            torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            numpy["state"]["pos"],
            numpy["has_gauss"],
            numpy["gauss"],
        ],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set what `rng_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    key, pos, has_gauss, cached = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": key.numpy().astype(np.uint32), "pos": pos},
            "has_gauss": has_gauss,
            "gauss": cached,
        }
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def write_checkpoint(
    store: ObjectStore, prefix: JobPrefix, job: JobDocument, snapshot: Snapshot, moment: Moment
) -> StoredCheckpoint:
    """Write a checkpoint: every part, then the manifest. Until that is there, the checkpoint does not exist.

    Raises:
        StorageError: a part or the manifest could not be written.
    """
    base = prefix.attempt(moment.attempt).checkpoint(snapshot.step)
    parts = []
    for name, data in _serialised(snapshot):  # one at a time, so that they are not all in memory
        store.put(base + name, data)
        parts.append(Part(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    manifest = Manifest(
        job=job.job,
        attempt=moment.attempt,
        step=snapshot.step,
        epoch=moment.epoch,
        offset=moment.offset,
        final=moment.final,
        created_at=datetime.now(UTC),
        workers=moment.workers,
        model=job.spec.model,
        channels=job.dataset.channels,
        classes=job.dataset.classes,
        image_size=job.spec.data.image_size(job.dataset.image_size),
        downscale=job.spec.data.downscale,
        dataset=job.dataset.name,
        dataset_format=job.dataset.format,
        evaluation=moment.evaluation,
        parts=tuple(parts),
    ).sealed()
    store.put(base + MANIFEST, manifest.to_bytes(), "application/json")
    return StoredCheckpoint(manifest, base)


def _serialised(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """The parts of a checkpoint, each with its name."""
    state: dict[str, Any] = {
        "optimizer": snapshot.optimizer,
        "rng": snapshot.rng,
        "step": snapshot.step,
        "schedule": asdict(snapshot.schedule),
    }
    shown = snapshot.weights
    if snapshot.averaged is not None:
        state["weights"], shown = _plain(snapshot.weights), snapshot.averaged
    yield WEIGHTS, save_tensors(_plain(shown))
    yield INPUT, save_tensors(_plain(snapshot.inputs))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    yield TRAINER_STATE, buffer.getvalue()


def read_checkpoint(store: ObjectStore, checkpoint: StoredCheckpoint) -> Snapshot:
    """Read a checkpoint, every part of it verified before it is parsed.

    Raises:
        CorruptCheckpoint: a part is absent, or its bytes are not those that were written.
        StorageError: object storage can't be read.
    """
    contents = {part.name: read_part(store, checkpoint, part) for part in checkpoint.manifest.parts}
    missing = {WEIGHTS, INPUT, TRAINER_STATE} - contents.keys()
    if missing:
        raise CorruptCheckpoint(f"{checkpoint.key} has no {', '.join(sorted(missing))}")
    state = torch.load(io.BytesIO(contents[TRAINER_STATE]), weights_only=True, map_location="cpu")
    shown, own = load_tensors(contents[WEIGHTS]), state.get("weights")
    return Snapshot(
        weights=shown if own is None else own,
        inputs=load_tensors(contents[INPUT]),
        optimizer=state["optimizer"],
        rng=state["rng"],
        step=state["step"],
        schedule=ScheduleState(**state.get("schedule", {})),  # older checkpoints have none
        averaged=None if own is None else shown,
    )


def newest_verified(
    store: ObjectStore, prefix: JobPrefix, attempts: Sequence[int]
) -> tuple[StoredCheckpoint | None, list[tuple[StoredCheckpoint, str]]]:
    """The checkpoint with most steps whose every byte is right, and the newer ones that were passed over, with why.

    Only checkpoints of `attempts` are looked at: those that the controller named, and the attempt's own.
    """
    damaged = []
    for checkpoint in reversed(list_checkpoints(store, prefix, attempts)):
        try:
            for part in checkpoint.manifest.parts:
                read_part(store, checkpoint, part)
        except CorruptCheckpoint as error:
            damaged.append((checkpoint, str(error)))
        else:
            return checkpoint, damaged
    return None, damaged


def set_aside(store: ObjectStore, checkpoint: StoredCheckpoint) -> None:
    """Let a damaged checkpoint be none any more, so that it takes no other's place; its parts stay to be looked at."""
    store.put(checkpoint.key + DAMAGED, checkpoint.manifest.to_bytes(), "application/json")
    store.delete(checkpoint.key + MANIFEST)


def remove_old(
    store: ObjectStore, prefix: JobPrefix, attempts: Sequence[int], keep_last: int, newest: StoredCheckpoint
) -> list[int]:
    """Remove all but the last `keep_last` checkpoints, the best and `newest`; the steps of those removed.

    A manifest goes before its parts, so that nobody ever sees a checkpoint that lacks some.
    """
    checkpoints = list_checkpoints(store, prefix, attempts)
    keep = {newest.key, *(item.key for item in checkpoints[-keep_last:])}
    top = best(checkpoints)
    if top:
        keep.add(top.key)
    removed = []
    for checkpoint in checkpoints:
        if checkpoint.key not in keep:
            store.delete(checkpoint.key + MANIFEST)
            store.delete_prefix(checkpoint.key)
            removed.append(checkpoint.manifest.step)
    return removed


def read_part(store: ObjectStore, checkpoint: StoredCheckpoint, part: Part) -> bytes:
    """One verified part of a checkpoint.

    Raises:
        CorruptCheckpoint: it is absent, or its bytes are not those that were written.
    """
    try:
        data = store.get(checkpoint.key + part.name)
    except ObjectNotFound as error:
        raise CorruptCheckpoint(f"{checkpoint.key}{part.name} is absent") from error
    if len(data) != part.size:
        raise CorruptCheckpoint(f"{checkpoint.key}{part.name} has {len(data)} bytes; {part.size} were written")
    digest = hashlib.sha256(data).hexdigest()
    if digest != part.sha256:
        raise CorruptCheckpoint(f"{checkpoint.key}{part.name} has SHA-256 {digest}; {part.sha256} was written")
    return data


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors keeps no strides, so channels_last must not leak into the bytes."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _copied(value: Any) -> Any:
    """The same, with every tensor in it copied to the host's memory as it lies: strides are kept."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
