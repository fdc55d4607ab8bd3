"""Which image is seen at which step: a pure function of (size, seed, step), whatever the number of workers.

Every epoch is a permutation of the data set, cut into global batches of which the workers take equal slices. So the
images of a step do not depend on how many workers share it, and a run resumes at any step without replaying.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from trainer.errors import InvalidData

# Each use of the seed draws from a stream of its own.
_ORDER, _AUGMENTATION, _LIMIT, _HELD_BACK, _COLOUR, _MIXING, SHARDS = 1, 2, 3, 4, 5, 6, 7


class Draw(NamedTuple):
    """One image of a training step: its place in the data set, and the epoch that its augmentation belongs to."""

    epoch: int
    index: int


@lru_cache(maxsize=2)  # the epoch at hand, and the next one while batches are fetched ahead
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the images: a read-only permutation, (size,) int64."""
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(size)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def augmentation_numbers(size: int, seed: int, epoch: int, count: int) -> np.ndarray:
    """Each image's own random numbers of an epoch: (size, count) float32 in [0, 1), read-only."""
    numbers = np.random.default_rng([seed, _AUGMENTATION, epoch]).random((size, count), dtype=np.float32)
    numbers.flags.writeable = False
    return numbers


@lru_cache(maxsize=2)
def colour_weights(size: int, seed: int, epoch: int) -> np.ndarray:
    """Each image's own weights of the three axes of colour in an epoch: (size, 3) float32 of N(0, 1), read-only.

    They come from a stream of their own, so that crops are the same with a shift of colour and without.
    """
    weights = np.random.default_rng([seed, _COLOUR, epoch]).standard_normal((size, 3), dtype=np.float32)
    weights.flags.writeable = False
    return weights


def mixing_dice(seed: int, step: int, rank: int) -> np.random.Generator:
    """What decides how one rank's images of an optimiser step are mixed with each other."""
    return np.random.default_rng([seed, _MIXING, step, rank])


def limited(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of `size` images drawn by the seed without repetition: (count,) int64, rising.

    Raises:
        InvalidData: there are not that many.
    """
    if count > size:
        raise InvalidData(f"data.train_limit asks for {count} training images and there are {size}")
    return np.sort(np.random.default_rng([seed, _LIMIT]).choice(size, count, replace=False))


def held_back(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of `size` training images to evaluate on instead: (count,) int64, rising.

    Raises:
        InvalidData: nothing would be left to train on.
    """
    if count >= size:
        raise InvalidData(f"data.validation holds {count} training images back, and there are {size}")
    return np.sort(np.random.default_rng([seed, _HELD_BACK]).choice(size, count, replace=False))


def steps_per_epoch(size: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the images left over are dropped, other ones in each epoch.

    Raises:
        InvalidData: the data set is smaller than one global batch.
    """
    if size < global_batch:
        raise InvalidData(
            f"a global batch of {global_batch} images needs as many training images, and there are {size}; "
            f"training.global_batch may be at most {size}"
        )
    return size // global_batch


class TrainSampler:
    """A batch sampler: for each optimiser step from `start_step` up to `total_steps`, this rank's draws.

    The global batch k of an epoch is order[k*B : (k+1)*B], and rank r takes the r-th of `workers` equal slices of it.

    Args:
        order: an epoch's permutation of the images, by its number; left out, `epoch_order`.

    Raises:
        InvalidData: the data set is smaller than one global batch.
        ValueError: the global batch does not divide over the workers, or there is no such rank.
    """

    def __init__(
        self,
        size: int,
        global_batch: int,
        *,
        seed: int,
        rank: int = 0,
        workers: int = 1,
        start_step: int = 0,
        total_steps: int,
        order: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        if global_batch % workers:
            raise ValueError(f"a global batch of {global_batch} does not divide over {workers} workers")
        if not 0 <= rank < workers:
            raise ValueError(f"rank {rank} is none of {workers} workers")
        self.size, self.global_batch, self.seed = size, global_batch, seed
        self.start_step, self.total_steps = start_step, total_steps
        self.steps_per_epoch = steps_per_epoch(size, global_batch)
        self._order = order or partial(epoch_order, size, seed)
        self._share = global_batch // workers
        self._first = rank * self._share

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.draws, range(self.start_step, self.total_steps))

    def draws(self, step: int) -> list[Draw]:
        """This rank's share of an optimiser step, counted from 0."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        start = offset * self.global_batch + self._first
        order = self._order(epoch)
        return [Draw(epoch, index) for index in order[start : start + self._share].tolist()]


class EvalSampler:
    """A batch sampler: every image exactly once over all ranks, whatever their number, in batches of at most `batch`.

    Rank r takes a contiguous run, so ranks differ by at most one image, and a rank beyond the images has no batch.
    """

    def __init__(self, size: int, batch: int, *, rank: int = 0, workers: int = 1) -> None:
        if batch < 1:
            raise ValueError(f"a batch holds at least one image, not {batch}")
        if not 0 <= rank < workers:
            raise ValueError(f"rank {rank} is none of {workers} workers")
        self._images = range(size * rank // workers, size * (rank + 1) // workers)
        self._batch = batch

    def __len__(self) -> int:
        return (len(self._images) + self._batch - 1) // self._batch

    def __iter__(self) -> Iterator[list[int]]:
        images, batch = self._images, self._batch
        return (list(images[at : at + batch]) for at in range(0, len(images), batch))
