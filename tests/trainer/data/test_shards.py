"""Shards: what is written is read, by us and by anybody's tar."""

import gc
import io
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.shards import ROW, Shard, ShardManifest, ShardWriter, read_index, read_manifest
from trainer.errors import InvalidData

IMAGES = st.lists(st.tuples(st.binary(min_size=1, max_size=3000), st.integers(0, 999)), min_size=1, max_size=8)


def written(path: Path, images: list[tuple[bytes, int]]) -> tuple[Shard, bytes]:
    writer = ShardWriter(path)
    for number, (image, label) in enumerate(images):
        writer.add(f"n{label:08d}/image_{number}", "jpg", image, label)
    return writer.close("train/000000.tar")


@settings(max_examples=50, deadline=None)
@given(images=IMAGES)
def test_what_is_written_is_read(images: list[tuple[bytes, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("shard") / "000000.tar"
    shard, index = written(path, images)
    data = path.read_bytes()
    assert (shard.images, shard.size, shard.index) == (len(images), len(data), "train/000000.index.npy")
    rows = read_index(index, shard, "here")
    assert [(data[row["offset"] : row["offset"] + row["size"]], row["label"]) for row in rows] == images
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:  # as anybody's tool sees it
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert members == [
        item
        for number, (image, label) in enumerate(images)
        for item in (
            (f"n{label:08d}/image_{number}.jpg", image),
            (f"n{label:08d}/image_{number}.cls", str(label).encode()),
        )
    ]
    again, _ = written(path, images)
    assert again == shard  # the same bytes


def test_an_index_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    shard, index = written(tmp_path / "a.tar", [(b"image", 3)])
    with pytest.raises(InvalidData, match="here is damaged"):
        read_index(index[:-1], shard, "here")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2, dtype=ROW))
    other = Shard(**{**shard.model_dump(), "index_sha256": __import__("hashlib").sha256(buffer.getvalue()).hexdigest()})
    with pytest.raises(InvalidData, match="does not hold 1 rows"):
        read_index(buffer.getvalue(), other, "here")


def test_a_manifest_is_read_back_and_a_strange_one_is_refused(tmp_path: Path) -> None:
    shard, _ = written(tmp_path / "a.tar", [(b"image", 0), (b"other", 1)])
    manifest = ShardManifest(classes=("cat", "dog"), splits={"train": (shard,), "test": (shard,)}, broken=1)
    assert read_manifest(manifest.to_bytes(), "here") == manifest
    assert (manifest.images("train"), manifest.images("test")) == (2, 2)
    with pytest.raises(InvalidData, match="here is no manifest of shards"):
        read_manifest(b"{}", "here")
    later = manifest.model_copy(update={"version": 2})
    with pytest.raises(InvalidData, match="version 2; this trainer reads version 1"):
        read_manifest(later.to_bytes(), "here")


def test_threads_read_indices_whatever_is_run_while_garbage_is_collected(tmp_path: Path) -> None:
    shard, index = written(tmp_path / "000000.tar", [(b"one", 0), (b"two", 1)])
    finaliser = lambda *_: sum(range(200))  # noqa: E731  # long enough for another thread to get its turn
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(finaliser)
    try:
        gc.set_threshold(20)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: read_index(index, shard, "here")["label"].tolist(), range(300)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.remove(finaliser)
    assert found == [[0, 1]] * 300
