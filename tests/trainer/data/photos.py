"""Photographs of a kind, made by a seed, and shards of them."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from resforge.jobs import DatasetInfo
from trainer.data.formats import Split
from trainer.data.shards import MANIFEST, ShardManifest, ShardWriter


def photo(number: int, label: int, *, least: int = 40, most: int = 90) -> bytes:
    """A JPEG: smooth colours and some noise, brighter for higher labels; any two differ."""
    dice = np.random.default_rng([number, label])
    height, width = dice.integers(least, most, 2)
    rough = dice.integers(0, 160, (5, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(rough).resize((int(width), int(height)), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + 25 * label + dice.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, subsampling=int(dice.integers(0, 3)))
    return buffer.getvalue()


def write_shards(
    folder: Path, *, train: int = 300, test: int = 40, classes: int = 4, each: int = 40, image_size: int = 32
) -> DatasetInfo:
    """A data set of shards in a folder, images in a drawn order; its registration, located there."""
    splits = {}
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        splits[split] = tuple(
            _shard(folder, split, start, min(start + each, count), classes, offset=0 if split == "train" else train)
            for start in range(0, count, each)
        )
    names = tuple(f"class-{label}" for label in range(classes))
    (folder / MANIFEST).write_bytes(ShardManifest(classes=names, splits=splits).to_bytes())
    return DatasetInfo(
        name="photos", format="shards", location=str(folder), channels=3, classes=classes, image_size=image_size,
        train_images=train, test_images=test,
    )  # fmt: skip


def label_of(number: int, classes: int) -> int:
    return int(np.random.default_rng(number).integers(classes))


def _shard(folder: Path, split: Split, start: int, stop: int, classes: int, *, offset: int) -> object:
    name = f"{split}/{start:06d}.tar"
    writer = ShardWriter(folder / name)
    for number in range(start + offset, stop + offset):
        label = label_of(number, classes)
        writer.add(f"class-{label}/{number:06d}", "jpg", photo(number, label), label)
    shard, index = writer.close(name)
    (folder / shard.index).write_bytes(index)
    return shard
