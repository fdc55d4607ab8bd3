"""The file formats of data sets that fit in memory, each read into uint8 images (N, H, W, C) and int64 labels (N,).

What the files hold is checked here against themselves; `sets` checks it against the registration.
"""

import gzip
import importlib.util
import io
import pickle
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.data.files import Files
from trainer.errors import InvalidData

Split = Literal["train", "test"]
Arrays = tuple[np.ndarray, np.ndarray]

CIFAR10_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
_IDX_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
_IDX_UBYTE = 0x08
SYNTHETIC_IMAGES: dict[Split, int] = {"train": 1024, "test": 256}


def read_digits(split: Split) -> Arrays:
    """scikit-learn's handwritten digits, 8x8x1: 1,437 to train on, 360 held out, every digit in the same share.

    The grey levels 0..16 are spread over 0..255.

    Raises:
        InvalidData: scikit-learn is not installed.
    """
    table = _digits_table()  # 64 grey levels, row by row, then the digit
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64].astype(np.int64)
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[np.argsort(labels, kind="stable")[::5]] = True
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen]


def _digits_table() -> np.ndarray:
    """What `sklearn.datasets.load_digits` reads, (1797, 65) uint8, without the imports of scikit-learn and scipy, which
    were measured to delay every worker by one to three seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise InvalidData("the digits come with scikit-learn, which is not installed on this worker")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)


def make_synthetic(split: Split, *, count: int | None, channels: int, classes: int, image_size: int) -> Arrays:
    """Images of no thing, the same on every call: a pattern for each class under noise of twice its strength.

    The first images of a larger set are those of a smaller one.
    """
    count = SYNTHETIC_IMAGES[split] if count is None else count
    shape = (image_size, image_size, channels)
    patterns = np.random.default_rng([classes, *shape]).standard_normal((classes, *shape), dtype=np.float32)
    labels = np.arange(count, dtype=np.int64) % classes
    random = np.random.default_rng([0 if split == "train" else 1, classes, *shape])
    images = np.empty((count, *shape), dtype=np.uint8)
    for index, label in enumerate(labels):
        noise = random.standard_normal(shape, dtype=np.float32)
        images[index] = np.clip(128 + 24 * patterns[label] + 48 * noise, 0, 255)
    return images, labels


def read_idx(files: Files, split: Split) -> Arrays:
    """MNIST's and Fashion-MNIST's files (`train-images-idx3-ubyte` and its like), plain or with `.gz`.

    Raises:
        InvalidData: a file is missing, is no idx file of bytes, or its size is not what its head says.
    """
    names = set(files.names(""))
    stem = _IDX_STEMS[split]
    images = _idx_array(files, names, f"{stem}-images-idx3-ubyte", dimensions=3)
    labels = _idx_array(files, names, f"{stem}-labels-idx1-ubyte", dimensions=1)
    return images[..., None], labels.astype(np.int64)


def _idx_array(files: Files, names: set[str], stem: str, *, dimensions: int) -> np.ndarray:
    name = next((name for name in (stem, f"{stem}.gz") if name in names), None)
    if name is None:
        raise InvalidData(f"{files.where} holds neither {stem} nor {stem}.gz, which an idx data set needs")
    data = _read(files.path(name), f"{files.where}: {name}")
    where = f"{files.where}: {name}"
    magic, head = data[:4], 4 + 4 * dimensions
    expected = bytes([0, 0, _IDX_UBYTE, dimensions])
    if magic != expected:
        raise InvalidData(
            f"{where} begins with {magic.hex() or 'nothing'}, and an idx file of bytes with {expected.hex()}"
        )
    if len(data) < head:
        raise InvalidData(f"{where} ends within its head of {head} bytes")
    shape = tuple(int(length) for length in np.frombuffer(data, ">u4", dimensions, offset=4))
    values = len(data) - head
    if values != (needed := int(np.prod(shape, dtype=object))):
        raise InvalidData(
            f"{where} says that it holds {'x'.join(map(str, shape))} = {needed} values, and holds {values}"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read(path: Path, where: str) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidData(f"{where} can't be decompressed: {error}") from error


def read_cifar10(files: Files, split: Split) -> Arrays:
    """CIFAR-10's "python version": pickled batches of 32x32x3 images.

    Raises:
        InvalidData: a batch is missing, holds something else than arrays and lists, or has another shape.
    """
    names = set(files.names(""))
    needed = CIFAR10_BATCHES[split]
    if missing := [name for name in needed if name not in names]:
        raise InvalidData(f"{files.where} lacks {', '.join(missing)} of CIFAR-10's python version")
    batches = [_cifar10_batch(files.path(name), f"{files.where}: {name}") for name in needed]
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def _cifar10_batch(path: Path, where: str) -> Arrays:
    try:
        # Python 2 wrote these files, so their strings are bytes.
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        data, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except _Forbidden as error:
        raise InvalidData(f"{where} names {error}; a CIFAR-10 batch holds arrays and lists alone") from error
    except Exception as error:  # a damaged pickle can raise anything at all
        raise InvalidData(f"{where} is no CIFAR-10 batch: {type(error).__name__}: {error}") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise InvalidData(f"{where} holds {data.dtype} data of shape {data.shape}; expected uint8 of shape (N, 3072)")
    if labels.shape != (len(data),) or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidData(
            f"{where} holds {len(data)} images and labels of shape {labels.shape}; expected one whole number each"
        )
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


class _Forbidden(pickle.UnpicklingError):
    pass


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Forbidden(f"the codec {encoding}")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays, numbers, strings and containers of them; everything else can run code, and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None
