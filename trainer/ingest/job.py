"""An ingest: list the source, make the shards that are not there yet, and in the end the manifest.

A shard is done when its record is there (trainer/ingest/work.py), so whoever comes after goes on with what is left.
"""

import logging
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import TypeVar

import PIL

import resforge
from resforge.jobs import DatasetInfo
from resforge.reports import Report
from resforge.s3 import ObjectNotFound, ObjectStore, StorageRefused
from resforge.spec import IngestSpec, ScalingSpec
from resforge.storage import REPORT, JobDocument, JobPrefix, Result, dataset_folder
from trainer.data.formats import Split
from trainer.data.shards import MANIFEST, ShardManifest
from trainer.errors import InvalidData
from trainer.hardware import processor_name
from trainer.ingest.images import Encoding
from trainer.ingest.plan import Plan, ShardPlan, make_plan, some
from trainer.ingest.source import FOLDERS, Broken, list_split
from trainer.ingest.work import Place, ShardRecord, Work
from trainer.pace import Pace, conclude, ended, given_up
from trainer.settings import TrainerSettings
from trainer.streams import Shipper

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

EVERY_S = 1.0  # how often progress is told and a stop is heard, while nothing is done
LOOKERS = 8  # records looked for at a time
NAMED = 50  # broken images that an event names
LISTED = 10_000  # and the report
UNITS = {
    "classes": "classes",
    "train_images": "images of the training split",
    "test_images": "held-out images",
    "shards": "tars",
    "bytes": "bytes of all tars",
    "shorter_side": "pixels at most; null: as they were",
    "quality": "of the JPEGs that were made; null: none were",
    "broken_count": "images and tars of the source that were left out",
    "broken": f"their names and what is wrong, the first {LISTED:,}",
    "ignored": "files without the suffix of an image",
    "location": "where the manifest lies",
}


def perform(
    store: ObjectStore, prefix: JobPrefix, job: JobDocument, attempt: int, settings: TrainerSettings, shipper: Shipper
) -> Result | None:
    """Do the job and publish its report; say how it ended.

    Returns:
        None where another attempt has taken over meanwhile.

    Raises:
        StorageError: object storage does not answer; another attempt may do better.
    """
    if given_up(store, prefix, attempt):
        return None
    return conclude(lambda: _Ingest(store, prefix, job, attempt, settings, shipper).run())


class _Ingest:
    """One attempt."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: JobPrefix,
        job: JobDocument,
        attempt: int,
        settings: TrainerSettings,
        shipper: Shipper,
    ) -> None:
        assert isinstance(job.spec, IngestSpec)
        self.store, self.prefix, self.job, self.attempt, self.shipper = store, prefix, job, attempt, shipper
        self.spec = spec = job.spec
        self.pace = Pace(store, prefix, attempt, shipper)
        bucket, folder = store.bucket, dataset_folder(job.project, spec.dataset, job.job)
        if spec.target is not None:
            bucket, _, folder = spec.target.removeprefix("s3://").partition("/")
            folder += "/"
        self.work = Work(
            source=spec.source,
            target=Place(bucket, folder, store.endpoint),
            encoding=Encoding(spec.shorter_side, spec.quality),
            scratch=settings.scratch / "ingest",
            cpus=max(1, int(spec.scaling.cpus_per_worker)),
        )

    def run(self) -> Result:
        began = time.monotonic()
        self.pace(0, 1)
        try:
            plan = self._plan()
            records = self._shards(plan)
            manifest = self._manifest(plan, records)
        except (StorageRefused, ObjectNotFound) as error:
            raise InvalidData(f"source or target can't be used: {error}") from error
        info = self._info(manifest)
        report = self._report(plan, records, manifest, seconds=time.monotonic() - began)
        keys = self.prefix.attempt(self.attempt)
        self.store.put(keys.report + REPORT, report.to_bytes(), "application/json")
        self.shipper.event("DatasetIngested", report.title, location=self.work.target.uri, broken=manifest.broken)
        return ended("succeeded", step=len(plan.shards), dataset=info)

    def _plan(self) -> Plan:
        source = self.work.open()
        listings = {split: list_split(source, split) for split in FOLDERS}
        tars = [tar for listing in listings.values() for tar in listing.tars]
        if tars:
            self.shipper.event("TarsFound", f"{len(tars)} tars are looked into", tars=len(tars))
        for listing in listings.values():
            for looked in self._each(self.work.look_into, listing.tars):
                self.pace(0, 1)
                if looked is not None:
                    listing.images += looked.images
                    listing.broken += looked.broken
                    listing.ignored += looked.ignored
        plan = make_plan(listings, self.spec.shard_bytes, source.where)
        images = sum(len(shard.images) for shard in plan.shards)
        self.shipper.event(
            "SourceListed",
            f"{images:,} images of {len(plan.classes)} classes go into {len(plan.shards)} shards",
            images=images,
            classes=len(plan.classes),
            shards=len(plan.shards),
            ignored=plan.ignored,
        )
        return plan

    def _shards(self, plan: Plan) -> list[ShardRecord]:
        """The records of all shards, in the plan's order, once all are done."""
        with ThreadPoolExecutor(LOOKERS) as pool:
            found = pool.map(self.work.done, plan.shards)
            records = {
                shard.name: record for shard, record in zip(plan.shards, found, strict=True) if record is not None
            }
        left = [shard for shard in plan.shards if shard.name not in records]
        if left and self.work.target.store.find(self.work.target.key(MANIFEST)) is not None:
            raise InvalidData(
                f"{self.work.target.uri} holds another data set already, whose readers these shards would break; "
                "name another target, or remove what is there"
            )
        if records:
            self.shipper.event(
                "IngestResumed",
                f"{len(records)} of {len(plan.shards)} shards are there already",
                done=len(records),
                shards=len(plan.shards),
            )
        total, before, images, began = len(plan.shards), len(records), 0, time.monotonic()
        self.pace(before, total)
        by_digest = {shard.digest(self.work.encoding.options()): shard for shard in left}
        for record in self._each(self.work, left):
            if record is not None:
                shard = by_digest[record.plan]
                records[shard.name] = record
                images += len(shard.images)
            done, spent = len(records), time.monotonic() - began
            new = done - before
            eta_s = spent / new * (total - done) if new else None
            self.pace(done, total, eta_s=eta_s, images_per_second=images / spent if new else None)
        return [records[shard.name] for shard in plan.shards]

    def _each(self, function: Callable[[T], R], items: list[T]) -> Iterator[R | None]:
        """Here, or over Ray where the job has several workers; None where EVERY_S passed without a result."""
        scaling: ScalingSpec = self.spec.scaling
        if scaling.workers == 1 or not items:
            return _each_here(function, items)
        from trainer.ray_tasks import each_over_ray

        return each_over_ray(scaling, function, items, every_s=EVERY_S)

    def _manifest(self, plan: Plan, records: list[ShardRecord]) -> ShardManifest:
        """Check what there is, and write the manifest, last of all."""
        broken = _broken(plan, records)
        if broken:
            first = [item.model_dump() for item in broken[:NAMED]]
            told = f"{len(broken)} of the source can't be used: {some(item.name for item in broken)}"
            self.shipper.event("ImagesBroken", told, count=len(broken), first=first)
        for split, shards in _by_split(plan.shards, records).items():
            labels = Counter[int]()
            for record in shards:
                labels.update(record.labels)
            if empty := [f"{split}/{name}" for label, name in enumerate(plan.classes) if not labels[label]]:
                raise InvalidData(
                    f"no image of {some(empty)} can be used; the first that is broken: "
                    f"{next((f'{item.name}: {item.reason}' for item in broken), 'none')}"
                )
        manifest = ShardManifest(
            classes=plan.classes,
            shorter_side=self.spec.shorter_side,
            quality=None if self.spec.shorter_side is None else self.spec.quality,
            splits={
                split: tuple(record.shard for record in shards if record.shard is not None)
                for split, shards in _by_split(plan.shards, records).items()
            },
            broken=len(broken),
        )
        target = self.work.target
        target.store.put(target.key(MANIFEST), manifest.to_bytes(), "application/json")
        return manifest

    def _info(self, manifest: ShardManifest) -> DatasetInfo:
        spec = self.spec
        kept = "their bytes untouched" if spec.shorter_side is None else f"shorter side at most {spec.shorter_side}"
        left_out = f"; {manifest.broken} broken left out" if manifest.broken else ""
        return DatasetInfo(
            name=spec.dataset,
            format="shards",
            location=self.work.target.uri,
            channels=spec.channels,
            classes=len(manifest.classes),
            image_size=spec.image_size,
            train_images=manifest.images("train"),
            test_images=manifest.images("test"),
            description=f"Ingested from {spec.source}, {kept}{left_out}",
        )

    def _report(self, plan: Plan, records: list[ShardRecord], manifest: ShardManifest, *, seconds: float) -> Report:
        broken = _broken(plan, records)
        train, test = manifest.images("train"), manifest.images("test")
        shards = [shard for split in manifest.splits.values() for shard in split]
        size = sum(shard.size for shard in shards)
        return Report(
            kind="ingest",
            name="ingest",
            title=f"{self.spec.dataset}: {train:,} training and {test:,} test images of {len(manifest.classes)} "
            f"classes in {len(shards)} shards, {size / 1e6:,.1f} MB",
            job=self.job.job,
            attempt=self.attempt,
            checkpoints=(),
            dataset=self.spec.dataset,
            split=", ".join(manifest.splits),
            images=train + test,
            units=UNITS,
            values={
                "classes": len(manifest.classes),
                "train_images": train,
                "test_images": test,
                "shards": len(shards),
                "bytes": size,
                "shorter_side": manifest.shorter_side,
                "quality": manifest.quality,
                "broken_count": len(broken),
                "broken": [item.model_dump() for item in broken[:LISTED]],
                "ignored": plan.ignored,
                "location": self.work.target.uri,
            },
            seconds=seconds,
            device=processor_name(),
            versions={
                "resforge": resforge.__version__, "pillow": PIL.__version__, "python": platform.python_version()
            },
            made_at=datetime.now(UTC),
        )  # fmt: skip


def _broken(plan: Plan, records: Iterable[ShardRecord]) -> list[Broken]:
    found = [*plan.broken, *(item for record in records for item in record.broken)]
    return sorted(found, key=lambda item: item.name)


def _by_split(shards: Iterable[ShardPlan], records: Iterable[ShardRecord]) -> dict[Split, list[ShardRecord]]:
    found: dict[Split, list[ShardRecord]] = {}
    for shard, record in zip(shards, records, strict=True):
        found.setdefault(shard.split, []).append(record)
    return found


def _each_here(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R | None]:
    """As `each_over_ray`, in a thread of this process, one after the other."""
    pool = ThreadPoolExecutor(1)
    try:
        for item in items:
            future = pool.submit(function, item)
            while not wait([future], timeout=EVERY_S).done:
                yield None
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
