"""What real workers export, and that it says what it is defined to say."""

import json
from typing import Any

import pytest

from resforge import metrics
from resforge.metrics import POINT, TrainPoint
from resforge.storage import JobPrefix, Stream, read_stream
from tests.s3 import S3Server
from tests.trainer.gang import run_gang, write_job
from tests.trainer.test_resume import STEPS, small_spec

pytestmark = pytest.mark.stack

WORKERS = 2
BY_NAME = {metric.name: metric for metric in metrics.TRAINER_METRICS}


@pytest.fixture(scope="module")
def prefix(s3: S3Server) -> JobPrefix:
    spec = small_spec(WORKERS, checkpoint={"every_steps": 1, "every_epochs": 1, "keep_last": 2})
    return write_job(s3.store(), spec, "told")


@pytest.fixture(scope="module")
def exported(s3: S3Server, prefix: JobPrefix, tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each rank exported, in order, of a run that writes a checkpoint at each step."""
    folder = tmp_path_factory.mktemp("exports")
    result = run_gang(s3, prefix, 1, WORKERS, cache=folder, exports=folder)
    assert result is not None
    assert result.outcome == "succeeded"
    return [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(WORKERS)]


def test_rank_0_tells_all_that_a_cpu_has_and_the_others_what_is_theirs(exported: list[list[dict[str, Any]]]) -> None:
    told = [{name for export in exports for name in export["values"]} for exports in exported]
    of_workers = {metrics.WORKER_IMAGES_PER_SECOND.name, metrics.WORKER_SECONDS.name}
    assert told[0] == set(BY_NAME) - {metric.name for metric in metrics.GPU_METRICS}
    assert told[1] == of_workers


def test_every_value_comes_with_the_labels_of_its_metric(exported: list[list[dict[str, Any]]]) -> None:
    for export in (export for exports in exported for export in exports):
        for name in export["values"]:
            assert set(BY_NAME[name].labels) - {"job_id", "attempt", "rank"} == set(export["labels"]), name
    [info] = [export["labels"] for export in exported[0] if metrics.JOB_INFO.name in export["values"]]
    assert info == {"project": "default", "model": "cifar/resnet-8", "dataset": "digits"}


def test_a_workers_time_only_grows_and_is_told_about_once_a_second(exported: list[list[dict[str, Any]]]) -> None:
    for exports in exported:
        for phase in metrics.PHASES:
            told = [export for export in exports if export["labels"] == {"phase": phase}]
            seconds = [export["values"][metrics.WORKER_SECONDS.name] for export in told]
            assert seconds
            assert seconds == sorted(seconds)
            assert len(told) <= 2 + told[-1]["at"] - told[0]["at"]


def test_time_for_checkpoints_is_not_told_as_waiting_for_data(
    s3: S3Server, prefix: JobPrefix, exported: list[list[dict[str, Any]]]
) -> None:
    points = [POINT.validate_json(line) for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [1])]
    training = [point for point in points if isinstance(point, TrainPoint)]
    assert len(training) == STEPS
    events = [json.loads(line) for _, line in read_stream(s3.store(), prefix, Stream.EVENTS, [1])]
    checkpoints = [event["data"]["seconds"] for event in events if event["type"] == "CheckpointCommitted"]
    # The images are in memory, so a batch is there at once, and a checkpoint is several requests, for which the next
    # one waits; those for the last two come behind the last report.
    waited = sum(point.data_wait_s for point in training[1:])
    assert waited < sum(checkpoints) / 2
    assert sum(point.step_time_s for point in training) > sum(checkpoints[:-2])
