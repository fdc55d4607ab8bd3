"""A run that was killed ends with weights identical to the last bit to one that was not."""

import random
from pathlib import Path

import pytest

from resforge.metrics import POINT
from resforge.spec import TrainSpec
from resforge.storage import (
    TRAINER_STATE,
    WEIGHTS,
    JobPrefix,
    Stream,
    latest,
    list_checkpoints,
    read_stream,
)
from tests.s3 import S3Server
from tests.trainer.gang import Kill, run_gang, write_job

pytestmark = pytest.mark.stack

STEPS = 30


def small_spec(workers: int, **changes: object) -> TrainSpec:
    """A job of some seconds; 14 steps an epoch, so that checkpoints every 5 steps fall in the middle of epochs."""
    return TrainSpec.model_validate(
        {
            "model": {"family": "cifar", "depth": 8, "width": 8},
            "data": {"dataset": "digits", "augment": {"pad": 1}, "train_limit": 448},
            "optim": {"lr": 0.1, "schedule": {"kind": "cosine", "warmup_steps": 3}},
            "training": {"global_batch": 32, "steps": STEPS, "log_every_steps": 1, "seed": 7},
            "scaling": {"workers": workers},
            "checkpoint": {"every_steps": 5, "every_epochs": 1, "keep_last": 3},
            **changes,
        }
    )


def _weights(s3: S3Server, prefix: JobPrefix, attempts: list[int]) -> str:
    checkpoint = latest(list_checkpoints(s3.store(), prefix, attempts))
    assert checkpoint is not None
    assert checkpoint.manifest.step == STEPS
    assert checkpoint.manifest.final
    return next(part.sha256 for part in checkpoint.manifest.parts if part.name == WEIGHTS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def uninterrupted(s3: S3Server, cache: Path) -> dict[int, str]:
    """The SHA-256 of the weights of runs that nobody killed, by their number of workers."""
    weights = {}
    for workers in (2, 4):
        prefix = write_job(s3.store(), small_spec(workers), f"whole-{workers}")
        result = run_gang(s3, prefix, 1, workers, cache=cache)
        assert result is not None
        assert (result.outcome, result.step) == ("succeeded", STEPS)
        weights[workers] = _weights(s3, prefix, [1])
    return weights


@pytest.mark.parametrize("workers", [2, 4])
def test_killed_at_random_steps_it_ends_with_the_same_bits(
    s3: S3Server, cache: Path, uninterrupted: dict[int, str], workers: int
) -> None:
    dice = random.Random()
    seed = dice.randrange(2**32)
    print(f"to see this run again: random.Random({seed})")
    dice.seed(seed)
    first, second = sorted(dice.sample(range(2, STEPS - 1), 2))
    prefix = write_job(s3.store(), small_spec(workers), f"killed-{workers}")

    # A dead worker: the same attempt goes on with new workers.
    assert run_gang(s3, prefix, 1, workers, cache=cache, kill=Kill(dice.randrange(workers), first)) is None
    # A dead driver: another attempt takes over from what the first left.
    assert run_gang(s3, prefix, 1, workers, cache=cache, kill=Kill(dice.randrange(workers), second)) is None
    result = run_gang(s3, prefix, 2, workers, cache=cache, resume_from=[1])

    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    assert _weights(s3, prefix, [1, 2]) == uninterrupted[workers], f"kills after steps {first} and {second}"
    # Nothing of its history was lost either: what was reported before a checkpoint is written before it.
    points = [POINT.validate_json(line) for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [1, 2])]
    assert {point.step for point in points if point.kind == "train"} == set(range(1, STEPS + 1))


def test_damaged_checkpoints_are_passed_over_for_the_one_before(
    s3: S3Server, cache: Path, uninterrupted: dict[int, str]
) -> None:
    store = s3.store()
    prefix = write_job(store, small_spec(2), "damaged")
    assert run_gang(s3, prefix, 1, 2, cache=cache, kill=Kill(1, 22)) is None
    found = list_checkpoints(store, prefix, [1])
    assert len(found) >= 3
    newest, older = found[-1], found[-2]
    weights = store.get(newest.key + WEIGHTS)
    middle = len(weights) // 2
    store.put(newest.key + WEIGHTS, weights[:middle] + bytes([weights[middle] ^ 1]) + weights[middle + 1 :])
    state = store.get(older.key + TRAINER_STATE)
    store.put(older.key + TRAINER_STATE, state[:-100])

    result = run_gang(s3, prefix, 2, 2, cache=cache, resume_from=[1])

    assert result is not None
    assert result.outcome == "succeeded"
    assert _weights(s3, prefix, [2]) == uninterrupted[2]
    told = [line.decode() for _, line in read_stream(store, prefix, Stream.EVENTS, [2])]
    assert sum("CheckpointDamaged" in line for line in told) == 2
    assert any("Resumed" in line and f'"step": {found[-3].manifest.step}' in line for line in told)


def test_what_the_controller_did_not_name_is_not_resumed(s3: S3Server, cache: Path) -> None:
    prefix = write_job(s3.store(), small_spec(2), "unnamed")
    assert run_gang(s3, prefix, 1, 2, cache=cache, kill=Kill(0, 12)) is None
    result = run_gang(s3, prefix, 2, 2, cache=cache, resume_from=[])
    assert result is not None
    lines = [line for _, line in read_stream(s3.store(), prefix, Stream.EVENTS, [2])]
    assert not any(b"Resumed" in line for line in lines)
