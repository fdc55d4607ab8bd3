"""Appending to streams: nothing is lost or doubled, whatever the store does, and a successor goes on behind."""

import json
import threading
from pathlib import Path

import pytest

from resforge.s3 import StorageUnavailable
from resforge.storage import Heartbeat, JobPrefix, Stream, read_stream
from tests.s3 import S3Server, start_s3
from trainer.streams import ROLL_BYTES, Shipper

pytestmark = pytest.mark.stack


def _numbers(s3: S3Server, prefix: JobPrefix) -> list[int]:
    return [json.loads(line)["n"] for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [1])]


def test_a_second_writer_goes_on_behind_the_first(s3: S3Server) -> None:
    prefix = JobPrefix.of("p", "successor")
    for start in (0, 10):
        with Shipper(s3.store(), prefix.attempt(1)) as shipper:
            for n in range(start, start + 10):
                shipper.append(Stream.METRICS, {"n": n})
    assert _numbers(s3, prefix) == list(range(20))
    keys = [item.key for item in s3.store().list_objects(prefix.attempt(1).stream(Stream.METRICS))]
    assert keys == [prefix.attempt(1).stream_part(Stream.METRICS, part) for part in range(1, len(keys) + 1)]


def test_much_at_once_is_rolled_by_size(s3: S3Server) -> None:
    prefix = JobPrefix.of("p", "much")
    with Shipper(s3.store(), prefix.attempt(1)) as shipper:
        for n in range(3000):
            shipper.append(Stream.METRICS, {"n": n, "filler": "x" * 100})
    assert _numbers(s3, prefix) == list(range(3000))
    sizes = [item.size for item in s3.store().list_objects(prefix.attempt(1).stream(Stream.METRICS))]
    assert sum(sizes) > 3 * ROLL_BYTES


def test_a_store_that_goes_away_delays_lines_and_loses_none(tmp_path: Path) -> None:
    s3 = start_s3(tmp_path)
    try:
        prefix = JobPrefix.of("p", "away")
        failed = threading.Event()
        store = s3.store(timeout_s=1, attempts=1)

        def notice(_: Shipper) -> None:
            try:
                store.check()
            except StorageUnavailable:
                failed.set()

        with Shipper(store, prefix.attempt(1), every=notice) as shipper:
            shipper.append(Stream.METRICS, {"n": 0})
            s3.stop()
            shipper.append(Stream.METRICS, {"n": 1})
            assert failed.wait(30)
            shipper.append(Stream.METRICS, {"n": 2})
            s3.start()
        assert _numbers(s3, prefix) == [0, 1, 2]
    finally:
        s3.stop()


def test_what_is_added_each_second_is_written(s3: S3Server) -> None:
    prefix = JobPrefix.of("p", "beats").attempt(1)
    beats = 0
    twice = threading.Event()

    def beat(shipper: Shipper) -> None:
        nonlocal beats
        beats += 1
        shipper.document(
            prefix.heartbeat, Heartbeat.model_validate({"at": "2026-01-01T00:00:00Z", "beat": beats, "every_s": 1})
        )
        if beats == 2:
            twice.set()

    with Shipper(s3.store(), prefix, every=beat):
        assert twice.wait(30)
    assert Heartbeat.model_validate_json(s3.store().get(prefix.heartbeat)).beat == beats
