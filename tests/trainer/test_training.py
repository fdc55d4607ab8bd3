"""Trainings beyond the paper's plain one: killed and resumed, each ends with the bits of one that nobody killed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resforge.jobs import DatasetInfo
from resforge.metrics import POINT, EvalPoint, TrainPoint
from resforge.spec import TrainSpec
from resforge.storage import WEIGHTS, JobPrefix, Result, Stream, best, latest, list_checkpoints, read_stream
from tests.s3 import S3Server
from tests.trainer.gang import DIGITS, Kill, run_gang, write_job
from tests.trainer.test_resume import STEPS, small_spec
from trainer.checkpoints import Snapshot, read_checkpoint
from trainer.data.loader import eval_loader
from trainer.data.sets import open_dataset
from trainer.data.transforms import Normalisation
from trainer.evaluate import evaluate
from trainer.schedule import ScheduleState
from trainer.sources import network_of

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def last(s3: S3Server, prefix: JobPrefix) -> Snapshot:
    checkpoint = latest(list_checkpoints(s3.store(), prefix, [1, 2]))
    assert checkpoint is not None
    assert checkpoint.manifest.final
    return read_checkpoint(s3.store(), checkpoint)


def points(s3: S3Server, prefix: JobPrefix) -> list[TrainPoint | EvalPoint]:
    """What was reported, the newest of each step."""
    lines = read_stream(s3.store(), prefix, Stream.METRICS, [1, 2])
    found = [POINT.validate_json(line) for _, line in lines]
    return list({(p.kind, p.step, p.split if p.kind == "eval" else ""): p for p in found}.values())


def events(s3: S3Server, prefix: JobPrefix, type: str) -> list[str]:
    lines = [line.decode() for _, line in read_stream(s3.store(), prefix, Stream.EVENTS, [1, 2])]
    return [line for line in lines if f'"{type}"' in line]


def train(
    s3: S3Server, cache: Path, spec: TrainSpec, job: str, dataset: DatasetInfo = DIGITS
) -> tuple[JobPrefix, Result]:
    """Train to the end, with nobody killed."""
    prefix = write_job(s3.store(), spec, job, dataset)
    result = run_gang(s3, prefix, 1, spec.scaling.workers, cache=cache)
    assert result is not None
    assert result.outcome == "succeeded", result.message
    return prefix, result


def train_killed_twice(
    s3: S3Server, cache: Path, spec: TrainSpec, job: str, dataset: DatasetInfo = DIGITS
) -> JobPrefix:
    """Train to the end, with a worker lost behind step 8, and the driver as well behind step 24."""
    prefix = write_job(s3.store(), spec, job, dataset)
    workers = spec.scaling.workers
    assert run_gang(s3, prefix, 1, workers, cache=cache, kill=Kill(1, 8)) is None
    assert run_gang(s3, prefix, 1, workers, cache=cache, kill=Kill(0, 24)) is None
    result = run_gang(s3, prefix, 2, workers, cache=cache, resume_from=[1])
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    return prefix


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def told(s3: S3Server, prefix: JobPrefix) -> list[tuple[Any, ...]]:
    """Steps, rates and accuracies that were reported, without the clock's readings."""
    return sorted((p.kind, p.step, p.loss, p.top1, p.lr if p.kind == "train" else 0) for p in points(s3, prefix))


def test_what_a_schedule_has_seen_survives_a_kill(s3: S3Server, cache: Path) -> None:
    """A warm-up until the error has fallen, and cuts on a plateau: kills fall into both."""
    schedule = {
        "kind": "plateau", "patience": 1, "threshold": 0.9, "gamma": 0.5,
        "warmup_lr": 0.02, "warmup_until_error": 0.88,
    }  # fmt: skip
    training = {"global_batch": 32, "steps": STEPS, "log_every_steps": 1, "seed": 7}
    data = {"dataset": "digits", "train_limit": 160}  # 5 steps an epoch
    spec = small_spec(2, data=data, optim={"lr": 0.1, "schedule": schedule}, training=training)
    whole, _ = train(s3, cache, spec, "schedule-whole")
    killed = train_killed_twice(s3, cache, spec, "schedule-killed")

    before, after = last(s3, whole), last(s3, killed)
    assert same(before.weights, after.weights)
    assert before.schedule == after.schedule
    assert told(s3, whole) == told(s3, killed)
    warm_at = before.schedule.warm_at
    assert warm_at in (10, 20), "the error of ten steps fell below 0.88"
    rates = {p.step: p.lr for p in points(s3, whole) if p.kind == "train"}
    assert {rates[step] for step in range(1, warm_at + 1)} == {0.02}
    assert rates[warm_at + 1] == 0.1
    # The evaluation at the warm-up's end counts as the first lower error, and each that follows cuts.
    evaluations = [p for p in points(s3, whole) if p.kind == "eval"]
    assert before.schedule == ScheduleState(
        warm_at=warm_at,
        best_error=1 - next(p.top1 for p in evaluations if p.step == warm_at),
        cuts=(STEPS - warm_at) // 5,
    )
    assert rates[STEPS] == 0.1 * 0.5 ** (before.schedule.cuts - 1)
    assert len(events(s3, whole, "WarmUpEnded")) == 1
    assert len(events(s3, whole, "LearningRateCut")) == before.schedule.cuts


# Of 16 pixels, since the digits' 8 are the least already.
SYNTHETIC = DatasetInfo(
    name="synthetic", format="synthetic", channels=3, classes=4, image_size=16, train_images=160, test_images=80
)
MODERN: dict[str, Any] = {
    # Stochastic depth draws from torch's own random state in each forward pass.
    "model": {"family": "cifar", "depth": 8, "width": 8, "survival": 0.7},
    "data": {"dataset": "synthetic", "augment": {"pad": 2, "flip": True, "colour": 0.1}},
    "optim": {
        "lr": 0.05, "lr_batch": 16, "nesterov": True, "decay_norm_and_bias": False,
        "schedule": {"kind": "cosine", "warmup_epochs": 0.6},
    },
    "regularisation": {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1, "ema": 0.99},
    "training": {"global_batch": 32, "steps": STEPS, "log_every_steps": 1, "seed": 7, "progressive_from": 8},
}  # fmt: skip


def test_a_modern_recipe_survives_a_kill(s3: S3Server, cache: Path) -> None:
    """Mixed, growing and colour-shifted images, blocks that drop out, an average of the weights, and two groups of
    parameters."""
    spec = small_spec(2, **MODERN)
    whole, result = train(s3, cache, spec, "modern-whole", SYNTHETIC)
    killed = train_killed_twice(s3, cache, spec, "modern-killed", SYNTHETIC)

    before, after = last(s3, whole), last(s3, killed)
    assert same(before.weights, after.weights)
    assert before.averaged is not None
    assert after.averaged is not None
    assert same(before.averaged, after.averaged)
    assert told(s3, whole) == told(s3, killed)
    rates = {p.step: p.lr for p in points(s3, whole) if p.kind == "train"}
    assert [rates[step] for step in (1, 2, 3, 4)] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])

    # What was evaluated is the average, and it is what a checkpoint gives to others.
    top = best(list_checkpoints(s3.store(), whole, [1]))
    assert top is not None
    assert top.manifest.evaluation == result.evaluation
    assert result.evaluation is not None
    network = network_of(top.manifest, s3.store().get(top.key + WEIGHTS))
    images = open_dataset(SYNTHETIC, "test")
    normalisation = Normalisation.from_state(before.inputs)
    totals = evaluate(network, eval_loader(images, batch=256), normalisation.normalise, torch.device("cpu"))
    assert totals.correct1 / totals.images == result.evaluation.top1
    assert not any(torch.equal(before.weights[name], before.averaged[name]) for name in ("conv1.weight", "fc.bias"))
    assert torch.equal(before.weights["bn1.running_mean"], before.averaged["bn1.running_mean"])


def test_images_too_small_to_begin_with_are_told(s3: S3Server, cache: Path) -> None:
    training = {**MODERN["training"], "progressive_from": 20}
    prefix = write_job(s3.store(), small_spec(2, **{**MODERN, "training": training}), "too-small", SYNTHETIC)
    result = run_gang(s3, prefix, 1, 2, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "InvalidData")
    assert "begins at 20 pixels, and the network's input has 16" in result.message
