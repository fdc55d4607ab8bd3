"""How an ingested data set lies in storage: WebDataset's tars, beside each an index, and one manifest.

    dataset.json              the manifest
    train/000000.tar          for each image the members NAME.jpg (or .png ...) and NAME.cls, its class's number as text
    train/000000.index.npy    a row of ROW for each image: where its bytes lie in the tar, and its class
    test/000000.tar ...

The tars are what every tool for WebDataset reads. With the index any image is one ranged read away.
"""

import hashlib
import io
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import Field, ValidationError

from resforge.storage import Document
from trainer.data.formats import Split
from trainer.errors import InvalidData

MANIFEST = "dataset.json"
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])
SHARD_BYTES = 64 << 20  # fetched whole, a shard of 64 to 128 MB costs storage one request and little CPU
_BLOCK = 512
_PARSING = threading.Lock()  # np.load parses Python, which in several threads of CPython 3.11 may end in a SystemError


class Shard(Document):
    """One tar. `size` is in bytes."""

    name: str = Field(description="Its key below the manifest's folder, such as train/000000.tar.")
    images: int = Field(ge=1)
    size: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """The key of its index."""
        return index_of(self.name)


class ShardManifest(Document):
    """dataset.json: what a data set of shards holds. Within a split, images are in no order."""

    version: int = 1
    classes: tuple[str, ...] = Field(description="Their names; a label is a place among them.")
    shorter_side: int | None = Field(default=None, description="Images were made at most so large; none: untouched.")
    quality: int | None = Field(default=None, description="Of the JPEGs that were made so.")
    splits: Mapping[Split, tuple[Shard, ...]]
    broken: int = Field(default=0, description="Images of the source that could not be decoded, and were left out.")

    def images(self, split: Split) -> int:
        return sum(shard.images for shard in self.splits.get(split, ()))


def index_of(name: str) -> str:
    """The key of a shard's index."""
    return name.removesuffix(".tar") + ".index.npy"


def read_manifest(data: bytes, where: str) -> ShardManifest:
    """The manifest of a data set.

    Raises:
        InvalidData: these bytes are none, or of a later version.
    """
    try:
        manifest = ShardManifest.model_validate_json(data)
    except ValidationError as error:
        raise InvalidData(f"{where} is no manifest of shards: {error.errors()[0]['msg']}") from error
    if manifest.version != 1:
        raise InvalidData(f"{where} is of version {manifest.version}; this trainer reads version 1")
    return manifest


def read_index(data: bytes, shard: Shard, where: str) -> np.ndarray:
    """The rows of a shard's index, (images,) of ROW.

    Raises:
        InvalidData: these bytes are not the index that the manifest names.
    """
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise InvalidData(f"{where} is damaged: its SHA-256 is not the one in {MANIFEST}")
    with _PARSING:
        rows: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    if rows.dtype != ROW or rows.shape != (shard.images,):
        raise InvalidData(f"{where} does not hold {shard.images} rows of offset, size and label")
    return rows


class ShardWriter:
    """Writes one tar and keeps its index. The same images give the same bytes.

    Args:
        path: a file that is made, or overwritten.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._rows: list[tuple[int, int, int]] = []
        self._at = 0

    def add(self, name: str, suffix: str, image: bytes, label: int) -> None:
        """Append an image.

        Args:
            name: of the members, without a suffix; unlike every other's in the data set, and without a dot behind its
                last slash, since WebDataset's names end at the first.
            suffix: what the bytes are, such as jpg.
            image: an encoded image.
            label: its class, from 0.
        """
        offset = self._member(f"{name}.{suffix}", image)
        self._member(f"{name}.cls", str(label).encode())
        self._rows.append((offset, len(image), label))

    def close(self, name: str) -> tuple[Shard, bytes]:
        """End the tar; what the manifest says of it under this key, and the bytes of its index."""
        self._write(bytes(2 * _BLOCK))
        self._file.close()
        buffer = io.BytesIO()
        np.save(buffer, np.array(self._rows, dtype=ROW), allow_pickle=False)
        index = buffer.getvalue()
        shard = Shard(
            name=name,
            images=len(self._rows),
            size=self._at,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        return shard, index

    def _member(self, name: str, data: bytes) -> int:
        """Where its data begin."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._at
        self._write(data + bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._at += len(data)
