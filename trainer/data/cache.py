"""A bounded folder of shards on a node's own disk, which several workers and jobs share.

Files are named by the SHA-256 of what they hold, appear whole by renaming, and are never changed. Whoever needs room
removes those that were not asked for the longest; a file that somebody has mapped stays readable without its name.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.errors import InvalidData

logger = logging.getLogger(__name__)

TRIES = 2  # of a shard whose bytes are not those that the manifest names
SHARE_OF_DISK = 0.5  # others live on it too, and a node that runs short of disk throws pods out

Fetch = Callable[[Path], str]
Held = mmap.mmap
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ShardCache:
    """The cache in one folder. Safe to share between threads and processes.

    Args:
        folder: made where it is not there.
        capacity: bytes that the files may take in all; left out, a share of what is free or taken by the cache now.
    """

    def __init__(self, folder: Path, capacity: int | None = None) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        taken = sum(size for _, size, _ in self._files())
        self.capacity = int(SHARE_OF_DISK * (free + taken)) if capacity is None else capacity

    def open(self, what: str, size: int, sha256: str, fetch: Fetch) -> Held | None:
        """A shard's bytes, mapped from the cache; None where there is no room for it.

        Args:
            what: its name, for messages.
            size, sha256: of the whole.
            fetch: writes it to a path, and returns the SHA-256 of what it wrote.

        Raises:
            InvalidData: what is fetched is not what was named, whenever it is tried.
            StorageError: as `fetch` does.
        """
        path = self._folder / sha256
        found = _mapped(path, size)
        if found is not None:
            return found
        with self._locked(f"{sha256}.lock"):
            found = _mapped(path, size)  # by whoever had the lock before
            if found is not None:
                return found
            part = self._folder / f"{sha256}.part"  # ours alone while the lock is held
            try:
                if not self._make_room(part, size):
                    return None
                _fetched(what, size, sha256, fetch, part)
                _keep(part, path)
            except OSError as error:
                if error.errno in _FULL:
                    return None
                raise
            finally:
                part.unlink(missing_ok=True)
            return _mapped(path, size)  # none, where another has removed it at once for want of room

    def _make_room(self, part: Path, size: int) -> bool:
        """Remove what was not asked for the longest until `part` has room, and take that; False if there is none."""
        with self._locked("room.lock"):
            files = sorted((item for item in self._files() if item[2] != part), key=lambda item: item[0])
            taken = sum(item[1] for item in files)
            while True:
                if taken + size <= self.capacity and _allocated(part, size):
                    return True
                if not files:
                    return False
                _, freed, oldest = files.pop(0)
                if oldest.suffix == ".part" and not self._abandoned(oldest):
                    continue
                oldest.unlink(missing_ok=True)
                taken -= freed

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each was last asked for, its size and its path."""
        for path in self._folder.iterdir():
            if path.suffix == ".lock":
                continue
            with contextlib.suppress(FileNotFoundError):
                told = path.stat()
                yield told.st_mtime, told.st_size, path

    def _abandoned(self, part: Path) -> bool:
        """Whether whoever fetched this has died."""
        with (self._folder / f"{part.stem}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _mapped(path: Path, size: int) -> Held | None:
    """A file of the cache; one of another size, as a crash of the node may leave, is removed."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                path.unlink(missing_ok=True)
                return None
            now = time.time()
            os.utime(path, (now, now))
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None


def _keep(part: Path, path: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _allocated(part: Path, size: int) -> bool:
    """Take the disk's blocks for a file; False where the disk is full."""
    try:
        with part.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno in _FULL:
            return False
        raise
    return True


def _fetched(what: str, size: int, sha256: str, fetch: Fetch, path: Path) -> None:
    for attempt in range(TRIES):
        digest = fetch(path)
        if digest == sha256:
            return
        logger.warning("%s came with other bytes than its manifest names, try %d of %d", what, attempt + 1, TRIES)
    came = path.stat().st_size
    raise InvalidData(f"{what} is damaged: the manifest names {size} bytes of another SHA-256, and {came} came")
