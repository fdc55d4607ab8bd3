"""ResNet-50 on photographs from shards in S3, whose number of workers changes in the middle of an epoch.

With the same workers it goes on to the same bits: tests/e2e/test_ingest.py.
"""

import random
from pathlib import Path

import pytest

from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from resforge.storage import MANIFEST, JobPrefix, Stream, latest, list_checkpoints, read_stream
from tests.s3 import S3Server
from tests.trainer.data.photos import write_shards
from tests.trainer.gang import Kill, run_gang, write_job

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

STEPS = 12  # of 9 an epoch


def spec(workers: int) -> TrainSpec:
    return TrainSpec.model_validate(
        {
            "model": {"family": "imagenet", "depth": 50},
            "data": {"dataset": "photos", "augment": {"flip": True, "scale": [36, 60]}, "mean": "channel"},
            "optim": {"lr": 0.01},
            "training": {"global_batch": 16, "steps": STEPS, "log_every_steps": 1, "seed": 7},
            "scaling": {"workers": workers},
            "checkpoint": {"every_steps": 4, "every_epochs": None, "keep_last": 9},
        }
    )


@pytest.fixture(scope="module")
def photos(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    folder = tmp_path_factory.mktemp("shards")
    info = write_shards(folder, train=150, test=16)
    store = s3.store()
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload(f"photos/{path.relative_to(folder).as_posix()}", path)
    return info.model_copy(update={"location": store.uri("photos")})


def steps(s3: S3Server, prefix: JobPrefix, attempt: int) -> int:
    return sum(b'"kind":"train"' in line for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [attempt]))


def test_killed_in_the_middle_of_an_epoch_other_workers_go_on_with_the_images_that_are_left(
    s3: S3Server, photos: DatasetInfo, tmp_path: Path
) -> None:
    moment = random.SystemRandom().randrange(5, 8)  # behind a checkpoint, and before the epoch's end
    print(f"killed at step {moment}")
    prefix = write_job(s3.store(), spec(2), "photos", photos)
    committed = s3.file(prefix.attempt(1).checkpoint(4) + MANIFEST)
    assert run_gang(s3, prefix, 1, 2, cache=tmp_path, kill=Kill(1, moment, committed), timeout_s=300) is None
    resumed = latest(list_checkpoints(s3.store(), prefix, [1]))
    assert resumed is not None
    assert resumed.manifest.step == 4
    result = run_gang(s3, prefix, 2, 4, cache=tmp_path, resume_from=[1], timeout_s=300)
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    # That these are the images of the steps left, none lost and none twice, is in tests/trainer/data/test_order.py.
    assert steps(s3, prefix, 2) == STEPS - 4
