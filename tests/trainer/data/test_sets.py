"""Every format of data, from real files, and what is said when they are not what they should be."""

import gzip
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from resforge.spec import AugmentSpec
from tests.system_packages import FASHION_MNIST
from tests.trainer.data.files import (
    cifar10_batch,
    folder_files,
    idx_bytes,
    info,
    jpeg,
    python2_pickle,
    python3_pickle,
    write_cifar10,
    write_files,
    write_idx,
)
from trainer.data import photographs
from trainer.data.image_set import ArraySet, ImageSet
from trainer.data.photographs import FolderSet
from trainer.data.sets import input_normalisation, open_dataset
from trainer.data.transforms import NUMBERS
from trainer.errors import InvalidData


def refused(problem: str, **fields: Any) -> None:
    """Opening must fail, with `problem` in the message."""
    split = fields.pop("split", "train")
    with pytest.raises(InvalidData) as caught:
        open_dataset(info(fields.pop("format"), **fields), split)
    assert problem in str(caught.value)


def readable(value: object) -> str:
    """A test's name, without the bytes that it writes."""
    return value[:60] if isinstance(value, str) else f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def arrays(images: ImageSet) -> ArraySet:
    assert isinstance(images, ArraySet)
    return images


# digits


def test_digits_are_scikit_learns() -> None:
    digits = info("digits", channels=1, classes=10, image_size=8, train_images=1437, test_images=360)
    train, test = arrays(open_dataset(digits, "train")), arrays(open_dataset(digits, "test"))
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert (train.images.min(), train.images.max()) == (0, 255)
    for digit in range(10):
        held_out = np.sum(test.labels == digit)
        assert abs(held_out / (held_out + np.sum(train.labels == digit)) - 0.2) < 0.01
    again = arrays(open_dataset(digits, "test"))
    assert np.array_equal(again.images, test.images)
    # Together the two splits are what scikit-learn itself loads.
    both = sorted(
        (image.tobytes(), int(label))
        for each in (train, test)
        for image, label in zip(each.images, each.labels, strict=True)
    )
    original = load_digits()
    scaled = np.rint(original.images * (255 / 16)).astype(np.uint8)
    assert both == sorted((image.tobytes(), int(label)) for image, label in zip(scaled, original.target, strict=True))


def test_digits_are_read_without_importing_scikit_learn() -> None:
    program = (
        "from resforge.jobs import DatasetInfo; from trainer.data.sets import open_dataset; import sys;"
        "open_dataset(DatasetInfo(name='d', format='digits', channels=1, classes=10, image_size=8), 'train');"
        "print({'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_digits_registered_otherwise_are_refused() -> None:
    digits = {"format": "digits", "channels": 1, "classes": 10, "image_size": 8}
    refused("images of 8x8 pixels, and the data set tiny is registered with 32x32", **{**digits, "image_size": 32})
    refused("images of 1 channel(s), and the data set tiny is registered with 3", **{**digits, "channels": 3})
    refused("holds the label 5, and the data set tiny is registered with 5 classes: 0 to 4", **{**digits, "classes": 5})
    refused("holds no image of class 10, 11", **{**digits, "classes": 12})
    refused("registered with 1000 images in its train split and holds 1437", **digits, train_images=1000)


# synthetic


def test_synthetic_images_are_the_same_each_time_and_as_many_as_registered() -> None:
    registered = info("synthetic", train_images=50, test_images=20)
    train, test = arrays(open_dataset(registered, "train")), arrays(open_dataset(registered, "test"))
    assert train.images.shape == (50, 8, 8, 3)
    assert test.images.shape == (20, 8, 8, 3)
    assert np.array_equal(arrays(open_dataset(registered, "train")).images, train.images)
    assert not np.array_equal(train.images[:20], test.images)
    larger = arrays(open_dataset(info("synthetic", train_images=70), "train"))
    assert np.array_equal(larger.images[:50], train.images)


def test_synthetic_classes_can_be_learned() -> None:
    """The nearest mean image of the training set names the class of an image held out."""
    registered = info("synthetic", classes=5, train_images=500, test_images=100)
    train, test = arrays(open_dataset(registered, "train")), arrays(open_dataset(registered, "test"))
    means = np.stack([train.images[train.labels == label].mean(axis=0) for label in range(5)])
    distances = ((test.images[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    assert np.mean(distances.argmin(axis=1) == test.labels) > 0.95


# idx


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path, zipped=zipped)
    registered = info("idx", channels=1, location=str(tmp_path), train_images=30, test_images=9)
    train, test = arrays(open_dataset(registered, "train")), arrays(open_dataset(registered, "test"))
    assert np.array_equal(train.images[..., 0].ravel(), np.arange(30 * 64) % 251)
    assert train.labels.tolist() == [index % 3 for index in range(30)]
    assert test.images.shape == (9, 8, 8, 1)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=FASHION_MNIST.mark)], ids=["made", "real"])
def test_fashion_mnist(tmp_path: Path, real: bool) -> None:
    """As Debian's package has it, and files of its size and format."""
    folder = FASHION_MNIST.require() if real else tmp_path
    if not real:
        write_idx(folder, train=60_000, test=10_000, size=28, classes=10)
    registered = info(
        "idx", channels=1, classes=10, image_size=28, location=str(folder), train_images=60_000, test_images=10_000
    )
    test = arrays(open_dataset(registered, "test"))
    assert test.images.shape == (10_000, 28, 28, 1)
    assert Counter(test.labels.tolist()) == dict.fromkeys(range(10), 1000)
    train = open_dataset(registered, "train")
    assert len(train) == 60_000
    normalisation = input_normalisation(train, "channel")
    assert normalisation.mean.shape == (1,)
    if real:
        # The figures usual for it are 0.2860 and 0.3530 of 255.
        assert round(float(normalisation.mean) / 255, 4) == 0.2860
        assert round(float(normalisation.std) / 255, 4) == 0.3530


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GREY = np.zeros((6, 8, 8))


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        (IMAGES, b"", f"{IMAGES} begins with nothing"),
        (IMAGES, b"\x89PNG....", "begins with 89504e47, and an idx file of bytes with 00000803"),
        (IMAGES, idx_bytes(np.arange(6)), "begins with 00000801, and an idx file of bytes with 00000803"),
        (IMAGES, idx_bytes(GREY)[:9], "ends within its head of 16 bytes"),
        (IMAGES, idx_bytes(GREY)[:-1], "6x8x8 = 384 values, and holds 383"),
        (IMAGES, idx_bytes(GREY) + b"\0", "6x8x8 = 384 values, and holds 385"),
        (IMAGES, bytes([0, 0, 8, 3]) + b"\xff" * 12, "4294967295x4294967295x4294967295"),
        (IMAGES, idx_bytes(np.zeros((6, 8, 9))), "images of 8x9 pixels"),
        (IMAGES, idx_bytes(np.zeros((6, 28, 28))), "28x28 pixels, and the data set tiny is registered with 8x8"),
        (LABELS, idx_bytes(np.arange(5)), "holds 6 images and 5 labels"),
        (LABELS, idx_bytes(np.array([0, 1, 2, 3, 0, 1])), "the label 3"),
        (LABELS, idx_bytes(np.array([0, 1, 0, 1, 0, 1])), "no image of class 2"),
        (f"{IMAGES}.gz", b"not gzip", f"{IMAGES}.gz can't be decompressed"),
        (f"{IMAGES}.gz", gzip.compress(idx_bytes(GREY))[:-12], f"{IMAGES}.gz can't be decompressed"),
        (f"{IMAGES}.gz", gzip.compress(idx_bytes(GREY))[:12] + b"\xff" * 40, f"{IMAGES}.gz can't be decompressed"),
    ],
    ids=readable,
)  # fmt: skip
def test_damaged_idx_files_are_refused(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    files = {IMAGES: idx_bytes(GREY), LABELS: idx_bytes(np.arange(6) % 3)}
    files.pop(name.removesuffix(".gz"))
    write_files(tmp_path, {**files, name: data})
    refused(problem, format="idx", channels=1, location=str(tmp_path))


def test_absent_files_and_folders_are_named(tmp_path: Path) -> None:
    location = str(tmp_path / "nowhere")
    refused(f"there is no folder {location}", format="idx", channels=1, location=location)
    refused("registered without a location", format="cifar10")
    write_idx(tmp_path)
    (tmp_path / f"{LABELS}.gz").unlink()
    refused(f"holds neither {LABELS} nor {LABELS}.gz", format="idx", channels=1, location=str(tmp_path))


# cifar10

CIFAR: dict[str, Any] = {"format": "cifar10", "classes": 10, "image_size": 32}


@pytest.mark.parametrize("write", [python2_pickle, python3_pickle])
def test_cifar10_batches(tmp_path: Path, write: Any) -> None:
    write_cifar10(tmp_path)
    pixels, labels = cifar10_batch(10, number=0)
    (tmp_path / "data_batch_1").write_bytes(write(pixels, labels))
    registered = info(**CIFAR, location=str(tmp_path))
    train, test = arrays(open_dataset(registered, "train")), arrays(open_dataset(registered, "test"))
    assert train.images.shape == (50, 32, 32, 3)
    assert test.images.shape == (10, 32, 32, 3)
    # The file holds a plane of red, one of green, one of blue, each row by row.
    assert train.images[3, 5, 7].tolist() == [pixels[3, plane * 1024 + 5 * 32 + 7] for plane in range(3)]
    assert train.labels[:10].tolist() == labels


def test_python2s_pickle_is_one() -> None:
    """The test's own writer is right: Python's unpickler reads the same from it."""
    pixels, labels = cifar10_batch(3)
    batch = pickle.loads(python2_pickle(pixels, labels), encoding="bytes")
    assert np.array_equal(batch[b"data"], pixels)
    assert batch[b"labels"] == labels


class Attack:
    """Pickles to a call of print when it is loaded."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


PIXELS, NUMBERED = cifar10_batch(10)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no CIFAR-10 batch: EOFError"),
        (b"\x00\x01\x02", "is no CIFAR-10 batch: UnpicklingError"),
        (python2_pickle(PIXELS, NUMBERED)[:-500], "is no CIFAR-10 batch"),
        (pickle.dumps([1, 2, 3]), "is no CIFAR-10 batch: TypeError"),
        (pickle.dumps({b"data": PIXELS}, protocol=2), "is no CIFAR-10 batch: KeyError: b'labels'"),
        (python3_pickle(PIXELS[:, :3071], NUMBERED), "uint8 data of shape (10, 3071)"),
        (python3_pickle(PIXELS.astype(np.float32), NUMBERED), "float32 data of shape (10, 3072)"),
        (python3_pickle(PIXELS, NUMBERED[:-1]), "holds 10 images and labels of shape (9,)"),
        (python3_pickle(PIXELS, [0.5] * 10), "one whole number each"),
        (python3_pickle(PIXELS, [*NUMBERED[:-1], 10]), "the label 10"),
        (python3_pickle(PIXELS, [*NUMBERED[:-1], -1]), "the label -1"),
        (pickle.dumps(Attack(print, "owned"), protocol=2), "names __builtin__.print; a CIFAR-10 batch holds arrays"),
        (pickle.dumps(Attack(eval, "1"), protocol=4), "names builtins.eval"),
        (pickle.dumps(np.array([Attack(print, "owned")]), protocol=2), "names __builtin__.print"),
        (pickle.dumps(np.memmap, protocol=2), "names numpy.memmap"),
    ],
    ids=readable,
)
def test_damaged_cifar10_batches_are_refused(
    tmp_path: Path, data: bytes, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(data)
    refused(problem, **CIFAR, location=str(tmp_path))
    assert capsys.readouterr().out == ""


def test_absent_cifar10_batches_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").unlink()
    (tmp_path / "data_batch_5").unlink()
    refused("lacks data_batch_2, data_batch_5", **CIFAR, location=str(tmp_path))


# folders


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_class_folders(tmp_path: Path, held_out: str) -> None:
    write_files(tmp_path, folder_files(held_out=held_out))
    write_files(
        tmp_path,
        {
            "train/README.txt": b"no class",
            "train/newt/.hidden.jpg": b"",
            "train/newt/notes.txt": b"",
            "train/.cache/0.jpg": b"",
        },
    )
    registered = info("folder", location=str(tmp_path), image_size=16, train_images=12, test_images=6)
    train, test = open_dataset(registered, "train"), open_dataset(registered, "test")
    assert Counter(train.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert len(test) == 6
    images = test.test_images(range(6))
    assert images.shape == (6, 16, 16, 3)
    # Sorted, the classes are axolotl (green), newt (blue) and tench (red).
    strongest = images.mean(axis=(1, 2)).argmax(axis=1)
    assert [{0: 1, 1: 2, 2: 0}[int(label)] for label in test.labels] == strongest.tolist()


def test_folders_can_be_read_as_grey(tmp_path: Path) -> None:
    write_files(tmp_path, folder_files())
    grey = open_dataset(info("folder", location=str(tmp_path), channels=1), "train")
    numbers = np.zeros((2, NUMBERS))
    assert grey.train_images([0, 1], numbers, AugmentSpec(scale=(9, 12))).shape == (2, 8, 8, 1)
    assert grey.test_images([]).shape == (0, 8, 8, 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_of_other_modes_are_converted(tmp_path: Path, mode: str) -> None:
    files = folder_files()
    files["train/newt/0.jpg"] = jpeg(20, 20, (9, 9, 9), mode)
    write_files(tmp_path, files)
    train = open_dataset(info("folder", location=str(tmp_path)), "train")
    assert train.test_images(range(len(train))).shape == (12, 8, 8, 3)


def test_folders_of_another_shape_are_refused(tmp_path: Path) -> None:
    registered: dict[str, Any] = {"format": "folder", "location": str(tmp_path)}
    refused("holds no train/CLASS/IMAGE", **registered)
    write_files(tmp_path, {name: data for name, data in folder_files().items() if name.startswith("train")})
    refused("holds no val/CLASS/IMAGE or test/CLASS/IMAGE", **registered, split="test")
    refused("has 3 classes under train/ (axolotl, newt, tench), and the data set tiny is registered with 5",
            **registered, classes=5)  # fmt: skip
    refused("decoded to 1 or 3", **registered, channels=2)
    refused("registered with 7 images in its train split and holds 12", **registered, train_images=7)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, folder_files())
    (tmp_path / "train" / "olm").mkdir()
    refused(
        "holds no image under train/olm with one of the suffixes .jpg",
        format="folder",
        location=str(tmp_path),
        classes=4,
    )


def test_held_out_classes_must_be_those_trained_on(tmp_path: Path) -> None:
    write_files(tmp_path, folder_files())
    (tmp_path / "val" / "newt").rename(tmp_path / "val" / "olm")
    refused("differ: newt, olm", format="folder", location=str(tmp_path), split="test")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 no JPEG", jpeg(40, 40, (1, 2, 3))[:400]])
def test_a_broken_image_is_named(tmp_path: Path, data: bytes) -> None:
    write_files(tmp_path, {**folder_files(), "train/newt/2.jpg": data})
    train = open_dataset(info("folder", location=str(tmp_path)), "train")
    with pytest.raises(InvalidData, match=r"the image train/newt/2\.jpg of .* can't be decoded: "):
        train.test_images(range(len(train)))


def test_an_image_that_has_gone_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, folder_files())
    train = open_dataset(info("folder", location=str(tmp_path)), "train")
    (tmp_path / "train" / "newt" / "2.jpg").unlink()
    with pytest.raises(InvalidData, match=r"there is no file .*newt/2\.jpg"):
        train.test_images(range(len(train)))


# augmentation that a set can't do, subsets, and the mean


def test_augmentation_that_a_set_can_not_do_is_refused(tmp_path: Path) -> None:
    digits = open_dataset(info("digits", channels=1, classes=10), "test")
    digits.check(AugmentSpec(pad=1, flip=True))
    with pytest.raises(InvalidData, match=r"data\.augment\.scale"):
        digits.check(AugmentSpec(scale=(8, 9)))
    write_files(tmp_path, folder_files())
    folder = open_dataset(info("folder", location=str(tmp_path), image_size=16), "train")
    folder.check(AugmentSpec(scale=(16, 20)))
    with pytest.raises(InvalidData, match=r"begins at 12 pixels, and crops of the data set tiny need 16"):
        folder.check(AugmentSpec(scale=(12, 20)))


def test_subsets(tmp_path: Path) -> None:
    write_files(tmp_path, folder_files())
    write_idx(tmp_path)
    chosen = np.array([1, 4, 7])
    for registered in (info("folder", location=str(tmp_path)), info("idx", channels=1, location=str(tmp_path))):
        whole = open_dataset(registered, "train")
        part = whole.subset(chosen)
        assert len(part) == 3
        assert np.array_equal(part.labels, whole.labels[chosen])
        assert np.array_equal(part.test_images([0, 1, 2]), whole.test_images(chosen))


def test_the_mean_is_over_the_training_set(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    train = arrays(open_dataset(info(**CIFAR, location=str(tmp_path)), "train"))
    pixel, channel = input_normalisation(train, "pixel"), input_normalisation(train, "channel")
    exact = train.images.astype(np.float64)
    np.testing.assert_allclose(pixel.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(channel.mean, exact.mean(axis=(0, 1, 2)), rtol=1e-6)
    for normalisation in (pixel, channel):
        np.testing.assert_allclose(normalisation.std, exact.std(axis=(0, 1, 2)), rtol=1e-6)


def test_the_mean_of_a_folder_is_over_a_sample_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, folder_files())
    train = open_dataset(info("folder", location=str(tmp_path)), "train")
    assert isinstance(train, FolderSet)
    whole = input_normalisation(train, "channel")
    np.testing.assert_allclose(whole.mean, train.test_images(range(12)).mean(axis=(0, 1, 2)), rtol=1e-6)
    monkeypatch.setattr(photographs, "MEAN_IMAGES", 6)
    sample = train.test_images([0, 2, 4, 6, 8, 10])
    np.testing.assert_allclose(input_normalisation(train, "pixel").mean, sample.mean(axis=0), rtol=1e-6)


def test_a_constant_channel_is_not_divided_by_zero(tmp_path: Path) -> None:
    write_files(tmp_path, {IMAGES: idx_bytes(np.full((6, 8, 8), 7)), LABELS: idx_bytes(np.arange(6) % 3)})
    train = open_dataset(info("idx", channels=1, location=str(tmp_path)), "train")
    normalisation = input_normalisation(train, "pixel")
    assert normalisation.std.tolist() == [1.0]
    assert normalisation.mean.unique().tolist() == [7.0]
