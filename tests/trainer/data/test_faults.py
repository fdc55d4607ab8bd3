"""S3 that answers 503 or 500, late, or cuts its answers: an epoch is the same, or storage is named as what failed."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from botocore.retries import quota
from botocore.retries.standard import ExponentialBackoff
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from resforge import s3
from resforge.jobs import DatasetInfo
from resforge.s3 import ObjectStore, StorageUnavailable
from resforge.spec import AugmentSpec
from tests.gate import Fault, Gate, gate_before
from tests.s3 import S3Server
from tests.trainer.data.photos import write_shards
from tests.trainer.data.test_files import upload
from trainer.data import shard_files
from trainer.data.loader import train_loader
from trainer.data.photographs import ShardSet
from trainer.data.sampler import TrainSampler
from trainer.data.sets import open_dataset

pytestmark = [pytest.mark.stack, pytest.mark.timeout(90)]  # a read that hangs fails

TRIES = 4  # of the client
SHARDS = [f"/photos/train/{start:06d}.tar" for start in (0, 4, 8)]
# What an epoch asks for: the listings, the manifest, the indices and the shards.
ASKED = ["list-type=2", "/photos/dataset.json", *(name.replace(".tar", ".index.npy") for name in SHARDS), *SHARDS]
AUGMENT = AugmentSpec(flip=True, scale=(36, 60))
Epoch = list[tuple[bytes, list[int]]]

BUSY = st.sampled_from([(503, "SlowDown"), (503, "ServiceUnavailable"), (500, "InternalError")])
CUTS = st.sampled_from([0, 999]) | st.integers(0, 999)
SHORT = st.builds(Fault, cut=CUTS, reset=st.booleans())
LATE = st.sampled_from([0.0, 0.0, 0.01, 0.03])


@st.composite
def refusals(draw: st.DrawFn) -> Fault:
    """503 or 500, whole or itself cut."""
    status, code = draw(BUSY)
    answer = draw(st.just(Fault()) | SHORT)
    return replace(answer, status=status, code=code, retry_s=draw(st.sampled_from([None, 1])))


FAULTS = st.builds(lambda fault, delay_s: replace(fault, delay_s=delay_s), refusals() | SHORT, LATE)
ANSWERS = FAULTS | st.builds(Fault, delay_s=LATE)
# For each object what its first answers are; the last of the client's tries is served.
PLANS = st.lists(st.lists(ANSWERS, max_size=TRIES - 1), min_size=len(ASKED), max_size=len(ASKED))
few = settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes
)


@pytest.fixture(scope="module", autouse=True)
def short_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        scales = "throttling_base_scale", "non_throttling_base_scale"
        patch.setattr(ExponentialBackoff, "_DEFAULT_BACKOFF_CONFIG", dict.fromkeys(scales, 0.002))
        # A client, which takes long to make, meets the faults of all examples: more than it would try again after.
        patch.setattr(quota, "RetryQuota", partial(quota.RetryQuota, 1 << 30))
        patch.setattr(s3, "FIRST_PAUSE_S", 0.002)
        patch.setattr(shard_files, "FIRST_PAUSE_S", 0.005)
        patch.setattr(shard_files, "OUTAGE_S", 0.05)
        yield


@pytest.fixture(scope="module")
def gate(server: S3Server) -> Iterator[Gate]:
    with gate_before(server) as found:
        yield found


@pytest.fixture(scope="module")
def stores(short_pauses: None, gate: Gate) -> list[ObjectStore]:
    """Of two readers."""
    return [gate.s3.store(attempts=TRIES) for _ in range(2)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return write_shards(tmp_path_factory.mktemp("shards"), train=12, test=4, each=4)


@pytest.fixture(scope="module")
def stored(server: S3Server, local: DatasetInfo) -> DatasetInfo:
    """The same in S3."""
    assert local.location is not None
    return local.model_copy(update={"location": upload(server.store(), Path(local.location), "photos")})


@pytest.fixture(scope="module")
def undisturbed(local: DatasetInfo, stores: list[ObjectStore], tmp_path_factory: pytest.TempPathFactory) -> Epoch:
    found = epoch(local, stores[0], tmp_path_factory.mktemp("unused"))
    assert sum(len(labels) for _, labels in found) == 12
    return found


def epoch(info: DatasetInfo, store: ObjectStore, cache: Path, room: int | None = None) -> Epoch:
    """Every batch's pixels and labels, from the listing on."""
    try:
        images = open_dataset(info, "train", store_factory=lambda _: store, cache_dir=cache, cache_bytes=room)
        assert isinstance(images, ShardSet)
        sampler = TrainSampler(len(images), 4, order=images.order(4, 3), seed=3, total_steps=3)
        batches = train_loader(images, sampler, AUGMENT, cpus=2)
        return [(pixels.numpy().tobytes(), labels.tolist()) for pixels, labels in batches]
    finally:
        _fetchers_end()


def _fetchers_end() -> None:
    """What is fetched ahead is not waited for by those who read."""
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("fetch") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def spoil(gate: Gate, plan: Sequence[Sequence[Fault]]) -> None:
    gate.mend()
    for part, faults in zip(ASKED, plan, strict=True):
        gate.spoil(part, faults)


def shards_in(cache: Path, local: DatasetInfo) -> int:
    """How many shards a cache holds. Whatever it holds is whole, and is nothing but locks besides."""
    assert local.location is not None
    sources = {hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(local.location).rglob("*.*")}
    files = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    digests = [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    assert [path for path, digest in digests if digest not in sources] == []
    shards = [(path.name, digest) for path, digest in digests if path.parent.name == "shards"]
    assert [name for name, digest in shards if name != digest] == []
    return len(shards)


@few
@given(plan=PLANS, room=st.sampled_from([None, 1]))
def test_an_epoch_is_the_same_whatever_faults_pass(
    plan: list[list[Fault]],
    room: int | None,
    gate: Gate,
    stores: list[ObjectStore],
    local: DatasetInfo,
    stored: DatasetInfo,
    undisturbed: Epoch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    spoil(gate, plan)
    assert epoch(stored, stores[0], cache, room) == undisturbed
    assert shards_in(cache, local) == (0 if room else len(SHARDS))


@few
@given(plan=PLANS)
def test_two_readers_share_a_cache_through_faults(
    plan: list[list[Fault]],
    gate: Gate,
    stores: list[ObjectStore],
    local: DatasetInfo,
    stored: DatasetInfo,
    undisturbed: Epoch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    spoil(gate, plan)
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(epoch, stored, store, cache) for store in stores]
        assert [reader.result() for reader in readers] == [undisturbed] * 2
    assert shards_in(cache, local) == len(SHARDS)


@few
@example(part="list-type=2", fault=Fault(cut=0), room=None)  # which boto3 takes for an empty listing
@given(part=st.sampled_from(ASKED), fault=FAULTS, room=st.sampled_from([None, 1]))
def test_faults_that_stay_are_storages_and_what_comes_after_them_is_right(
    part: str,
    fault: Fault,
    room: int | None,
    gate: Gate,
    stores: list[ObjectStore],
    local: DatasetInfo,
    stored: DatasetInfo,
    undisturbed: Epoch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    gate.mend()
    spoiled = gate.spoil(part, [], always=fault)
    with pytest.raises(StorageUnavailable):
        epoch(stored, stores[0], cache, room)
    assert spoiled.seen >= TRIES
    assert shards_in(cache, local) < len(SHARDS)
    gate.mend()
    assert epoch(stored, stores[0], cache, room) == undisturbed
    assert shards_in(cache, local) == (0 if room else len(SHARDS))


def test_an_answer_that_falls_silent_is_asked_for_again(
    gate: Gate, local: DatasetInfo, stored: DatasetInfo, undisturbed: Epoch, tmp_path: Path
) -> None:
    silent = Fault(cut=500, stall_s=30)
    gate.mend()
    spoiled = [
        gate.spoil("/photos/dataset.json", [silent]),
        gate.spoil(SHARDS[0], [silent]),
        gate.spoil(SHARDS[1], [replace(silent, status=503, code="SlowDown")]),
    ]
    began = time.monotonic()
    assert epoch(stored, gate.s3.store(attempts=TRIES, timeout_s=1), tmp_path) == undisturbed
    assert time.monotonic() - began < 25
    assert all(each.seen > 1 for each in spoiled)
    assert shards_in(tmp_path, local) == len(SHARDS)
