"""Checkpoints are written behind the training's back: what a slow or absent store, a kill and a bug make of that."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from resforge import metrics
from resforge.metrics import POINT
from resforge.storage import (
    MANIFEST,
    WEIGHTS,
    JobDocument,
    JobPrefix,
    Stream,
    latest,
    list_checkpoints,
    read_stream,
)
from tests.gate import Gate, gate_before
from tests.s3 import S3Server
from tests.services.local.waiting import until
from tests.trainer.gang import DIGITS, Kill, run_gang, write_job
from tests.trainer.test_checkpoints import _moment, _snapshot
from tests.trainer.test_resume import STEPS, small_spec
from trainer.run import Run
from trainer.writer import Writer

pytestmark = pytest.mark.stack

WORKERS = 2
SLOW_S = 1.5  # longer than a worker's exports are apart


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def gate(s3: S3Server) -> Iterator[Gate]:
    with gate_before(s3) as found:
        yield found


def _job(s3: S3Server, job: str) -> JobPrefix:
    return write_job(s3.store(), small_spec(WORKERS, checkpoint={"every_steps": 10, "every_epochs": None}), job)


@pytest.fixture(scope="module")
def undisturbed(s3: S3Server, cache: Path) -> str:
    """The SHA-256 of the weights that the job ends with."""
    prefix = _job(s3, "undisturbed")
    result = run_gang(s3, prefix, 1, WORKERS, cache=cache)
    assert result is not None
    return _weights(s3, prefix, [1])


def _weights(s3: S3Server, prefix: JobPrefix, attempts: list[int]) -> str:
    last = latest(list_checkpoints(s3.store(), prefix, attempts))
    assert last is not None
    assert last.manifest.step == STEPS
    return next(part.sha256 for part in last.manifest.parts if part.name == WEIGHTS)


def _exported(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 has exported so far. The last line may be in the making."""
    path = folder / "0"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _told_at(folder: Path) -> dict[int, float]:
    """When each step was reported, by the clock that all processes share."""
    name = metrics.STEP.name
    return {int(line["values"][name]): line["at"] for line in _exported(folder) if name in line["values"]}


def _events(s3: S3Server, prefix: JobPrefix, type: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for _, line in read_stream(s3.store(), prefix, Stream.EVENTS, [1, 2])]
    return [line for line in lines if line["type"] == type]


def _steps(s3: S3Server, prefix: JobPrefix, attempt: int) -> list[int]:
    """The steps that an attempt reported, in order."""
    points = [POINT.validate_json(line) for _, line in read_stream(s3.store(), prefix, Stream.METRICS, [attempt])]
    return [point.step for point in points if point.kind == "train"]


def test_a_slow_store_holds_steps_up_only_when_the_next_checkpoint_is_due(
    s3: S3Server, gate: Gate, cache: Path, tmp_path: Path, undisturbed: str
) -> None:
    prefix = _job(s3, "slow")
    slow = gate.hold(f"checkpoints/{10:010d}/")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_gang, gate.s3, prefix, 1, WORKERS, cache=cache, exports=tmp_path)
        until(lambda: 20 in _told_at(tmp_path), within_s=60, what="ten more steps while a checkpoint is being written")
        threading.Event().wait(SLOW_S)
        assert list_checkpoints(s3.store(), prefix, [1]) == []
        released = time.monotonic()
        slow.release()
        result = running.result()

    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    assert _weights(s3, prefix, [1]) == undisturbed  # a copy of step 10 is what was written, whatever came behind it
    told = _told_at(tmp_path)
    assert told[20] < released < told[21]
    assert [event["data"]["step"] for event in _events(s3, prefix, "CheckpointCommitted")] == [10, 20, 30]
    # That it stood still is told as what it was.
    blocked = [line for line in _exported(tmp_path) if line["labels"] == {"phase": "checkpoint"}]
    before = max(line["values"][metrics.WORKER_SECONDS.name] for line in blocked if line["at"] < released)
    after = max(line["values"][metrics.WORKER_SECONDS.name] for line in blocked)
    assert after - before > SLOW_S / 2


def test_what_the_store_refuses_is_passed_over(
    s3: S3Server, gate: Gate, cache: Path, tmp_path: Path, undisturbed: str
) -> None:
    prefix = _job(s3, "refused")
    away = gate.refuse(f"checkpoints/{10:010d}/")
    result = run_gang(gate.s3, prefix, 1, WORKERS, cache=cache, exports=tmp_path)
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    assert away.arrived
    assert _weights(s3, prefix, [1]) == undisturbed
    assert [event["data"]["step"] for event in _events(s3, prefix, "CheckpointFailed")] == [10]
    assert [event["data"]["step"] for event in _events(s3, prefix, "CheckpointCommitted")] == [20, 30]
    for metric, last in ((metrics.CHECKPOINT_FAILURES, 1.0), (metrics.CHECKPOINTS, 2.0)):
        told = [line["values"][metric.name] for line in _exported(tmp_path) if metric.name in line["values"]]
        assert told[-1] == last


def test_the_last_checkpoint_is_waited_for_and_its_failure_ends_the_attempt(
    s3: S3Server, gate: Gate, cache: Path
) -> None:
    prefix = _job(s3, "last")
    gate.refuse(f"checkpoints/{STEPS:010d}/")
    result = run_gang(gate.s3, prefix, 1, WORKERS, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "CheckpointUploadFailed")
    assert f"step {STEPS}" in result.message
    kept = latest(list_checkpoints(s3.store(), prefix, [1]))
    assert kept is not None
    assert kept.manifest.step == 20


def test_a_run_that_fails_finishes_the_checkpoint_in_hand(s3: S3Server, gate: Gate, cache: Path) -> None:
    # Weight decay times the rate is 1000, behind a quiet start: weights grow a thousandfold each step.
    optim = {"lr": 1000, "weight_decay": 1, "schedule": {"kind": "constant", "warmup_steps": 10, "warmup_lr": 0.01}}
    spec = small_spec(WORKERS, optim=optim, checkpoint={"every_steps": 10, "every_epochs": None})
    prefix = write_job(s3.store(), spec, "diverges")
    slow = gate.hold(MANIFEST)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_gang, gate.s3, prefix, 1, WORKERS, cache=cache)
        # Both ranks have found it out: the other one has written it down, and rank 0 waits for its checkpoint.
        until(lambda: slow.arrived and s3.store().find(prefix.attempt(1).verdict), within_s=60, what="a verdict")
        slow.release()
        result = running.result()
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "NonFiniteLoss")
    assert [item.manifest.step for item in list_checkpoints(s3.store(), prefix, [1])] == [10]


@pytest.mark.parametrize("part", [WEIGHTS, MANIFEST])
def test_killed_before_the_manifest_is_there_it_resumes_from_the_one_before(
    s3: S3Server, gate: Gate, cache: Path, tmp_path: Path, undisturbed: str, part: str
) -> None:
    prefix = _job(s3, f"killed-{part[:7]}")
    held = gate.hold(f"checkpoints/{20:010d}/{part}")
    kill = Kill(0, 25, when=tmp_path / "now")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_gang, gate.s3, prefix, 1, WORKERS, cache=cache, kill=kill)
        until(lambda: held.arrived, within_s=60, what="the checkpoint to be written as far as that")
        (tmp_path / "now").touch()
        assert running.result() is None
    held.drop()
    store = s3.store()
    assert [item.manifest.step for item in list_checkpoints(store, prefix, [1])] == [10]

    result = run_gang(gate.s3, prefix, 2, WORKERS, cache=cache, resume_from=[1])

    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    assert _weights(s3, prefix, [1, 2]) == undisturbed
    assert [event["data"]["step"] for event in _events(s3, prefix, "Resumed")] == [10]
    # Up to the step that it resumes from the first attempt reported each step once, behind it the second.
    before, after = _steps(s3, prefix, 1), _steps(s3, prefix, 2)
    assert before == list(range(1, len(before) + 1))
    assert len(before) >= 20  # these were written before the checkpoint that came to nothing
    assert after == list(range(11, STEPS + 1))


def test_a_checkpoint_is_not_there_before_what_was_reported_until_it(
    s3: S3Server, gate: Gate, cache: Path, tmp_path: Path
) -> None:
    prefix = _job(s3, "reported")
    held = gate.hold(f"/{Stream.METRICS}/")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(
            run_gang, gate.s3, prefix, 1, WORKERS, cache=cache, exports=tmp_path, kill=Kill(1, STEPS)
        )
        until(lambda: 20 in _told_at(tmp_path), within_s=60, what="ten more steps")
        assert s3.store().list_objects(prefix.attempt(1).checkpoints) == []
        held.release()
        assert running.result() is None
    found = latest(list_checkpoints(s3.store(), prefix, [1]))
    assert found is not None
    assert set(_steps(s3, prefix, 1)) >= set(range(1, found.manifest.step + 1))


def test_what_nobody_thought_of_is_raised_where_the_training_is(s3: S3Server) -> None:
    store = s3.store()
    prefix = JobPrefix.of("default", "bug")
    run = Run(
        store=store, prefix=prefix, job=JobDocument(job="bug", project="default", spec=small_spec(1), dataset=DIGITS),
        attempt=1, told=(1,), rank=0, workers=1, device=torch.device("cpu"), steps_per_epoch=14, total_steps=STEPS,
        shipper=None, export=lambda values, /, **labels: None,
    )  # fmt: skip
    unwritable = _snapshot(5)
    unwritable.rng.append({"torch": threading.Lock()})
    writer = Writer(run)
    with pytest.raises(TypeError, match="pickle"), writer:
        writer.begin(unwritable, _moment(), spent=0.0)
    with pytest.raises(TypeError, match="pickle"):
        writer.check()
    assert list_checkpoints(store, prefix, [1]) == []
