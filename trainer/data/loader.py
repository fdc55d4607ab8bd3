"""Batches for the training loop and for evaluation: (images, labels) = (N, H, W, C) uint8, (N,) int64.

Encoded images are decoded by threads: decoders release the interpreter's lock, and threads write into the batch itself.
Loading never draws from torch's or numpy's global random state.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from resforge.spec import AugmentSpec
from trainer.data.image_set import ImageSet
from trainer.data.photographs import OPEN_SHARDS, EncodedSet, ShardSet
from trainer.data.sampler import Draw, EvalSampler, TrainSampler, augmentation_numbers, colour_weights
from trainer.data.transforms import NUMBERS, colour_shifts

# Pixels, (N, H, W, C) uint8, and labels, (N,) int64; of a training with a shift of colour also the shifts, (N, 3).
Batch = tuple[Tensor, ...]
MOST_THREADS = 16
BATCHES_AHEAD = 2  # decoded while the one before is trained on
SHARDS_AHEAD = 8  # fetched before they are needed
FETCHERS = 4
MOST_STEPS_AHEAD = 500


def train_loader(
    images: ImageSet, sampler: TrainSampler, augment: AugmentSpec, *, cpus: float = 1, pin_memory: bool = False
) -> "Loader":
    """One batch for each step that the sampler still has: this rank's share of the global batch.

    Args:
        images: the training set that the sampler was made for.
        sampler: says which images.
        augment: how they are augmented.
        cpus: processors of this worker; with more than one, images that must be decoded are read by threads, ahead.
        pin_memory: put batches where a GPU can fetch them from.

    Raises:
        InvalidData: the set's images can't be augmented so; while iterating, an image can't be read.
    """
    images.check(augment)
    return Loader(images, sampler, _Training(images, augment, sampler.seed), cpus, pin_memory)


def eval_loader(
    images: ImageSet, *, batch: int, rank: int = 0, workers: int = 1, cpus: float = 1, pin_memory: bool = False
) -> "Loader":
    """This rank's share of all images, each once, in batches of at most `batch`, without augmentation.

    Raises:
        InvalidData: while iterating, an image can't be read.
    """
    sampler = EvalSampler(len(images), batch, rank=rank, workers=workers)
    return Loader(images, sampler, _Evaluation(images), cpus, pin_memory)


class _Reading(Protocol):
    """What is done with a batch's images. `asked` is a batch as the sampler gives it."""

    def indices(self, asked: Sequence[Any]) -> list[int]:
        """Which images."""
        ...

    def whole(self, asked: Sequence[Any]) -> np.ndarray:
        """All of a batch's images at once, of a set in memory."""
        ...

    def part(self, asked: Sequence[Any], out: np.ndarray) -> None:
        """Write encoded images into `out`, (n, size, size, C), one after the other."""
        ...

    def beside(self, asked: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """What goes with the pixels and labels."""
        ...


class Loader:
    """An iterable over batches; each pass begins anew.

    Attributes:
        threads: how many decode; none: the one that asks does.
    """

    def __init__(
        self, images: ImageSet, sampler: TrainSampler | EvalSampler, reading: _Reading, cpus: float, pin_memory: bool
    ) -> None:
        self._images, self._sampler, self._reading, self._pin = images, sampler, reading, pin_memory
        self.threads = 0 if images.in_memory or cpus < 2 else min(MOST_THREADS, int(cpus))

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        with ExitStack() as stack:
            note = stack.enter_context(_ahead(self._images, self._sampler, self._reading))
            if not self.threads:
                for step, asked in enumerate(self._sampler):
                    note(step)
                    yield self._now(asked)
                return
            pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            coming: deque[tuple[Batch, list[Future[None]]]] = deque()
            for step, asked in enumerate(self._sampler):
                note(step)
                coming.append(self._begin(pool, asked))
                if len(coming) > BATCHES_AHEAD:
                    yield _done(*coming.popleft())
            while coming:
                yield _done(*coming.popleft())

    def _now(self, asked: Sequence[Any]) -> Batch:
        if not isinstance(self._images, EncodedSet):
            pixels = torch.from_numpy(self._reading.whole(asked))
            return (pixels.pin_memory() if self._pin else pixels), *self._beside(asked)
        pixels = self._room(len(asked))
        self._reading.part(asked, pixels.numpy())
        return pixels, *self._beside(asked)

    def _begin(self, pool: ThreadPoolExecutor, asked: Sequence[Any]) -> tuple[Batch, list["Future[None]"]]:
        """A batch that threads are to fill, each an equal part."""
        pixels = self._room(len(asked))
        out, threads = pixels.numpy(), self.threads
        bounds = [len(asked) * part // threads for part in range(threads + 1)]
        parts = [
            pool.submit(self._reading.part, asked[first:last], out[first:last])
            for first, last in pairwise(bounds)
            if first < last
        ]
        return (pixels, *self._beside(asked)), parts

    def _room(self, count: int) -> Tensor:
        info = self._images.info
        shape = (count, info.image_size, info.image_size, info.channels)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)

    def _beside(self, asked: Sequence[Any]) -> Iterator[Tensor]:
        for array in (self._images.labels[self._reading.indices(asked)], *self._reading.beside(asked)):
            tensor = torch.from_numpy(array)
            yield tensor.pin_memory() if self._pin else tensor


def _done(batch: Batch, parts: list["Future[None]"]) -> Batch:
    for part in parts:
        part.result()
    return batch


class _ahead:
    """Fetches the shards of batches to come; called with the number of each batch that is asked for."""

    def __init__(self, images: ImageSet, sampler: TrainSampler | EvalSampler, reading: _Reading) -> None:
        self._images = images if isinstance(images, ShardSet) else None
        self._coming = enumerate(iter(sampler))
        self._reading = reading
        self._asked = OrderedDict[int, None]()  # the shards come upon last, as many as are kept open
        self._due = deque[int]()  # at which batches those are needed that were asked for last
        self._looked = -1
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Callable[[int], None]":
        if self._images is not None:
            self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")
        return self._note

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _note(self, step: int) -> None:
        if self._images is None or self._pool is None:
            return
        while self._due and self._due[0] <= step:
            self._due.popleft()
        while self._looked < step + MOST_STEPS_AHEAD and len(self._due) < SHARDS_AHEAD:
            found = next(self._coming, None)
            if found is None:
                return
            self._looked, asked = found
            for shard in self._images.shards_of(self._reading.indices(asked)):
                if shard not in self._asked:
                    # What goes wrong is raised where the shard is read.
                    self._pool.submit(self._images.fetch, shard)
                    self._due.append(self._looked)
                self._asked[shard] = None
                self._asked.move_to_end(shard)
            while len(self._asked) > OPEN_SHARDS:
                self._asked.popitem(last=False)


class _Training:
    def __init__(self, images: ImageSet, augment: AugmentSpec, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed

    def indices(self, asked: Sequence[Draw]) -> list[int]:
        return [draw.index for draw in asked]

    def whole(self, asked: Sequence[Draw]) -> np.ndarray:
        return self.images.train_images(self.indices(asked), self._numbers(asked), self.augment)

    def part(self, asked: Sequence[Draw], out: np.ndarray) -> None:
        assert isinstance(self.images, EncodedSet)
        for draw, numbers, image in zip(asked, self._numbers(asked), out, strict=True):
            self.images.train_image(draw.index, numbers, self.augment, image)

    def beside(self, asked: Sequence[Draw]) -> tuple[np.ndarray, ...]:
        if not self.augment.colour:
            return ()
        weights = colour_weights(len(self.images), self.seed, asked[0].epoch)[self.indices(asked)]
        return (colour_shifts(self.augment.colour * weights),)

    def _numbers(self, asked: Sequence[Draw]) -> np.ndarray:
        epoch = asked[0].epoch  # a global batch lies within one epoch
        numbers: np.ndarray = augmentation_numbers(len(self.images), self.seed, epoch, NUMBERS)[self.indices(asked)]
        return numbers


class _Evaluation:
    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def indices(self, asked: Sequence[int]) -> list[int]:
        return list(asked)

    def whole(self, asked: Sequence[int]) -> np.ndarray:
        return self.images.test_images(asked)

    def part(self, asked: Sequence[int], out: np.ndarray) -> None:
        assert isinstance(self.images, EncodedSet)
        for index, image in zip(asked, out, strict=True):
            self.images.test_image(index, image)

    def beside(self, asked: Sequence[int]) -> tuple[np.ndarray, ...]:  # noqa: ARG002
        return ()
