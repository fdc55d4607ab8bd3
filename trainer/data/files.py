"""Where a data set's files lie: a folder, or an S3 prefix whose objects are fetched into a cache, each once."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from resforge.s3 import ObjectInfo, ObjectNotFound, ObjectStore
from trainer.errors import InvalidData

StoreFactory = Callable[[str], ObjectStore]
CACHE = Path.home() / ".cache" / "resforge" / "datasets"


class Files(Protocol):
    """The files of a data set. Names are relative, with forward slashes."""

    where: str

    def names(self, under: str) -> list[str]:
        """Every file below a folder, sorted; none where there is no such folder."""
        ...

    def folders(self, under: str) -> list[str]:
        """The names of the folders directly below a folder, sorted; none where there is no such folder."""
        ...

    def path(self, name: str) -> Path:
        """A local path of the file.

        Raises:
            InvalidData: there is no such file.
        """
        ...


def files_at(
    location: str, *, store_factory: StoreFactory | None = None, cache_dir: Path | None = None
) -> "LocalFiles | S3Files":
    """The files of a folder or of an `s3://bucket/prefix`.

    Args:
        location: a path, or an s3:// address.
        store_factory: gives the store of a bucket; AWS, by boto3's own settings, where left out.
        cache_dir: where fetched objects are kept; `~/.cache/resforge/datasets` where left out.

    Raises:
        InvalidData: the folder is absent, or the address names no bucket.
    """
    if not location.startswith("s3://"):
        return LocalFiles(Path(location))
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidData(f"{location} names no bucket; an address looks like s3://bucket/prefix")
    return S3Files(bucket, prefix, store_factory or ObjectStore, cache_dir or CACHE)


class LocalFiles:
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InvalidData(
                f"there is no folder {root} on this worker; the data set must lie on every worker or in S3"
            )
        self.root, self.where = root, str(root)

    def names(self, under: str) -> list[str]:
        found = []
        for folder, _, files in os.walk(self.root / under, followlinks=True):
            base = Path(folder).relative_to(self.root).as_posix()
            found += [f"{base}/{name}" if base != "." else name for name in files]
        return sorted(found)

    def folders(self, under: str) -> list[str]:
        folder = self.root / under
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def path(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise InvalidData(f"there is no file {path}")
        return path


class S3Files:
    """The objects under a prefix.

    A cached file's name is made from the object's address, size and time, so an object that was replaced is fetched
    anew. Files appear whole, by renaming, so several processes may share a cache.
    """

    def __init__(self, bucket: str, prefix: str, store_factory: StoreFactory, cache_dir: Path) -> None:
        self._bucket, self._store_factory, self._cache = bucket, store_factory, cache_dir
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self.where = f"s3://{bucket}/{self._prefix}"
        self._objects: dict[str, ObjectInfo] = {}
        self._store: tuple[int, ObjectStore] | None = None

    def names(self, under: str) -> list[str]:
        objects = self.store.list_objects(self._below(under))
        found = {item.key.removeprefix(self._prefix): item for item in objects}
        self._objects.update(found)
        return sorted(found)

    def folders(self, under: str) -> list[str]:
        return self.store.list_folders(self._below(under))

    def _below(self, folder: str) -> str:
        return f"{self._prefix}{folder}/" if folder else self._prefix

    def path(self, name: str) -> Path:
        info = self._objects.get(name) or self._look_up(name)
        store = self.store
        identity = f"{store.endpoint}\n{store.uri(info.key)}\n{info.size}\n{info.modified.isoformat()}"
        digest = hashlib.sha256(identity.encode()).hexdigest()
        path = self._cache / digest[:2] / (digest[2:] + "".join(Path(name).suffixes))
        if not path.exists():
            self._fetch(store, info, path)
        return path

    def download(self, name: str, path: Path) -> str:
        """Write an object to a path, past the cache, and return the SHA-256 of what was written, in hex.

        Raises:
            StorageError: it is absent, or S3 does not answer or refuses.
        """
        return self.store.download(self._prefix + name, path)

    def range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of an object from `offset` on, past the cache.

        Raises:
            StorageError: it is absent, or S3 does not answer or refuses.
        """
        return self.store.get_range(self._prefix + name, offset, size)

    @property
    def store(self) -> ObjectStore:
        """The bucket, connected to anew in a process that was forked: connections can't be shared."""
        if self._store is None or self._store[0] != os.getpid():
            self._store = os.getpid(), self._store_factory(self._bucket)
        return self._store[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_store": None}

    def _look_up(self, name: str) -> ObjectInfo:
        key = self._prefix + name
        for info in self.store.list_objects(key):
            if info.key == key:
                self._objects[name] = info
                return info
        raise InvalidData(f"there is no object {self.where}{name}")

    def _fetch(self, store: ObjectStore, info: ObjectInfo, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fetching-")
        os.close(handle)
        part = Path(name)
        try:
            store.download(info.key, part)
            if part.stat().st_size != info.size:
                raise InvalidData(
                    f"{store.uri(info.key)} was listed with {info.size} bytes and came with {part.stat().st_size}"
                )
            with part.open("rb") as file:
                os.fsync(file.fileno())  # so that a node that crashes leaves no empty file of this name
            part.replace(path)
        except ObjectNotFound:
            raise InvalidData(f"{store.uri(info.key)} was listed and is gone") from None
        finally:
            part.unlink(missing_ok=True)
