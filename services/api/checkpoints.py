"""A job's checkpoints as the API shows them, read from their manifests."""

from pathlib import PurePosixPath

from resforge.jobs import Job
from resforge.resources import Checkpoint, CheckpointDownload, DownloadPart
from resforge.s3 import ObjectStore
from resforge.storage import JobPrefix, StoredCheckpoint, best, latest, list_checkpoints
from services.errors import CheckpointNotFound


def stored(objects: ObjectStore, job: Job) -> list[StoredCheckpoint]:
    """The checkpoints of all the job's attempts, by step."""
    found = list_checkpoints(objects, JobPrefix.of(job.project, job.id), range(1, job.attempts + 1))
    return [item for item in found if all(_stays_inside(part.name) for part in item.manifest.parts)]


def _stays_inside(name: str) -> bool:
    """Whether a part lies under its checkpoint's key. A manifest is written by workers, which run people's code, and
    a server that keeps objects in files may follow `..` into another project."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def describe(found: list[StoredCheckpoint]) -> list[Checkpoint]:
    """What is told of each, in the same order."""
    top, newest = best(found), latest(found)
    return [_describe(item, best=item is top, latest=item is newest) for item in found]


def choose(found: list[StoredCheckpoint], which: str) -> int:
    """The index of the one that is called `best`, `latest` or by its step; of two attempts', the newer one's.

    Raises:
        CheckpointNotFound: there is none; the message says which there are.
    """
    if not found:
        raise CheckpointNotFound("the job has no checkpoint yet")
    if which in ("best", "latest"):
        chosen = best(found) if which == "best" else latest(found)
        if chosen is None:
            raise CheckpointNotFound("none of the job's checkpoints was evaluated yet; `latest` is there")
        return next(index for index, item in enumerate(found) if item is chosen)
    steps = [item.manifest.step for item in found]
    if int(which) not in steps:
        known = ", ".join(str(step) for step in sorted(set(steps))[-20:])
        raise CheckpointNotFound(f"there is no checkpoint of step {int(which)}; there are best, latest and {known}")
    return max(index for index, step in enumerate(steps) if step == int(which))


def download(
    objects: ObjectStore, checkpoint: Checkpoint, item: StoredCheckpoint, *, expires_s: int
) -> CheckpointDownload:
    """An address for each part, made for where the user stands."""
    parts = []
    for part in item.manifest.parts:
        address = objects.presign(item.key + part.name, expires_s=expires_s)
        parts.append(DownloadPart(**part.model_dump(), url=address.url, expires_at=address.expires_at))
    return CheckpointDownload(checkpoint=checkpoint, manifest=item.manifest, parts=tuple(parts))


def _describe(item: StoredCheckpoint, *, best: bool, latest: bool) -> Checkpoint:
    manifest = item.manifest
    return Checkpoint(
        attempt=manifest.attempt,
        step=manifest.step,
        epoch=manifest.epoch,
        created_at=manifest.created_at,
        final=manifest.final,
        best=best,
        latest=latest,
        evaluation=manifest.evaluation,
        size=manifest.size,
        parts=manifest.parts,
    )
