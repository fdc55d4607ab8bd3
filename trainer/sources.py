"""Checkpoints of other jobs: found by their reference, verified, and made into networks."""

from dataclasses import dataclass

from safetensors.torch import load as load_tensors
from torch import nn

from resforge.s3 import ObjectNotFound, ObjectStore
from resforge.spec import CheckpointRef
from resforge.storage import (
    INPUT,
    WEIGHTS,
    AttemptDocument,
    CorruptCheckpoint,
    JobDocument,
    JobPrefix,
    Manifest,
    StoredCheckpoint,
    best,
    latest,
    list_checkpoints,
)
from trainer.checkpoints import read_part
from trainer.data.transforms import Normalisation
from trainer.errors import SourceUnavailable
from trainer.models import build


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network.

    Attributes:
        network: in evaluation mode, on the CPU.
        manifest: its checkpoint's.
        normalisation: how it sees images.
    """

    network: nn.Module
    manifest: Manifest
    normalisation: Normalisation


@dataclass(frozen=True, kw_only=True)
class Source(Trained):
    """A trained network and where it came from.

    Attributes:
        job: what was asked of the job that trained it, and its data set.
    """

    job: JobDocument


def open_source(store: ObjectStore, project: str, reference: CheckpointRef) -> Source:
    """Read and verify the checkpoint that a reference names.

    Raises:
        SourceUnavailable: there is none, or its bytes are not those that were written.
        StorageError: object storage does not answer, or refuses.
    """
    prefix = JobPrefix.of(project, reference.job)
    document = store.find(prefix.spec)
    if document is None:
        raise SourceUnavailable(f"job {reference.job} has left nothing in object storage; it may have been deleted")
    found = choose(store, prefix, reference)
    try:
        parts = {
            part.name: read_part(store, found, part) for part in found.manifest.parts if part.name in (WEIGHTS, INPUT)
        }
    except CorruptCheckpoint as error:
        raise SourceUnavailable(f"the checkpoint {reference} is damaged: {error}") from error
    return Source(
        network=network_of(found.manifest, parts[WEIGHTS]),
        manifest=found.manifest,
        job=JobDocument.model_validate_json(document),
        normalisation=Normalisation.from_state(load_tensors(parts[INPUT])),
    )


def network_of(manifest: Manifest, weights: bytes) -> nn.Module:
    """The network of a manifest with the weights of a safetensors file, in evaluation mode."""
    network = build(
        manifest.model.network(channels=manifest.channels, classes=manifest.classes, image_size=manifest.image_size)
    )
    network.load_state_dict(load_tensors(weights))
    return network.eval()


def choose(store: ObjectStore, prefix: JobPrefix, reference: CheckpointRef) -> StoredCheckpoint:
    """The checkpoint that a reference names, among those of the job's newest attempt and of what it resumed.

    Raises:
        SourceUnavailable: there is none; the message says which there are.
    """
    numbers = sorted(int(name) for name in store.list_folders(prefix.attempts) if name.isdecimal())
    if not numbers:
        raise SourceUnavailable(f"job {reference.job} has made no attempt yet")
    try:
        told = AttemptDocument.model_validate_json(store.get(prefix.attempt(numbers[-1]).attempt))
    except ObjectNotFound as error:
        raise SourceUnavailable(f"job {reference.job} was not started in order: {error}") from error
    found = list_checkpoints(store, prefix, (*told.resume_from, told.number))
    if isinstance(reference.which, int):
        chosen = latest([item for item in found if item.manifest.step == reference.which])
    else:
        chosen = best(found) if reference.which == "best" else latest(found)
    if chosen is None:
        steps = ", ".join(str(item.manifest.step) for item in found[-20:]) or "none"
        raise SourceUnavailable(f"job {reference.job} has no checkpoint {reference.which}; there are those of {steps}")
    return chosen
