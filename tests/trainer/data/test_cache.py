"""The cache that workers and jobs of a node share: whole files, bounded, and never in the way of training."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.cache import ShardCache
from trainer.errors import InvalidData


class Source:
    """Shards by number, and how often each was fetched."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.fetched: list[int] = []
        self.wrong: dict[int, int] = {}  # by shard: how often other bytes come
        self.wait = threading.Event()
        self.wait.set()

    def data(self, number: int) -> bytes:
        return number.to_bytes(4, "big") * (self.size // 4)

    def sha256(self, number: int) -> str:
        return hashlib.sha256(self.data(number)).hexdigest()

    def open(self, cache: ShardCache, number: int) -> bytes | None:
        def fetch(path: Path) -> str:
            self.fetched.append(number)
            assert self.wait.wait(30)
            data = self.data(number)
            if self.wrong.get(number, 0):
                self.wrong[number] -= 1
                data = data[:-1]
            path.write_bytes(data)
            return hashlib.sha256(data).hexdigest()

        found = cache.open(f"shard {number}", self.size, self.sha256(number), fetch)
        return None if found is None else bytes(found)


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


@settings(deadline=None, max_examples=60)
@given(asked=st.lists(st.integers(0, 9), max_size=40), room=st.integers(0, 5))
def test_whatever_is_asked_comes_right_and_the_folder_stays_bounded(
    asked: list[int], room: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, source = tmp_path_factory.mktemp("cache"), Source()
    cache = ShardCache(folder, room * source.size)
    for number in asked:
        assert source.open(cache, number) == (source.data(number) if room else None)
        assert sum(path.stat().st_size for path in kept(folder)) <= room * source.size
    if not room:
        assert source.fetched == []
    elif room >= len(set(asked)):
        assert len(source.fetched) == len(set(asked))


def test_the_one_that_was_not_asked_for_the_longest_goes(tmp_path: Path) -> None:
    source = Source()
    cache = ShardCache(tmp_path, 3 * source.size)
    for number in (0, 1, 2, 0, 3, 0, 2):
        source.open(cache, number)
        for path in kept(tmp_path):  # as if a second had passed: file systems' clocks are coarse
            told = path.stat()
            os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns - 10**9))
    assert source.fetched == [0, 1, 2, 3]


def test_what_is_mapped_stays_readable_when_it_is_removed(tmp_path: Path) -> None:
    source = Source()
    cache = ShardCache(tmp_path, source.size)
    first = cache.open("first", source.size, source.sha256(1), lambda path: _write(path, source.data(1)))
    source.open(cache, 2)
    assert not (tmp_path / source.sha256(1)).exists()
    assert first is not None
    assert bytes(first) == source.data(1)


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_threads_that_want_the_same_shard_fetch_it_once(tmp_path: Path) -> None:
    source, cache = Source(), ShardCache(tmp_path, 1 << 20)
    source.wait.clear()
    with ThreadPoolExecutor(8) as pool:
        wanted = [pool.submit(source.open, cache, 1) for _ in range(8)]
        deadline = time.monotonic() + 20
        while not source.fetched:
            assert time.monotonic() < deadline
        source.wait.set()
        assert [item.result() for item in wanted] == [source.data(1)] * 8
    assert source.fetched == [1]


PROGRAM = """
import sys
from pathlib import Path
from tests.trainer.data.test_cache import Source
from trainer.data.cache import ShardCache
source, cache = Source(100_000), ShardCache(Path(sys.argv[1]), 4 * 100_000)
there = 0
for turn in range(30):
    for number in range(int(sys.argv[2]), int(sys.argv[2]) + 6):
        found = source.open(cache, number)
        assert found is None or found == source.data(number)  # none: the other job took the room at once
        there += found is not None
assert there > 90
"""


def test_two_jobs_share_a_cache_that_is_too_small_for_both(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    jobs = [subprocess.Popen([*command, first], stderr=subprocess.PIPE, text=True) for first in ("0", "3")]
    ends = [(job.communicate(timeout=120)[1], job.returncode) for job in jobs]
    assert ends == [("", 0)] * 2
    assert sum(path.stat().st_size for path in kept(tmp_path)) <= 4 * 100_000


def test_a_fetch_whose_process_died_leaves_nothing_that_lasts(tmp_path: Path) -> None:
    source = Source()
    (tmp_path / f"{source.sha256(7)}.part").write_bytes(b"half")
    cache = ShardCache(tmp_path, 2 * source.size)
    for number in (1, 2, 7):
        assert source.open(cache, number) == source.data(number)
    assert sorted(path.name for path in kept(tmp_path)) == sorted([source.sha256(2), source.sha256(7)])


@pytest.mark.parametrize("times", [1, 2])
def test_other_bytes_than_the_manifests_are_fetched_again_and_then_refused(tmp_path: Path, times: int) -> None:
    source, cache = Source(), ShardCache(tmp_path, 1 << 20)
    source.wrong[1] = times
    if times == 1:
        assert source.open(cache, 1) == source.data(1)
        return
    with pytest.raises(InvalidData, match=r"shard 1 is damaged: the manifest names 1000 bytes .* and 999 came"):
        source.open(cache, 1)
    assert kept(tmp_path) == []
    assert source.open(cache, 1) == source.data(1)  # once it is right again


def full_after(count: int) -> Callable[[int, int, int], None]:
    """posix_fallocate of a disk that has room for so many files more."""
    left = [count]

    def allocate(descriptor: int, offset: int, size: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1

    return allocate


def test_a_full_disk_has_no_room_and_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = Source(), ShardCache(tmp_path, 1 << 20)
    assert source.open(cache, 1) == source.data(1)
    monkeypatch.setattr(os, "posix_fallocate", full_after(0))
    for number in (2, 1, 3):
        assert source.open(cache, number) is None
    assert kept(tmp_path) == []  # what was there made room, and there was none still


def test_a_disk_that_fills_up_in_the_middle_of_a_fetch_is_no_error_either(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 20)

    def fetch(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert cache.open("shard", 1000, "0" * 64, fetch) is None
    assert kept(tmp_path) == []


def test_a_fetch_has_its_room_from_the_beginning(tmp_path: Path) -> None:
    """So that what others fetch meanwhile is counted whole."""
    source, cache = Source(100_000), ShardCache(tmp_path, 1 << 20)
    seen: list[int] = []

    def fetch(path: Path) -> str:
        seen.append(path.stat().st_blocks * 512)
        with path.open("r+b") as file:
            file.write(source.data(1))
        return source.sha256(1)

    found = cache.open("shard", source.size, source.sha256(1), fetch)
    assert found is not None
    assert seen[0] >= source.size


@pytest.mark.parametrize("left", [b"", b"half"])
def test_what_a_crash_of_the_node_left_is_fetched_anew(tmp_path: Path, left: bytes) -> None:
    source, cache = Source(), ShardCache(tmp_path, 1 << 20)
    (tmp_path / source.sha256(1)).write_bytes(left)
    assert source.open(cache, 1) == source.data(1)


def test_a_share_of_the_disk_is_the_bound_that_nobody_gave(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    assert 0 < ShardCache(tmp_path).capacity < disk.f_bavail * disk.f_frsize
