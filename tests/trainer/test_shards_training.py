"""ResNet-50 on photographs from shards in S3: killed in the middle of an epoch it goes on to the same bits, and with
another number of workers to the same images.
"""

import random
from pathlib import Path

import pytest

from resforge.jobs import DatasetInfo
from resforge.spec import TrainSpec
from resforge.storage import WEIGHTS, JobPrefix, Stream, latest, list_checkpoints, read_stream
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


def weights(s3: S3Server, prefix: JobPrefix, attempts: list[int]) -> str:
    checkpoint = latest(list_checkpoints(s3.store(), prefix, attempts))
    assert checkpoint is not None
    assert (checkpoint.manifest.step, checkpoint.manifest.final) == (STEPS, True)
    return next(part.sha256 for part in checkpoint.manifest.parts if part.name == WEIGHTS)


def steps(s3: S3Server, prefix: JobPrefix, attempt: int) -> int:
    return sum(b'"kind":"train"' in line for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [attempt]))


def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_bits_and_other_workers_go_on_too(
    s3: S3Server, photos: DatasetInfo, tmp_path: Path
) -> None:
    whole = write_job(s3.store(), spec(2), "photos-whole", photos)
    result = run_gang(s3, whole, 1, 2, cache=tmp_path / "first", timeout_s=300)
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    moment = random.SystemRandom().randrange(5, 8)  # behind a checkpoint, and before the epoch's end
    print(f"killed at step {moment}")
    killed = write_job(s3.store(), spec(2), "photos-killed", photos)
    assert run_gang(s3, killed, 1, 2, cache=tmp_path / "second", kill=Kill(1, moment), timeout_s=300) is None
    resumed = latest(list_checkpoints(s3.store(), killed, [1]))
    assert resumed is not None
    assert resumed.manifest.step == 4
    for attempt, workers in ((2, 2), (3, 4)):
        result = run_gang(s3, killed, attempt, workers, cache=tmp_path / "second", resume_from=[1], timeout_s=300)
        assert result is not None
        assert (result.outcome, result.step) == ("succeeded", STEPS)
        assert steps(s3, killed, attempt) == STEPS - 4
    assert weights(s3, killed, [2]) == weights(s3, whole, [1])
