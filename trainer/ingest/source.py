"""Where images come from: class folders `train/CLASS/IMAGE` or class tars `train/CLASS.tar`, on disk or in S3.

Nothing is cached: each image is read once, into memory. An image within a tar is read by its place, so a tar is never
unpacked.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from resforge.s3 import ObjectNotFound, ObjectStore
from resforge.storage import Document
from trainer.data.formats import Split
from trainer.errors import InvalidData

StoreFactory = Callable[[str], ObjectStore]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
_AHEAD = 8 << 20  # of a tar in S3 so many bytes are asked for at a time
_BLOCK = 512


class Broken(Document):
    """Something of the source that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """An image of the source. `offset` and `size` are in bytes; `inner` is its name within a tar, if it lies in one."""

    class_name: str
    file: str
    size: int
    offset: int = 0
    inner: str = ""

    @property
    def name(self) -> str:
        """What people find it by."""
        return f"{self.file}/{self.inner}" if self.inner else self.file


@dataclass
class Listing:
    """One split of a source. `classes` are also those without an image; `tars` have not been looked into."""

    folder: str
    classes: set[str] = field(default_factory=set)
    images: list[Found] = field(default_factory=list)
    tars: list[tuple[str, str, int]] = field(default_factory=list)  # class, file, size in bytes
    broken: list[Broken] = field(default_factory=list)
    ignored: int = 0  # files without the suffix of an image


class Source(Protocol):
    """The files of a source. Names are relative, with forward slashes."""

    where: str

    def files(self, folder: str) -> Iterator[tuple[str, int]]:
        """Names and sizes in bytes of files below a folder, two levels deep; and class folders, as `CLASS/`."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A part of a file; less where it ends before. Raises FileNotFoundError or PermissionError."""
        ...


class LocalSource:
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InvalidData(f"there is no folder {root} on this worker; a source on disk must lie on every worker")
        self.root, self.where = root, str(root)

    def files(self, folder: str) -> Iterator[tuple[str, int]]:
        top = self.root / folder
        if not top.is_dir():
            return
        for entry in os.scandir(top):
            if entry.is_file():
                yield f"{folder}/{entry.name}", entry.stat().st_size
            elif entry.is_dir():
                yield f"{folder}/{entry.name}/", 0
                for inner in os.scandir(entry.path):
                    if inner.is_file():
                        yield f"{folder}/{entry.name}/{inner.name}", inner.stat().st_size

    def read(self, name: str, offset: int, size: int) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)


class S3Source:
    """The objects under a prefix."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        self.where = store.uri(self._prefix)

    def files(self, folder: str) -> Iterator[tuple[str, int]]:
        for item in self._store.list_objects(f"{self._prefix}{folder}/"):
            yield item.key.removeprefix(self._prefix), item.size

    def read(self, name: str, offset: int, size: int) -> bytes:
        try:
            return self._store.get_range(self._prefix + name, offset, size) if size else b""
        except ObjectNotFound as error:
            raise FileNotFoundError(2, "it was listed and is gone", name) from error


def source_at(location: str, store_factory: StoreFactory) -> LocalSource | S3Source:
    """The source at a path or an s3://bucket/prefix.

    Raises:
        InvalidData: there is no such folder.
    """
    if not location.startswith("s3://"):
        return LocalSource(Path(location))
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    return S3Source(store_factory(bucket), prefix)


def list_split(source: Source, split: Split) -> Listing:
    """The classes, images and tars of a split, in order; those of the first of its folders that holds any."""
    for folder in FOLDERS[split]:
        listing = Listing(folder)
        for name, size in sorted(source.files(folder)):
            _sort_in(listing, name, size)
        if listing.classes:
            return listing
    return Listing(FOLDERS[split][0])


def _sort_in(listing: Listing, name: str, size: int) -> None:
    _, *levels = name.split("/")
    if any(level.startswith(".") for level in levels) or len(levels) > 2 or levels == [""]:
        return
    try:
        name.encode()
    except UnicodeEncodeError:
        readable = name.encode(errors="surrogateescape").decode(errors="replace")
        listing.broken.append(Broken(name=readable, reason="its name is no UTF-8"))
        return
    if len(levels) == 1:
        if levels[0].endswith(".tar"):
            class_name = levels[0].removesuffix(".tar")
            listing.classes.add(class_name)
            listing.tars.append((class_name, name, size))
        else:
            listing.ignored += 1
        return
    class_name, image = levels
    listing.classes.add(class_name)
    if image.lower().endswith(SUFFIXES):
        listing.images.append(Found(class_name, name, size))
    elif image:
        listing.ignored += 1


def look_into(source: Source, class_name: str, name: str, size: int) -> Listing:
    """The images of a class's tar, by their places in it. What is whole of a damaged tar counts, and it is broken."""
    listing = Listing(name)
    raw: BinaryIO = io.BufferedReader(_Ranged(source, name, size), _AHEAD)  # type: ignore[assignment]
    try:
        with tarfile.open(fileobj=raw, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # a million of them would stay
                inner = member.name
                if member.size < 0:
                    raise tarfile.ReadError(f"it names a negative size at byte {member.offset}")
                if not _is_text(inner):
                    listing.broken.append(Broken(name=f"{name}, byte {member.offset}", reason="its name is no UTF-8"))
                    continue
                if not member.isreg() or inner.rsplit("/", 1)[-1].startswith("."):
                    continue
                if not inner.lower().endswith(SUFFIXES) or member.sparse is not None:
                    listing.ignored += 1
                elif member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {inner}")
                else:
                    found = Found(class_name, name, member.size, member.offset_data, inner)
                    listing.images.append(found)
            raw.seek(tar.offset)
            if raw.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset}")
    except (tarfile.TarError, FileNotFoundError, PermissionError) as error:
        reason = f"{error}; {len(listing.images)} images before that were taken" if listing.images else str(error)
        listing.broken.append(Broken(name=name, reason=reason))
    return listing


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that tarfile could not decode
        return False
    return True


class _Ranged(io.RawIOBase):
    """A file of a source, read by ranges."""

    def __init__(self, source: Source, name: str, size: int) -> None:
        self._source, self._name, self._size, self._at = source, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = self._source.read(self._name, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
