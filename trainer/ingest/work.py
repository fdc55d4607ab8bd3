"""The work on one shard: read and check its images, write the tar and its index, and a record that it is done."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore

from pydantic import Field, TypeAdapter, ValidationError

from resforge.s3 import ObjectStore
from resforge.storage import Document
from trainer.data.shards import Shard, ShardWriter
from trainer.ingest.images import BrokenImage, Encoding, encode
from trainer.ingest.plan import Placed, ShardPlan
from trainer.ingest.source import Broken, Listing, Source, look_into, source_at

READERS = 8  # images read at a time: from S3 that is mostly waiting
AHEAD = 32  # images that are held in memory, encoded or not
LISTING = TypeAdapter(Listing)


class ShardRecord(Document):
    """What became of a shard; it is written when its tar and its index are there."""

    plan: str = Field(description="ShardPlan.digest of what was to go in.")
    shard: Shard | None = Field(description="None where no image could be used.")
    labels: dict[int, int] = Field(description="Images by class.")
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where shards go: a bucket and the manifest's folder in it, which ends in a slash. `endpoint`: None for AWS."""

    bucket: str
    folder: str
    endpoint: str | None

    @property
    def store(self) -> ObjectStore:
        return _connected(self.bucket, self.endpoint)

    def key(self, name: str) -> str:
        return self.folder + name

    def record(self, shard: ShardPlan) -> str:
        """The key of a shard's record."""
        return self.key(f"ingest/{shard.name.removesuffix('.tar')}.json")

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.folder.rstrip('/')}"


@dataclass(frozen=True)
class Work:
    """What is done to each shard. It goes to other machines, so it holds addresses and no connections."""

    source: str
    target: Place
    encoding: Encoding
    scratch: Path
    cpus: int = 1  # images decoded at a time

    def open(self) -> Source:
        return source_at(self.source, lambda bucket: _connected(bucket, self.target.endpoint))

    def look_into(self, tar: tuple[str, str, int]) -> Listing:
        """The images of one class's tar, which is read from end to end for it, unless that was done before."""
        _, name, size = tar
        key = self.target.key(f"ingest/{name}.{size}.json")
        data = self.target.store.find(key)
        if data is not None:
            return LISTING.validate_json(data)
        listing = look_into(self.open(), *tar)
        self.target.store.put(key, LISTING.dump_json(listing), "application/json")
        return listing

    def done(self, shard: ShardPlan) -> ShardRecord | None:
        """The shard's record, where it was made of the same images in the same way."""
        data = self.target.store.find(self.target.record(shard))
        try:
            record = ShardRecord.model_validate_json(data) if data else None
        except ValidationError:
            return None
        return record if record and record.plan == shard.digest(self.encoding.options()) else None

    def __call__(self, shard: ShardPlan) -> ShardRecord:
        """Make the shard.

        Raises:
            StorageError: source or target does not answer, or refuses.
        """
        store, source = self.target.store, self.open()
        broken: list[Broken] = []
        labels: Counter[int] = Counter()
        self.scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.scratch, prefix="shard-") as folder:
            writer = ShardWriter(Path(folder) / "shard.tar")
            for image, outcome in self._images(source, shard):
                if isinstance(outcome, BrokenImage):
                    broken.append(Broken(name=image.found.name, reason=str(outcome)))
                    continue
                data, suffix = outcome
                writer.add(image.name, suffix, data, image.label)
                labels[image.label] += 1
            made, index = writer.close(shard.name)
            if labels:
                store.upload(self.target.key(made.name), writer.path)
                store.put(self.target.key(made.index), index)
        record = ShardRecord(
            plan=shard.digest(self.encoding.options()),
            shard=made if labels else None,
            labels=dict(sorted(labels.items())),
            broken=tuple(broken),
        )
        store.put(self.target.record(shard), record.to_bytes(), "application/json")
        return record

    def _images(self, source: Source, shard: ShardPlan) -> Iterator[tuple[Placed, tuple[bytes, str] | BrokenImage]]:
        """Every image with what goes in, or why it does not, in the plan's order."""
        decoding = BoundedSemaphore(self.cpus)

        def one(image: Placed) -> tuple[bytes, str] | BrokenImage:
            try:
                data = _read(source, image)
                with decoding:
                    return encode(data, self.encoding)
            except BrokenImage as error:
                return error

        with ThreadPoolExecutor(READERS) as pool:
            waiting: deque[tuple[Placed, Future[tuple[bytes, str] | BrokenImage]]] = deque()
            for image in shard.images:
                waiting.append((image, pool.submit(one, image)))
                if len(waiting) > AHEAD:
                    first, outcome = waiting.popleft()
                    yield first, outcome.result()
            for first, outcome in waiting:
                yield first, outcome.result()


@cache
def _connected(bucket: str, endpoint: str | None) -> ObjectStore:
    """One for all shards of this process: a new one takes a fifth of a second of a core."""
    return ObjectStore(bucket, endpoint=endpoint)


def _read(source: Source, image: Placed) -> bytes:
    found = image.found
    try:
        data = source.read(found.file, found.offset, found.size)
    except (FileNotFoundError, PermissionError) as error:
        raise BrokenImage(error.strerror or str(error)) from error
    if len(data) != found.size:
        raise BrokenImage(f"it was listed with {found.size} bytes and came with {len(data)}")
    return data
