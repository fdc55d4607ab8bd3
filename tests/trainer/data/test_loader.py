"""Batches: the right images with the right labels, whatever reads them, and the process's random state left alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resforge.spec import AugmentSpec
from tests.trainer.data.files import folder_files, info, write_files
from trainer.data.image_set import ImageSet
from trainer.data.loader import Loader, eval_loader, train_loader
from trainer.data.sampler import TrainSampler
from trainer.data.sets import open_dataset
from trainer.errors import InvalidData

AUGMENT = AugmentSpec(pad=1, flip=True)


@pytest.fixture
def synthetic() -> ImageSet:
    return open_dataset(info("synthetic", train_images=60, test_images=31), "train")


@pytest.fixture
def folder(tmp_path: Path) -> ImageSet:
    write_files(tmp_path, folder_files())
    return open_dataset(info("folder", location=str(tmp_path)), "train")


def batches(images: ImageSet, augment: AugmentSpec = AUGMENT, cpus: float = 1, **run: Any) -> list[tuple[bytes, ...]]:
    """What a training loader gives, in a form that can be compared."""
    sampler = TrainSampler(len(images), **{"global_batch": 4, "seed": 3, "total_steps": 9, **run})
    loader = train_loader(images, sampler, augment, cpus=cpus)
    return [tuple(part.numpy().tobytes() for part in batch) for batch in loader]


def test_batches_are_bytes_and_whole_numbers(synthetic: ImageSet) -> None:
    sampler = TrainSampler(len(synthetic), 8, seed=0, total_steps=3)
    loader = train_loader(synthetic, sampler, AUGMENT)
    assert len(loader) == 3
    for images, labels in loader:
        assert (images.shape, images.dtype) == ((8, 8, 8, 3), torch.uint8)
        assert (labels.shape, labels.dtype) == ((8,), torch.int64)


def test_images_come_with_their_own_labels(synthetic: ImageSet) -> None:
    sampler = TrainSampler(len(synthetic), 8, seed=0, total_steps=20)
    for (images, labels), draws in zip(train_loader(synthetic, sampler, AugmentSpec()), sampler, strict=True):
        indices = [draw.index for draw in draws]
        assert np.array_equal(images.numpy(), synthetic.test_images(indices))
        assert labels.tolist() == synthetic.labels[indices].tolist()


@pytest.mark.parametrize("workers", [2, 4])
def test_an_image_is_augmented_alike_whatever_the_number_of_workers(synthetic: ImageSet, workers: int) -> None:
    alone = batches(synthetic)
    shares = [batches(synthetic, rank=rank, workers=workers) for rank in range(workers)]
    assert [b"".join(pixels for pixels, _ in step) for step in zip(*shares, strict=True)] == [
        pixels for pixels, _ in alone
    ]


def test_a_resumed_loader_goes_on_as_the_other_did(synthetic: ImageSet) -> None:
    assert batches(synthetic, start_step=5, total_steps=20) == batches(synthetic, total_steps=20)[5:]


def test_epochs_augment_an_image_differently() -> None:
    images = open_dataset(info("synthetic", train_images=4, classes=4), "train")
    sampler = TrainSampler(4, 4, seed=3, total_steps=20)
    views: dict[int, set[bytes]] = {index: set() for index in range(4)}
    for (pixels, _), draws in zip(train_loader(images, sampler, AUGMENT), sampler, strict=True):
        for image, draw in zip(pixels.numpy(), draws, strict=True):
            views[draw.index].add(image.tobytes())
    # Of 18 ways to crop and mirror, 20 epochs draw about 12.
    assert all(6 < len(seen) <= 18 for seen in views.values())


COLOUR = AugmentSpec(pad=1, flip=True, colour=0.5)


def test_colours_are_an_images_own_in_its_epoch(synthetic: ImageSet) -> None:
    alone = batches(synthetic, COLOUR, total_steps=20)
    assert [batch[:2] for batch in alone] == batches(synthetic, total_steps=20)
    assert len({batch[2] for batch in alone}) == len(alone)
    assert batches(synthetic, COLOUR, start_step=5, total_steps=20) == alone[5:]
    shares = [batches(synthetic, COLOUR, rank=rank, workers=2, total_steps=20) for rank in range(2)]
    assert [tuple(map(b"".join, zip(*step, strict=True))) for step in zip(*shares, strict=True)] == alone


def test_colour_is_for_rgb(synthetic: ImageSet) -> None:
    grey = open_dataset(info("synthetic", channels=1), "train")
    with pytest.raises(InvalidData, match=r"data\.augment\.colour .* have 1 channel\(s\); leave it out, or give 0"):
        train_loader(grey, TrainSampler(len(grey), 4, seed=0, total_steps=1), COLOUR)


def test_seeds_differ(synthetic: ImageSet) -> None:
    assert batches(synthetic, seed=1) != batches(synthetic, seed=2)


@pytest.mark.parametrize("augment", [AUGMENT, AugmentSpec(flip=True, scale=(9, 14), colour=0.1)])
def test_threads_give_the_same_batches(folder: ImageSet, augment: AugmentSpec) -> None:
    assert batches(folder, augment, cpus=2) == batches(folder, augment)


def test_threads_read_only_what_must_be_decoded(synthetic: ImageSet, folder: ImageSet) -> None:
    assert eval_loader(synthetic, batch=4, cpus=8).threads == 0
    assert eval_loader(folder, batch=4, cpus=1).threads == 0
    assert eval_loader(folder, batch=4, cpus=1.5).threads == 0
    assert eval_loader(folder, batch=4, cpus=2).threads == 2


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_evaluation_gives_every_image_once(synthetic: ImageSet, workers: int) -> None:
    loaders = [eval_loader(synthetic, batch=7, rank=rank, workers=workers) for rank in range(workers)]
    pixels = [images.numpy() for loader in loaders for images, _ in loader]
    labels = [label for loader in loaders for _, some in loader for label in some.tolist()]
    assert np.array_equal(np.concatenate(pixels), synthetic.test_images(range(60)))
    assert labels == synthetic.labels.tolist()


def random_states() -> tuple[object, ...]:
    return random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())


@pytest.mark.parametrize("cpus", [1, 2])
def test_loading_leaves_the_random_state_alone(folder: ImageSet, cpus: int) -> None:
    before = random_states()
    batches(folder, cpus=cpus)
    list(eval_loader(folder, batch=4, cpus=cpus))
    assert random_states() == before


def test_loading_does_not_depend_on_the_random_state(synthetic: ImageSet) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = batches(synthetic)
    torch.manual_seed(2)
    np.random.seed(2)
    assert batches(synthetic) == first


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_broken_image_is_named_by_whoever_reads_it(tmp_path: Path, cpus: int) -> None:
    write_files(tmp_path, {**folder_files(), "train/newt/2.jpg": b"broken"})
    images = open_dataset(info("folder", location=str(tmp_path)), "train")
    loaders: list[Loader] = [
        train_loader(images, TrainSampler(len(images), 4, seed=0, total_steps=3), AUGMENT, cpus=cpus),
        eval_loader(images, batch=4, cpus=cpus),
    ]
    for loader in loaders:
        with pytest.raises(InvalidData, match=r"^the image train/newt/2\.jpg of \S+ can't be decoded: .*") as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)


def test_augmentation_that_the_set_can_not_do_is_refused(synthetic: ImageSet) -> None:
    with pytest.raises(InvalidData, match="scale"):
        train_loader(synthetic, TrainSampler(60, 4, seed=0, total_steps=1), AugmentSpec(scale=(8, 9)))
