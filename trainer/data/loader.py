"""Batches for the training loop and for evaluation: (images, labels) = (N, H, W, C) uint8, (N,) int64.

Loading never draws from torch's or numpy's global random state.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resforge.spec import AugmentSpec
from trainer.data.sampler import Draw, EvalSampler, TrainSampler, augmentation_numbers, colour_weights
from trainer.data.sets import ImageSet
from trainer.data.transforms import NUMBERS, shift_colour
from trainer.errors import InvalidData

Batch = tuple[Tensor, Tensor]
MOST_PROCESSES = 16


def train_loader(
    images: ImageSet, sampler: TrainSampler, augment: AugmentSpec, *, cpus: float = 1, pin_memory: bool = False
) -> "Loader":
    """One batch for each step that the sampler still has: this rank's share of the global batch.

    Args:
        images: the training set that the sampler was made for.
        sampler: says which images.
        augment: how they are augmented.
        cpus: processors of this worker; with more than one, images that must be decoded are read by other processes.
        pin_memory: put batches where a GPU can fetch them from.

    Raises:
        InvalidData: the set's images can't be augmented so; while iterating, an image can't be read.
    """
    images.check(augment)
    return Loader(_Training(images, augment, sampler.seed), sampler, _processes(images, cpus), pin_memory)


def eval_loader(
    images: ImageSet, *, batch: int, rank: int = 0, workers: int = 1, cpus: float = 1, pin_memory: bool = False
) -> "Loader":
    """This rank's share of all images, each once, in batches of at most `batch`, without augmentation.

    Raises:
        InvalidData: while iterating, an image can't be read.
    """
    sampler = EvalSampler(len(images), batch, rank=rank, workers=workers)
    return Loader(_Evaluation(images), sampler, _processes(images, cpus), pin_memory)


class Loader(DataLoader[Any]):
    """A DataLoader over batches that are read whole."""

    def __init__(
        self, dataset: Dataset[Any], sampler: TrainSampler | EvalSampler, processes: int, pin_memory: bool
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=processes,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # each pass draws a seed, which must not come from the global state
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, InvalidData):  # raised here, so that its message comes without a process's traceback
                raise batch
            yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _processes(images: ImageSet, cpus: float) -> int:
    return 0 if images.in_memory or cpus < 2 else min(MOST_PROCESSES, int(cpus))


class _Training(Dataset[Any]):
    def __init__(self, images: ImageSet, augment: AugmentSpec, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed

    def __getitems__(self, draws: Sequence[Draw]) -> Batch | InvalidData:
        epoch = draws[0].epoch  # a global batch lies within one epoch
        indices = [draw.index for draw in draws]
        numbers = augmentation_numbers(len(self.images), self.seed, epoch, NUMBERS)[indices]
        try:
            pixels = self.images.train_images(indices, numbers, self.augment)
        except InvalidData as error:
            return error
        if self.augment.colour:
            weights = colour_weights(len(self.images), self.seed, epoch)[indices]
            pixels = shift_colour(pixels, self.augment.colour * weights)
        return torch.from_numpy(pixels), torch.from_numpy(self.images.labels[indices])


class _Evaluation(Dataset[Any]):
    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitems__(self, indices: Sequence[int]) -> Batch | InvalidData:
        try:
            pixels = self.images.test_images(indices)
        except InvalidData as error:
            return error
        return torch.from_numpy(pixels), torch.from_numpy(self.images.labels[indices])
