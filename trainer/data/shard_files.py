"""Opens the shards of a data set, in a folder or in S3."""

import logging
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from resforge.jobs import DatasetInfo
from resforge.s3 import ObjectNotFound, StorageUnavailable
from trainer.data.cache import Held, ShardCache
from trainer.data.files import LocalFiles, S3Files
from trainer.data.formats import Split
from trainer.data.photographs import Opened, ShardSet
from trainer.data.shards import MANIFEST, Shard, read_index, read_manifest
from trainer.errors import InvalidData

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 16  # indices that are fetched side by side
# Storage that is away is waited for so long, with growing pauses: to end and start again would cost more.
OUTAGE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 300.0, 0.5, 15.0


def open_shards(
    info: DatasetInfo, split: Split, files: LocalFiles | S3Files, cache: Callable[[], ShardCache]
) -> ShardSet:
    """One split of a data set of shards.

    Args:
        info: the registration, whose location holds the manifest.
        files: what lies there.
        cache: gives the cache that shards of S3 are kept in.

    Raises:
        InvalidData: the manifest or an index is absent, damaged, or not what the registration says.
        StorageError: S3 does not answer, or refuses.
    """
    manifest = read_manifest(files.path(MANIFEST).read_bytes(), f"{files.where}/{MANIFEST}")
    if len(manifest.classes) != info.classes:
        raise InvalidData(
            f"{files.where} holds {len(manifest.classes)} classes, and the data set {info.name} is registered with "
            f"{info.classes}"
        )
    shards = manifest.splits.get(split, ())
    if not shards:
        raise InvalidData(f"{files.where} holds no shards of the {split} split")
    files.names(split)  # one listing instead of a question for each index
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(lambda shard: _rows(files, shard), shards))
    labels = np.concatenate(rows)["label"]
    if labels.min() < 0 or labels.max() >= info.classes:
        raise InvalidData(f"{files.where} holds the label {labels.max()}, and there are {info.classes} classes")
    opened: Opened = _Local(files, shards) if isinstance(files, LocalFiles) else _Remote(files, shards, cache())
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [shard.images for shard in shards])
    names = [shard.name for shard in shards]
    return ShardSet(info, f"{files.where.rstrip('/')}/", names, numbers, np.concatenate(rows), opened)


def _rows(files: LocalFiles | S3Files, shard: Shard) -> np.ndarray:
    return read_index(files.path(shard.index).read_bytes(), shard, f"{files.where}/{shard.index}")


class _Local:
    """Shards in a folder."""

    def __init__(self, files: LocalFiles, shards: Sequence[Shard]) -> None:
        self._files, self._shards = files, shards

    def whole(self, number: int) -> Held:
        shard = self._shards[number]
        path = self._files.path(shard.name)
        if (size := path.stat().st_size) != shard.size:
            raise InvalidData(f"{path} is damaged: the manifest names {shard.size} bytes, and it has {size}")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def part(self, number: int, offset: int, size: int) -> bytes:
        with self._files.path(self._shards[number].name).open("rb") as file:
            file.seek(offset)
            return file.read(size)


class _Remote:
    """Shards in S3, kept in a cache."""

    def __init__(self, files: S3Files, shards: Sequence[Shard], cache: ShardCache) -> None:
        self._files, self._shards, self._cache = files, shards, cache

    def whole(self, number: int) -> Held | None:
        shard = self._shards[number]

        def download(path: Path) -> str:
            return self._files.download(shard.name, path)

        return self._patiently(shard, lambda what: self._cache.open(what, shard.size, shard.sha256, download))

    def part(self, number: int, offset: int, size: int) -> bytes:
        shard = self._shards[number]
        return self._patiently(shard, lambda _: self._files.range(shard.name, offset, size))

    def _patiently(self, shard: Shard, read: Callable[[str], T]) -> T:
        what = f"{self._files.where}{shard.name}"
        deadline, pause = time.monotonic() + OUTAGE_S, FIRST_PAUSE_S
        while True:
            try:
                return read(what)
            except ObjectNotFound as error:
                raise InvalidData(f"{what} is named by the manifest and is gone") from error
            except StorageUnavailable as error:
                if time.monotonic() + pause > deadline:
                    raise
                logger.warning("%s can't be read now and is tried again in %.1f s: %s", what, pause, error)
                threading.Event().wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
