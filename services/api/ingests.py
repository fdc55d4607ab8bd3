"""Whether a project may ingest what it asks to: from where, to where, and under which name; and how what it has
ingested is removed."""

import json
import logging
from collections.abc import Iterator
from pathlib import PurePosixPath

from resforge.jobs import DatasetInfo
from resforge.resources import RemovedDataset
from resforge.s3 import ObjectStore
from resforge.spec import FieldProblem, IngestSpec
from resforge.storage import datasets_folder, overlap, own_folder
from services.errors import DatasetNameTaken, DatasetNotFound
from services.settings import Settings
from services.store.store import JobStore

logger = logging.getLogger(__name__)


def place_problems(
    spec: IngestSpec, project: str, settings: Settings, store: JobStore, idempotency_key: str | None
) -> list[FieldProblem]:
    """Why images may not be read there, or shards not be written there.

    What other buckets let the trainer's keys do is theirs to say. In the service's own, a project has its own part.
    """
    found = list(_source_problems(spec.source, project, settings))
    if spec.target is not None and not _in_own_part(spec.target, datasets_folder(project), settings.s3_bucket):
        accepted = f"s3://{settings.s3_bucket}/{datasets_folder(project)}"
        message = f"in the service's own bucket, data sets of this project lie below {accepted}"
        found.append(_problem("/target", message, spec.target))
    if spec.target is not None and not found:
        for there in store.ingest_targets(project, idempotency_key):
            if overlap(there, spec.target):
                message = f"an ingest writes to {there} now, and two would spoil each other's shards; wait for its end"
                return [_problem("/target", message, spec.target)]
    return found


def _source_problems(source: str, project: str, settings: Settings) -> Iterator[FieldProblem]:
    if source.startswith("s3://"):
        if not _in_own_part(source, f"{project}/", settings.s3_bucket):
            message = f"of the service's own bucket, this project may read s3://{settings.s3_bucket}/{project}/ alone"
            yield _problem("/source", message, source)
    elif not any(PurePosixPath(source).is_relative_to(root) for root in settings.data_roots):
        below = f"folders below {', '.join(settings.data_roots)} and " if settings.data_roots else "only "
        message = f"this folder may not be read here; accepted are {below}s3://bucket/prefix"
        yield _problem("/source", f"{message}. An operator allows folders by RESFORGE_DATA_ROOTS", source)


def _in_own_part(address: str, folder: str, own_bucket: str) -> bool:
    """Whether an s3:// address is in another bucket than the service's, or below that folder of it."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket != own_bucket or f"{key}/".startswith(folder)


def dataset_to_be(spec: IngestSpec, project: str, store: JobStore) -> DatasetInfo:
    """What is known of the data set before it is there. Its classes are counted later; two is the least.

    Raises:
        DatasetNameTaken: the name is an operator's data set, or another project's.
    """
    try:
        there = store.dataset(spec.dataset)
    except DatasetNotFound:
        there = None
    if there is not None and there.project != project:
        raise DatasetNameTaken(
            f"there is a data set {spec.dataset} that this project has not ingested, and it is not replaced; give "
            "another name"
        )
    return DatasetInfo(
        name=spec.dataset,
        format="shards",
        location=spec.target,
        channels=spec.channels,
        classes=2,
        image_size=spec.image_size,
        project=project,
    )


def remove(name: str, project: str, store: JobStore, objects: ObjectStore) -> RemovedDataset:
    """Unregister a data set and then remove its objects, where they are the service's to remove.

    Unlike a job, which nobody builds upon while it is deleted, it is unregistered first: a job that begins to read it
    meanwhile would fail. Should this process end between the two, its objects are left, and an operator's to remove.

    Raises:
        DatasetInUse, DatasetNotFound, DatasetNotIngested, DatasetsOverlap: as JobStore.remove_dataset does.
        StorageRefused, StorageUnavailable: some objects may be removed; the data set is registered again, so that
            this can be repeated.
    """
    dataset = store.remove_dataset(project, name, bucket=objects.bucket)
    folder = own_folder(dataset, objects.bucket)
    try:
        removed = 0 if folder is None else objects.delete_prefix(folder)
    except Exception:
        if not store.restore_dataset(dataset):
            logger.warning("data set %s of %s: some objects are left at %s", name, project, dataset.location)
        raise
    return RemovedDataset(deleted=name, objects_removed=removed, location=dataset.location, objects_left=folder is None)


def _problem(pointer: str, message: str, given: str) -> FieldProblem:
    return FieldProblem(pointer=pointer, message=message, given=json.dumps(given))
