"""Writes small data sets in the formats of the real ones."""

import gzip
import pickle
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resforge.jobs import DatasetInfo


def info(format: str, **changes: Any) -> DatasetInfo:
    """The registration of a small data set."""
    fields = {"name": "tiny", "format": format, "channels": 3, "classes": 3, "image_size": 8}
    return DatasetInfo.model_validate({**fields, **changes})


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of bytes: zeros, the type, the number of dimensions, each length, the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, *, train: int = 30, test: int = 9, size: int = 8, classes: int = 3, zipped: bool = True
) -> None:
    """MNIST's four files, with labels that go round and pixels that count up."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        images = np.arange(count * size * size).reshape(count, size, size) % 251
        arrays = {f"{stem}-images-idx3-ubyte": images, f"{stem}-labels-idx1-ubyte": np.arange(count) % classes}
        for name, array in arrays.items():
            data = idx_bytes(array)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR-10 batch as Python 2 and its numpy wrote the real ones: protocol 2, with byte strings."""
    short = lambda text: b"U" + bytes([len(text)]) + text  # noqa: E731 - SHORT_BINSTRING
    whole = lambda value: b"J" + struct.pack("<i", value)  # noqa: E731 - BININT
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(" + b"K\x03" + short(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00" + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + short(b"b") + b"\x87R"
    pixels = data.tobytes()
    state = b"K\x01" + b"(" + b"".join(map(whole, data.shape)) + b"t" + dtype + b"\x89"
    array += b"(" + state + b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    items = short(b"batch_label") + short(b"a batch") + short(b"labels") + b"](" + b"".join(map(whole, labels)) + b"e"
    return b"\x80\x02}(" + items + short(b"data") + array + b"u."


def python3_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """The same batch as Python 3 writes it for Python 2."""
    return pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"a batch"}, protocol=2)


def cifar10_batch(count: int, number: int = 0) -> tuple[np.ndarray, list[int]]:
    """Pixels (count, 3072), red first, and labels that go round."""
    pixels = np.random.default_rng(number).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pixels, [index % 10 for index in range(count)]


def write_cifar10(folder: Path, count: int = 10) -> None:
    """CIFAR-10's six batches of `count` images each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(python2_pickle(*cifar10_batch(count, number)))


def jpeg(width: int, height: int, colour: tuple[int, int, int], mode: str = "RGB") -> bytes:
    """A photograph of nothing: one colour, with a gradient across."""
    across = np.linspace(0, 60, width, dtype=np.uint8)[None, :, None]
    pixels = np.broadcast_to(np.array(colour, dtype=np.uint8) + across, (height, width, 3))
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


# Class names whose sorted order is not the order that they are written in.
COLOURS = {"tench": (180, 20, 20), "axolotl": (20, 180, 20), "newt": (20, 20, 180)}


def folder_files(*, train: int = 4, test: int = 2, held_out: str = "val") -> dict[str, bytes]:
    """Relative name -> bytes of class folders, each class of one colour, images of several shapes."""
    files = {}
    for split, count in (("train", train), (held_out, test)):
        for name, colour in COLOURS.items():
            for number in range(count):
                suffix = "JPEG" if number % 2 else "jpg"
                files[f"{split}/{name}/{number}.{suffix}"] = jpeg(40 + 7 * number, 50 - 5 * number, colour)
    return files


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
