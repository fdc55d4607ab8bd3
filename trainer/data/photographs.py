"""Splits of encoded images of any size, decoded as they are asked for: class folders, and shards."""

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from io import BytesIO
from typing import Protocol, Self

import numpy as np
from PIL import Image

from resforge.jobs import DatasetInfo
from resforge.spec import AugmentSpec
from trainer.data.cache import Held
from trainer.data.decode import FORMATS, decode_crop, size_of
from trainer.data.files import Files
from trainer.data.image_set import MEAN_IMAGES, ImageSet, Indices
from trainer.data.order import shard_order
from trainer.data.transforms import View, centre_view, training_view
from trainer.errors import InvalidData

OPEN_SHARDS = 128  # mapped at a time by one process: more than the lanes of one epoch read at once, twice


class EncodedSet(ImageSet):
    """Images of any size, as files hold them. Safe to read from several threads."""

    in_memory = False

    @abstractmethod
    def encoded(self, index: int) -> bytes | memoryview:
        """An image's bytes."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image."""

    def check(self, augment: AugmentSpec) -> None:
        super().check(augment)
        if augment.pad >= self.info.image_size:
            raise InvalidData(
                f"data.augment.pad is {augment.pad} pixels, and crops of the data set {self.info.name} have "
                f"{self.info.image_size}; less than that is accepted"
            )
        if augment.scale and augment.scale[0] < self.info.image_size:
            raise InvalidData(
                f"data.augment.scale begins at {augment.scale[0]} pixels, and crops of the data set {self.info.name} "
                f"need {self.info.image_size} or more"
            )

    def train_images(self, indices: Indices, numbers: np.ndarray, augment: AugmentSpec) -> np.ndarray:
        out = self.empty(len(indices))
        for index, row, image in zip(indices, numbers, out, strict=True):
            self.train_image(index, row, augment, image)
        return out

    def test_images(self, indices: Indices) -> np.ndarray:
        out = self.empty(len(indices))
        for index, image in zip(indices, out, strict=True):
            self.test_image(index, image)
        return out

    def empty(self, count: int) -> np.ndarray:
        """Room for so many images, (count, size, size, C) uint8."""
        return np.empty((count, self.info.image_size, self.info.image_size, self.info.channels), dtype=np.uint8)

    def train_image(self, index: int, numbers: np.ndarray, augment: AugmentSpec, out: np.ndarray) -> None:
        """Write an augmented image into `out`, (size, size, C)."""
        self._view(index, out, lambda height, width: training_view(height, width, len(out), numbers, augment))

    def test_image(self, index: int, out: np.ndarray) -> None:
        """Write an image as it is evaluated into `out`, (size, size, C)."""
        self._view(index, out, lambda height, width: centre_view(height, width, len(out)))

    def image(self, index: int) -> Image.Image:
        """A whole image, as grey or RGB as the registration says.

        Raises:
            InvalidData: it can't be decoded.
        """
        try:
            with Image.open(BytesIO(self.encoded(index)), formats=FORMATS) as image:
                return image.convert("L" if self.info.channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidData(f"the image {self.name(index)} can't be decoded: {error}") from error

    def _view(self, index: int, out: np.ndarray, choose: Callable[[int, int], View]) -> None:
        data = self.encoded(index)
        try:
            view = choose(*size_of(data))
            if view.whole:
                decode_crop(data, view.box, out, flip=view.flip)
                return
            rows, columns = view.inside
            part = np.empty_like(out[rows, columns])
            decode_crop(data, view.box, part)
        except InvalidData as error:
            raise InvalidData(f"the image {self.name(index)} can't be decoded: {error}") from error
        out[:] = 0
        out[rows, columns] = part
        if view.flip:
            out[:] = out[:, ::-1].copy()

    def downscaled(self, factor: int) -> Self:
        raise InvalidData(
            f"data.downscale: {factor} is for images of one size, and the data set {self.info.name} holds "
            f"photographs, which are cropped to {self.info.image_size} pixels; register it with another size instead"
        )


class FolderSet(EncodedSet):
    """A split of class folders, `train/CLASS/IMAGE`."""

    def __init__(self, info: DatasetInfo, files: Files, names: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(info, labels)
        self._files, self._names = files, names

    def encoded(self, index: int) -> bytes:
        return self._files.path(self._names[index].decode()).read_bytes()

    def name(self, index: int) -> str:
        return f"{self._names[index].decode()} of {self._files.where}"

    def for_mean(self) -> np.ndarray:
        # Spread evenly over the classes, by which names are sorted.
        count = len(self)
        return super().for_mean() if count <= MEAN_IMAGES else np.arange(MEAN_IMAGES) * count // MEAN_IMAGES

    def subset(self, indices: np.ndarray) -> Self:
        return type(self)(self.info, self._files, self._names[indices], self.labels[indices])


class Opened(Protocol):
    """Shards by their number.

    Both raise InvalidData where a shard is gone or damaged, and StorageError where storage does not answer, or refuses.
    """

    def whole(self, number: int) -> Held | None:
        """A shard's bytes; None where there is no room for them on this node."""
        ...

    def part(self, number: int, offset: int, size: int) -> bytes:
        """Some of them alone."""
        ...


class ShardSet(EncodedSet):
    """A split of shards (trainer/data/shards.py), which are fetched whole.

    Args:
        where: for messages, what shards' names are relative to.
        names: of the shards.
        shards: (N,) the shard of each image, rising.
        rows: (N,) of ROW, where each image lies in its shard.
        opened: gives their bytes, to several threads at once. It may be slow.
    """

    def __init__(
        self,
        info: DatasetInfo,
        where: str,
        names: Sequence[str],
        shards: np.ndarray,
        rows: np.ndarray,
        opened: "Opened",
    ) -> None:
        super().__init__(info, rows["label"].astype(np.int64))
        self._where, self._names, self._shards, self._rows, self._opened = where, names, shards, rows, opened
        self._open = OrderedDict[int, Held]()
        self._lock = threading.Lock()

    def encoded(self, index: int) -> bytes | memoryview:
        row, shard = self._rows[index], int(self._shards[index])
        start, size = int(row["offset"]), int(row["size"])
        held = self._shard(shard)
        return self._opened.part(shard, start, size) if held is None else memoryview(held)[start : start + size]

    def name(self, index: int) -> str:
        row = self._rows[index]
        return f"at byte {row['offset']} of {self._where}{self._names[self._shards[index]]}"

    def order(self, global_batch: int, seed: int) -> Callable[[int], np.ndarray]:
        return lru_cache(maxsize=2)(partial(shard_order, self._shards, global_batch, seed))

    def for_mean(self) -> np.ndarray:
        # The first shards' alone: which images they hold was drawn when they were made.
        return super().for_mean()[:MEAN_IMAGES]

    def subset(self, indices: np.ndarray) -> Self:
        return type(self)(self.info, self._where, self._names, self._shards[indices], self._rows[indices], self._opened)

    def shards_of(self, indices: Indices) -> list[int]:
        """The shards that hold these images, in the order in which they are come upon."""
        return list(dict.fromkeys(self._shards[np.asarray(indices)].tolist()))

    def fetch(self, shard: int) -> None:
        """Have a shard's bytes at hand, where there is room for them.

        Raises:
            InvalidData: it is gone or damaged.
            StorageError: storage does not answer, or refuses.
        """
        self._shard(shard)

    def _shard(self, shard: int) -> Held | None:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
        fetched = self._opened.whole(shard)
        if fetched is None:
            return None
        with self._lock:
            found = self._open.setdefault(shard, fetched)
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)  # unmapped once nobody reads of it any more
            return found
