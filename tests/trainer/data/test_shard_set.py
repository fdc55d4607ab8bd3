"""Shards in a real S3 server as the trainer reads them: the right images, and clear words when something is wrong."""

import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resforge.jobs import DatasetInfo
from resforge.s3 import ObjectStore, StorageUnavailable
from resforge.spec import AugmentSpec
from tests.s3 import S3Server, start_s3
from tests.trainer.data.photos import label_of, photo, write_shards
from tests.trainer.data.test_files import Counting, upload
from trainer.data import loader, photographs, shard_files
from trainer.data.loader import eval_loader, train_loader
from trainer.data.photographs import ShardSet
from trainer.data.sampler import TrainSampler
from trainer.data.sets import input_normalisation, open_dataset
from trainer.data.shards import MANIFEST
from trainer.errors import InvalidData

pytestmark = pytest.mark.stack

OUTAGE_S = 3.0  # longer than the tries of one request
AUGMENT = AugmentSpec(flip=True, scale=(36, 60))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def stored(server: S3Server, local: DatasetInfo) -> DatasetInfo:
    """The same in S3."""
    assert local.location is not None
    return local.model_copy(update={"location": upload(server.store(), Path(local.location), "photos")})


def opened(info: DatasetInfo, factory: Counting, cache: Path, split: str = "train", **more: int) -> ShardSet:
    found = open_dataset(info, split, store_factory=factory, cache_dir=cache, **more)  # type: ignore[arg-type]
    assert isinstance(found, ShardSet)
    return found


def damaged(server: S3Server, local: DatasetInfo, prefix: str) -> tuple[DatasetInfo, ObjectStore]:
    """A copy of its own, to be spoiled."""
    assert local.location is not None
    store = server.store()
    return local.model_copy(update={"location": upload(store, Path(local.location), prefix)}), store


def run(images: ShardSet, cpus: float = 2, **changes: int) -> list[tuple[bytes, list[int]]]:
    fields = {"seed": 3, "total_steps": 40, "rank": 0, "workers": 1, "start_step": 0, **changes}
    sampler = TrainSampler(len(images), 16, order=images.order(16, fields["seed"]), **fields)
    batches = train_loader(images, sampler, AUGMENT, cpus=cpus)
    return [(pixels.numpy().tobytes(), labels.tolist()) for pixels, labels in batches]


def test_images_are_those_that_were_written(server: S3Server, stored: DatasetInfo, tmp_path: Path) -> None:
    images = opened(stored, Counting(server), tmp_path)
    assert len(images) == 300
    for index in (0, 39, 40, 299):
        label = label_of(index, 4)
        assert bytes(images.encoded(index)) == photo(index, label)
        assert images.labels[index] == label
        with Image.open(BytesIO(photo(index, label))) as picture:
            assert np.array_equal(np.asarray(images.image(index)), np.asarray(picture.convert("RGB")))


def test_a_run_is_the_same_from_s3_and_from_a_folder_by_threads_and_by_none_and_goes_on_anywhere(
    server: S3Server, local: DatasetInfo, stored: DatasetInfo, tmp_path: Path
) -> None:
    whole = run(opened(local, Counting(server), tmp_path), cpus=1)
    assert run(opened(stored, Counting(server), tmp_path)) == whole
    assert run(opened(stored, Counting(server), tmp_path), start_step=23) == whole[23:]
    shares = [run(opened(stored, Counting(server), tmp_path), rank=rank, workers=2) for rank in range(2)]
    assert [b"".join(part for part, _ in step) for step in zip(*shares, strict=True)] == [part for part, _ in whole]


def test_each_shard_is_fetched_once_and_only_those_that_are_needed(
    server: S3Server, stored: DatasetInfo, tmp_path: Path
) -> None:
    factory = Counting(server)
    run(opened(stored, factory, tmp_path))
    shards = [key for key in factory.downloads if key.endswith(".tar")]
    assert sorted(shards) == [f"photos/train/{start:06d}.tar" for start in range(0, 300, 40)]
    list(eval_loader(opened(stored, factory, tmp_path, "test"), batch=16, cpus=2))
    assert [key for key in factory.downloads if key.endswith(".tar")][len(shards) :] == ["photos/test/000000.tar"]
    again = Counting(server)
    run(opened(stored, again, tmp_path))
    assert again.downloads == []


def test_a_cache_too_small_for_anything_costs_fetches_and_not_the_run(
    server: S3Server, stored: DatasetInfo, tmp_path: Path
) -> None:
    whole = run(opened(stored, Counting(server), tmp_path / "large"))
    assert run(opened(stored, Counting(server), tmp_path / "small", cache_bytes=1)) == whole


def test_shards_that_had_to_go_are_fetched_ahead_again_in_later_epochs(
    server: S3Server, stored: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "OPEN_SHARDS", 3)
    monkeypatch.setattr(photographs, "OPEN_SHARDS", 3)
    fetched: list[tuple[str, int]] = []
    images = opened(stored, Counting(server), tmp_path)
    whole_of = images._opened.whole
    by = lambda shard: fetched.append((threading.current_thread().name.split("_")[0], shard))  # noqa: E731
    monkeypatch.setattr(images._opened, "whole", lambda shard: (by(shard), whole_of(shard))[1])
    whole = run(images, total_steps=54)  # three epochs
    assert whole == run(opened(stored, Counting(server), tmp_path), total_steps=54)
    ahead = [shard for name, shard in fetched if name == "fetch"]
    assert len(ahead) > 2 * len(set(ahead)) == 2 * 8


def test_the_mean_is_taken_of_the_first_images(server: S3Server, stored: DatasetInfo, tmp_path: Path) -> None:
    images = opened(stored, Counting(server), tmp_path)
    seen = images.test_images(np.arange(300)).astype(np.float64)
    np.testing.assert_allclose(input_normalisation(images, "channel").mean, seen.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_what_is_missing_or_damaged_is_named(server: S3Server, local: DatasetInfo, tmp_path: Path) -> None:
    info, store = damaged(server, local, "spoiled")
    store.delete("spoiled/train/000080.tar")
    with pytest.raises(InvalidData, match=r"s3://\S+/spoiled/train/000080\.tar is named by the manifest and is gone"):
        run(opened(info, Counting(server), tmp_path))
    data = store.get("spoiled/train/000040.tar")
    store.put("spoiled/train/000080.tar", data[: len(data) // 2])
    with pytest.raises(
        InvalidData, match=r"000080\.tar is damaged: the manifest names \d+ bytes of another SHA-256, and"
    ):
        run(opened(info, Counting(server), tmp_path))
    store.put("spoiled/train/000120.index.npy", store.get("spoiled/train/000160.index.npy"))
    with pytest.raises(InvalidData, match=r"000120\.index\.npy is damaged"):
        opened(info, Counting(server), tmp_path)
    store.delete("spoiled/train/000120.index.npy")
    with pytest.raises(InvalidData, match=r"there is no object s3://\S+000120\.index\.npy"):
        opened(info, Counting(server), tmp_path)
    store.put(f"spoiled/{MANIFEST}", b"{}")
    with pytest.raises(InvalidData, match=r"dataset\.json is no manifest of shards"):
        opened(info, Counting(server), tmp_path)
    store.delete(f"spoiled/{MANIFEST}")
    with pytest.raises(InvalidData, match=r"there is no object s3://\S+dataset\.json"):
        opened(info, Counting(server), tmp_path)


def test_a_broken_image_is_named_by_its_place(server: S3Server, local: DatasetInfo, tmp_path: Path) -> None:
    assert local.location is not None
    copy = tmp_path / "copy"
    info = write_shards(copy, train=40, test=40)
    path = copy / "train" / "000000.tar"
    data = bytearray(path.read_bytes())
    data[512:560] = bytes(48)  # the first image's head
    path.write_bytes(data)
    images = opened(info, Counting(server), tmp_path)
    with pytest.raises(InvalidData, match=r"the image at byte 512 of \S+train/000000\.tar can't be decoded: "):
        images.test_images([0])
    images.test_images([1])


def test_a_registration_that_is_not_the_manifests(server: S3Server, stored: DatasetInfo, tmp_path: Path) -> None:
    for changes, words in (
        ({"classes": 5}, "holds 4 classes, and the data set photos is registered with 5"),
        ({"train_images": 299}, "registered with 299 images in its train split and holds 300"),
    ):
        with pytest.raises(InvalidData, match=words):
            opened(stored.model_copy(update=changes), Counting(server), tmp_path)


def test_storage_that_is_away_for_a_while_is_waited_for(
    stored: DatasetInfo, local: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local.location is not None
    own = start_s3(tmp_path / "own")
    try:
        info = local.model_copy(update={"location": upload(own.store(), Path(local.location), "photos")})
        factory = Counting(own)
        images = opened(info, factory, tmp_path / "cache")
        own.stop()
        seen: list[tuple[bytes, list[int]]] = []
        reading = threading.Thread(target=lambda: seen.extend(run(images)))
        reading.start()
        threading.Event().wait(OUTAGE_S)
        own.start()
        reading.join(60)
        assert seen == run(opened(local, factory, tmp_path / "cache"))
        own.stop()
        monkeypatch.setattr(shard_files, "OUTAGE_S", 0.0)
        with pytest.raises(StorageUnavailable):
            opened(info, factory, tmp_path / "cache")._opened.whole(0)
    finally:
        own.stop()
