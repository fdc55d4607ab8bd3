"""Data in S3, from a real server: found, fetched once, and whole, whoever fetches at the same time."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from resforge.s3 import ObjectStore, StorageError
from resforge.spec import AugmentSpec
from tests.s3 import S3Server
from tests.trainer.data.files import folder_files, info, write_cifar10, write_files, write_idx
from trainer.data.files import LocalFiles, S3Files, files_at
from trainer.data.loader import train_loader
from trainer.data.sampler import TrainSampler
from trainer.data.sets import open_dataset
from trainer.data.transforms import NUMBERS
from trainer.errors import InvalidData

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def store(server: S3Server) -> ObjectStore:
    return server.store()


def upload(store: ObjectStore, folder: Path, prefix: str) -> str:
    """Put a folder's files under a prefix and return its address."""
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload(f"{prefix}/{path.relative_to(folder).as_posix()}", path)
    return store.uri(prefix)


class Counting:
    """A store's factory that counts what is downloaded through its stores."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.downloads: list[str] = []

    def __call__(self, bucket: str) -> ObjectStore:
        downloads = self.downloads

        class Store(ObjectStore):
            def download(self, key: str, path: Path) -> str:
                downloads.append(key)
                return super().download(key, path)

        return Store(bucket, endpoint=self.server.endpoint, attempts=2, timeout_s=5)


@pytest.mark.parametrize("slash", ["", "/"])
def test_formats_read_from_s3_what_they_read_from_a_folder(
    server: S3Server, store: ObjectStore, tmp_path: Path, slash: str
) -> None:
    write_idx(tmp_path / "idx")
    write_cifar10(tmp_path / "cifar10")
    write_files(tmp_path / "folder", folder_files())
    for registered in (info("idx", channels=1), info("cifar10", classes=10, image_size=32), info("folder")):
        folder = tmp_path / registered.format
        location = upload(store, folder, f"data{len(slash)}/{registered.format}") + slash
        for split in ("train", "test"):
            local = open_dataset(registered.model_copy(update={"location": str(folder)}), split)
            remote = open_dataset(
                registered.model_copy(update={"location": location}),
                split,
                store_factory=Counting(server),
                cache_dir=tmp_path / "cache",
            )
            assert np.array_equal(remote.labels, local.labels)
            everything = range(len(local))
            assert np.array_equal(remote.test_images(everything), local.test_images(everything))


def test_each_object_is_fetched_once_and_only_when_it_is_needed(
    server: S3Server, store: ObjectStore, tmp_path: Path
) -> None:
    write_files(tmp_path / "files", folder_files())
    location = upload(store, tmp_path / "files", "once")
    stores, cache = Counting(server), tmp_path / "cache"
    registered = info("folder", location=location)
    images = open_dataset(registered, "train", store_factory=stores, cache_dir=cache)
    assert stores.downloads == []
    images.test_images([0, 1])
    images.train_images([1, 2], np.zeros((2, NUMBERS)), AugmentSpec())
    assert len(stores.downloads) == 3
    open_dataset(registered, "train", store_factory=stores, cache_dir=cache).test_images([0, 1, 2])
    assert len(stores.downloads) == 3
    assert not list(cache.rglob(".fetching-*"))


def test_an_object_that_was_replaced_is_fetched_anew(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"one", b"three"):
        store.put("replaced/file.bin", content)
        files = files_at(f"s3://{server.bucket}/replaced", store_factory=Counting(server), cache_dir=tmp_path)
        assert files.names("") == ["file.bin"]
        assert files.path("file.bin").read_bytes() == content


def test_files_are_found_without_a_listing_too(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    store.put("unlisted/a.txt", b"a")
    files = files_at(f"s3://{server.bucket}/unlisted", store_factory=Counting(server), cache_dir=tmp_path)
    assert files.path("a.txt").read_bytes() == b"a"
    with pytest.raises(InvalidData, match=rf"no object s3://{server.bucket}/unlisted/a\.tx$"):
        files.path("a.tx")


def test_names_and_folders_are_those_of_a_folder(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    write_files(tmp_path, {"top.txt": b"", "a/x.txt": b"", "a/b/y.txt": b"", "c/d/e/z.txt": b"", "ab/w.txt": b""})
    remote = files_at(upload(store, tmp_path, "tree"), store_factory=Counting(server), cache_dir=tmp_path / "cache")
    local = LocalFiles(tmp_path)
    for under in ("", "a", "c", "c/d", "nowhere"):
        assert remote.names(under) == local.names(under), under
        assert remote.folders(under) == local.folders(under), under


def test_a_truncated_object_does_not_enter_the_cache(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    store.put("shrunk/file.bin", b"0123456789")
    files = files_at(f"s3://{server.bucket}/shrunk", store_factory=Counting(server), cache_dir=tmp_path)
    files.names("")
    store.put("shrunk/file.bin", b"01234")
    with pytest.raises(InvalidData, match="listed with 10 bytes and came with 5"):
        files.path("file.bin")
    store.delete("shrunk/file.bin")
    with pytest.raises(InvalidData, match="was listed and is gone"):
        files.path("file.bin")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_not_in_s3_is_named(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    def opened(location: str, format: str = "idx", bucket: str | None = None) -> str:
        with pytest.raises(InvalidData) as caught:
            open_dataset(
                info(format, channels=1, location=location), "train", store_factory=Counting(server), cache_dir=tmp_path
            )
        return str(caught.value)

    missing = f"s3://{server.bucket}/missing"
    assert opened(missing) == (
        f"{missing}/ holds neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz, which an idx data set needs"
    )
    assert opened(missing, "folder") == f"{missing}/ holds no train/CLASS/IMAGE"
    assert "names no bucket" in opened("s3://")


def test_a_server_that_is_gone_is_no_fault_of_the_data(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    def nowhere(bucket: str) -> ObjectStore:
        return ObjectStore(bucket, endpoint="http://127.0.0.1:1", attempts=1, timeout_s=1)

    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1"):
        open_dataset(
            info("idx", channels=1, location=f"s3://{server.bucket}/x"),
            "train",
            store_factory=nowhere,
            cache_dir=tmp_path,
        )


def _fetch(files: S3Files, names: list[str], begin: "multiprocessing.synchronize.Barrier") -> None:
    begin.wait(30)
    for name in names:
        assert files.path(name).read_bytes() == name.encode() * 20_000


def test_processes_that_share_a_cache_do_not_disturb_each_other(
    server: S3Server, store: ObjectStore, tmp_path: Path
) -> None:
    names = [f"{number}.bin" for number in range(6)]
    for name in names:
        store.put(f"shared/{name}", name.encode() * 20_000)
    files = files_at(f"s3://{server.bucket}/shared", store_factory=Counting(server), cache_dir=tmp_path)
    assert isinstance(files, S3Files)
    assert files.names("") == names
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(3)
    processes = [context.Process(target=_fetch, args=(files, names, begin)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(names)


def test_threads_fetch_from_s3(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    write_files(tmp_path / "files", folder_files())
    location = upload(store, tmp_path / "files", "forked")
    images = open_dataset(
        info("folder", location=location), "train", store_factory=Counting(server), cache_dir=tmp_path / "cache"
    )
    sampler = TrainSampler(len(images), 4, seed=0, total_steps=3)
    batches = [labels.tolist() for _, labels in train_loader(images, sampler, AugmentSpec(), cpus=2)]
    assert batches == [[int(images.labels[draw.index]) for draw in draws] for draws in sampler]


def test_the_cache_is_readable_by_its_owner_alone(server: S3Server, store: ObjectStore, tmp_path: Path) -> None:
    store.put("private/file.bin", b"mine")
    files = files_at(f"s3://{server.bucket}/private", store_factory=Counting(server), cache_dir=tmp_path / "cache")
    assert os.stat(files.path("file.bin")).st_mode & 0o077 == 0
