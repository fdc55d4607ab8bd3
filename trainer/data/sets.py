"""Data sets as the trainer sees them: images by index, as uint8, and labels. `open_dataset` opens a registered one."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from resforge.jobs import DatasetInfo
from trainer.data import formats
from trainer.data.cache import ShardCache
from trainer.data.files import CACHE, Files, StoreFactory, files_at
from trainer.data.formats import Split
from trainer.data.image_set import ArraySet, ImageSet
from trainer.data.photographs import FolderSet
from trainer.data.shard_files import open_shards
from trainer.data.transforms import Normalisation
from trainer.errors import InvalidData

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
# The training split's folder, and those that the held-out one may have.
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "test")}
_CHUNK = 64  # images at a time


def open_dataset(
    info: DatasetInfo,
    split: Split,
    *,
    store_factory: StoreFactory | None = None,
    cache_dir: Path | None = None,
    cache_bytes: int | None = None,
) -> ImageSet:
    """Open one split of a registered data set.

    Args:
        info: the registration.
        split: the images to train on, or the held-out ones.
        store_factory: gives the store of a bucket, for data in S3; boto3's own settings where left out.
        cache_dir: where objects from S3 are kept; `~/.cache/resforge/datasets` where left out.
        cache_bytes: how much shards may take there; a share of the disk where left out.

    Raises:
        InvalidData: the data are absent, damaged, or not what the registration says.
        StorageError: S3 does not answer, or refuses.
    """
    opened: ImageSet
    if info.format in ("digits", "synthetic"):
        opened = _built_in(info, split)
    elif info.location is None:
        raise InvalidData(
            f"the data set {info.name} of the format {info.format} is registered without a location; "
            "it needs a folder or an s3:// prefix"
        )
    else:
        files = files_at(info.location, store_factory=store_factory, cache_dir=cache_dir)
        if info.format == "folder":
            opened = _open_folder(info, split, files)
        elif info.format == "shards":
            opened = open_shards(info, split, files, lambda: ShardCache((cache_dir or CACHE) / "shards", cache_bytes))
        else:
            opened = _open_arrays(info, split, files)
    known = info.train_images if split == "train" else info.test_images
    if known is not None and len(opened) != known:
        raise InvalidData(
            f"the data set {info.name} is registered with {known} images in its {split} split and holds {len(opened)}"
        )
    return opened


def _built_in(info: DatasetInfo, split: Split) -> ArraySet:
    if info.format == "digits":
        return _checked(info, formats.read_digits(split), "scikit-learn's digits")
    count = info.train_images if split == "train" else info.test_images
    return _checked(
        info,
        formats.make_synthetic(
            split, count=count, channels=info.channels, classes=info.classes, image_size=info.image_size
        ),
        "the synthetic set",
    )


def _open_arrays(info: DatasetInfo, split: Split, files: Files) -> ArraySet:
    read = formats.read_idx if info.format == "idx" else formats.read_cifar10
    return _checked(info, read(files, split), f"{files.where}, {split} split,")


def _checked(info: DatasetInfo, arrays: formats.Arrays, where: str) -> ArraySet:
    """The arrays as a set, once they are found to be what the registration says."""
    images, labels = arrays
    height, width, channels = images.shape[1:]
    if len(images) != len(labels):
        raise InvalidData(f"{where} holds {len(images)} images and {len(labels)} labels")
    if (height, width) != (info.image_size, info.image_size):
        raise InvalidData(
            f"{where} holds images of {height}x{width} pixels, and the data set {info.name} is registered with "
            f"{info.image_size}x{info.image_size}"
        )
    if channels != info.channels:
        raise InvalidData(
            f"{where} holds images of {channels} channel(s), and the data set {info.name} is registered "
            f"with {info.channels}"
        )
    strange = labels[(labels < 0) | (labels >= info.classes)]
    if len(strange):
        raise InvalidData(
            f"{where} holds the label {strange[0]}, and the data set {info.name} is registered with {info.classes} "
            f"classes: 0 to {info.classes - 1}"
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=info.classes) == 0)
    if len(empty):
        raise InvalidData(f"{where} holds no image of class {', '.join(map(str, empty))}")
    return ArraySet(info, images, labels)


def _open_folder(info: DatasetInfo, split: Split, files: Files) -> FolderSet:
    if info.channels == 2:
        raise InvalidData(f"the data set {info.name} is registered with 2 channels; images are decoded to 1 or 3")
    folder, classes = next(
        ((folder, found) for folder in _FOLDERS[split] if (found := _classes(files, folder))), (None, [])
    )
    if folder is None:
        expected = " or ".join(f"{folder}/CLASS/IMAGE" for folder in _FOLDERS[split])
        raise InvalidData(f"{files.where} holds no {expected}")
    if len(classes) != info.classes:
        raise InvalidData(
            f"{files.where} has {len(classes)} classes under {folder}/ ({_some(classes)}), and the data set "
            f"{info.name} is registered with {info.classes}"
        )
    # A class is its place among the sorted names, so other names would be other classes.
    if split == "test" and (trained := _classes(files, "train")) and trained != classes:
        raise InvalidData(
            f"the classes under {folder}/ and train/ of {files.where} differ: {_some(set(classes) ^ set(trained))}"
        )
    number = {name: index for index, name in enumerate(classes)}
    names = [name for name in files.names(folder) if _is_image(name)]
    labels = np.array([number[name.split("/")[1]] for name in names], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        raise InvalidData(
            f"{files.where} holds no image under {_some(f'{folder}/{classes[index]}' for index in empty)} "
            f"with one of the suffixes {' '.join(_SUFFIXES)}"
        )
    # As bytes in one array: a million names in a list would be copied into every process that reads images.
    return FolderSet(info, files, np.array([name.encode() for name in names]), labels)


def _classes(files: Files, folder: str) -> list[str]:
    return [name for name in files.folders(folder) if not name.startswith(".")]


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} more" if len(first) > 5 else "")


def _is_image(name: str) -> bool:
    """Whether a file is SPLIT/CLASS/IMAGE, none of the three hidden."""
    return name.count("/") == 2 and "/." not in name and name.lower().endswith(_SUFFIXES)


def input_normalisation(images: ImageSet, mean: str) -> Normalisation:
    """The mean and standard deviation of a training set, as it is seen without augmentation.

    Over all images of a set in memory, and over MEAN_IMAGES of others. The same on every worker.

    Args:
        images: the training set, after any limit.
        mean: "pixel", the mean image, or "channel", its mean over the pixels.
    """
    chosen = images.for_mean()
    total, squares = np.int64(0), np.int64(0)
    for at in range(0, len(chosen), _CHUNK):
        for image in images.test_images(chosen[at : at + _CHUNK]):
            wide = image.astype(np.int64)
            total = total + wide  # whole numbers, so the order of the sum is of no account
            squares = squares + (wide * wide).sum(axis=(0, 1))
    pixels = total / len(chosen)
    channels = pixels.mean(axis=(0, 1))
    variance = squares / (len(chosen) * images.info.image_size**2) - channels**2
    std = np.sqrt(np.maximum(variance, 0))
    std[std < 1] = 1  # a channel that never changes is left as it is
    values = pixels if mean == "pixel" else channels
    return Normalisation(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(std.astype(np.float32)))
