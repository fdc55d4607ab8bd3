"""Trainings that begin with another job's weights, and what a worker evaluates besides the test images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resforge.jobs import DatasetInfo
from resforge.metrics import POINT, EvalPoint
from resforge.spec import TrainSpec
from resforge.storage import JobDocument, JobPrefix, Stream, latest, list_checkpoints, read_stream
from tests.s3 import S3Server
from tests.trainer.gang import DIGITS, Kill, run_gang, write_job
from tests.trainer.test_resume import small_spec
from trainer.checkpoints import Snapshot, read_checkpoint
from trainer.data.loader import eval_loader
from trainer.data.splits import open_split
from trainer.evaluate import EvalTotals, evaluate
from trainer.initial import initial_network
from trainer.sources import Source, open_source

pytestmark = pytest.mark.stack

SOURCE = "job-sourcesource"
FOUR = DatasetInfo(
    name="synthetic", format="synthetic", channels=1, classes=4, image_size=8, train_images=160, test_images=80
)
# So small that no weight moves: what is trained is what was begun with.
STILL = {"lr": 1e-30, "weight_decay": 0, "schedule": {"kind": "constant"}}


def spec(**changes: Any) -> TrainSpec:
    training = {"global_batch": 32, "steps": 10, "log_every_steps": 1, "seed": 7, **changes.pop("training", {})}
    return small_spec(1, **{"data": {"dataset": "digits", "train_limit": 160}, "training": training, **changes})


def begun_with(take: str, *, freeze: bool = False, job: str = SOURCE, which: Any = "latest") -> dict[str, Any]:
    return {"checkpoint": {"job": job, "which": which}, "take": take, "freeze": freeze}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(s3: S3Server, cache: Path) -> Source:
    """A trained network of 8 layers, of a job that held images back and evaluated its training images at the end."""
    data = {"dataset": "digits", "train_limit": 160, "validation": 100}
    prefix = write_job(s3.store(), spec(data=data, training={"evaluate_train": True}), SOURCE)
    result = run_gang(s3, prefix, 1, 1, cache=cache)
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", 10)
    job = spec(init=begun_with("all")).init
    assert job is not None
    return open_source(s3.store(), "default", job.checkpoint)


def snapshot(s3: S3Server, prefix: JobPrefix) -> Snapshot:
    checkpoint = latest(list_checkpoints(s3.store(), prefix, [1]))
    assert checkpoint is not None
    return read_checkpoint(s3.store(), checkpoint)


def trained(s3: S3Server, cache: Path, spec: TrainSpec, job: str, dataset: DatasetInfo = DIGITS) -> dict[str, Any]:
    prefix = write_job(s3.store(), spec, job, dataset)
    result = run_gang(s3, prefix, 1, 1, cache=cache)
    assert result is not None
    assert result.outcome == "succeeded", result.message
    return snapshot(s3, prefix).weights


def test_held_back_images_and_at_the_end_the_training_images_are_evaluated(s3: S3Server, source: Source) -> None:
    lines = read_stream(s3.store(), JobPrefix.of("default", SOURCE), Stream.METRICS, [1])
    points = [point for _, line in lines if isinstance(point := POINT.validate_json(line), EvalPoint)]
    assert [(p.step, p.split, p.images) for p in points] == [
        (5, "validation", 100), (10, "train", 160), (10, "validation", 100)
    ]  # fmt: skip
    assert source.manifest.evaluation == points[-1], "the newest evaluation is the held-out one"

    def seen(split: str) -> EvalTotals:
        loader = eval_loader(open_split(source.job, split), batch=256)
        return evaluate(source.network, loader, source.normalisation.normalise, torch.device("cpu"))

    for point in points[1:]:
        assert point.top1 == seen(point.split).correct1 / point.images


def test_every_weight_is_taken(s3: S3Server, cache: Path, source: Source) -> None:
    weights = trained(s3, cache, spec(init=begun_with("all"), optim=STILL), "all")
    for name, parameter in source.network.named_parameters():
        assert torch.equal(weights[name], parameter)
    # Batch norm is not frozen with them.
    assert not torch.equal(weights["bn1.running_mean"], source.network.state_dict()["bn1.running_mean"])


def test_a_deeper_network_begins_with_a_shallower_ones_weights(s3: S3Server, cache: Path, source: Source) -> None:
    deeper = spec(init=begun_with("grow"), optim=STILL, model={"family": "cifar", "depth": 14, "width": 8})
    weights = trained(s3, cache, deeper, "grown")
    job = JobDocument(job="grown", project="default", spec=deeper, dataset=DIGITS)
    for name, parameter in initial_network(job, s3.store()).named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-20)
    for name, parameter in source.network.named_parameters():
        assert torch.equal(weights[name], parameter)
    assert weights["layer1.1.bn2.weight"].abs().max() < 1e-20, "an added block begins as an identity"


def test_a_frozen_backbone_stays_as_it_was_also_when_its_source_has_gone(
    s3: S3Server, cache: Path, source: Source
) -> None:
    """A classifier for other classes is trained alone; a resumed run needs the job that it began with no more."""
    store, copy = s3.store(), "job-copycopycopy"
    old = JobPrefix.of("default", SOURCE)
    for item in store.list_objects(old.key):
        store.put(item.key.replace(SOURCE, copy), store.get(item.key))
    frozen = spec(
        init=begun_with("backbone", freeze=True, job=copy), data={"dataset": "synthetic"},
        training={"steps": 20}, checkpoint={"every_steps": 5},
    )  # fmt: skip
    prefix = write_job(store, frozen, "frozen", FOUR)
    # Behind the second checkpoint, which waits for the first.
    assert run_gang(s3, prefix, 1, 1, cache=cache, kill=Kill(0, 11)) is None
    store.delete_prefix(JobPrefix.of("default", copy).key)
    result = run_gang(s3, prefix, 1, 1, cache=cache)
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", 20)

    weights = snapshot(s3, prefix).weights
    assert weights["fc.weight"].shape == (4, 32)
    for name, tensor in source.network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(weights[name], tensor), name
    losses = [p.loss for _, line in read_stream(store, prefix, Stream.METRICS, [1])
              if (p := POINT.validate_json(line)).kind == "train"]  # fmt: skip
    assert losses[-1] < losses[0], "the classifier learns"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"init": begun_with("all", job="job-nosuchjobaaa")}, "has left nothing in object storage"),
        ({"init": begun_with("all", which=7)}, "has no checkpoint 7; there are those of 5, 10"),
        ({"init": begun_with("all"), "model": {"family": "cifar", "depth": 14, "width": 8}}, "can't be taken"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_told(
    s3: S3Server, cache: Path, source: Source, changes: dict[str, Any], told: str
) -> None:
    prefix = write_job(s3.store(), spec(**changes), f"absent-{len(told)}")
    result = run_gang(s3, prefix, 1, 1, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "SourceUnavailable")
    assert told in result.message
