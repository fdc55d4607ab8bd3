"""An ingest under its real driver, which is killed in the middle: what was finished is not done again."""

from pathlib import Path

import psutil
import pytest

from resforge.jobs import DatasetInfo
from resforge.spec import IngestSpec
from resforge.storage import JobDocument, JobPrefix, Stream
from tests.s3 import S3Server
from tests.services.local.waiting import gone, until
from tests.trainer.ingest.photographs import photograph, write
from tests.trainer.test_single import Driver, drivers
from trainer.data.shards import MANIFEST, read_manifest

__all__ = ["drivers"]  # a fixture

pytestmark = pytest.mark.stack

FOLDER = "demo/datasets/pets/job-killed/"


def test_a_killed_driver_is_followed_by_one_that_goes_on(
    s3: S3Server, drivers: list[Driver], tmp_path: Path
) -> None:  # fmt: skip
    files = {f"train/c{number % 3}/{number}.jpg": photograph(number, (640, 480)) for number in range(120)}
    source = write(tmp_path / "in", files)
    size = len(next(iter(files.values())))
    spec = IngestSpec(dataset="pets", source=str(source), image_size=32, shorter_side=64, shard_bytes=2 * size)
    prefix, store = JobPrefix.of("demo", "job-killed"), s3.store()
    to_be = DatasetInfo(name="pets", format="shards", channels=3, classes=2, image_size=32)
    store.put(prefix.spec, JobDocument(job="job-killed", project="demo", spec=spec, dataset=to_be).to_bytes())

    def records() -> list[str]:
        return [item.key for item in store.list_objects(f"{FOLDER}ingest/")]

    first = Driver(s3, prefix, 1, tmp_path / "scratch")
    drivers.append(first)
    until(lambda: len(records()) >= 3, within_s=60, what="three shards")
    workers = psutil.Process(first.process.pid).children()
    first.process.kill()
    first.process.wait()
    until(lambda: all(gone(worker.pid) for worker in workers), within_s=20, what="the worker's end")
    assert store.find(FOLDER + MANIFEST) is None
    finished = records()
    tars = [s3.file(key.replace("ingest/", "").replace(".json", ".tar")) for key in finished]
    written = [path.stat().st_mtime_ns for path in tars]

    second = Driver(s3, prefix, 2, tmp_path / "scratch")
    drivers.append(second)
    result = second.result()
    assert (result.outcome, result.step) == ("succeeded", 60), result.message
    assert [path.stat().st_mtime_ns for path in tars] == written
    assert f'"done": {len(finished)}' in second.lines(Stream.EVENTS)
    assert read_manifest(store.get(FOLDER + MANIFEST), "here").images("train") == 120
    assert len(finished) < 60
