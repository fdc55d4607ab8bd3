"""What a gang of real workers does when something is wrong, and when its size changes."""

import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resforge.metrics import POINT, TrainPoint
from resforge.storage import WEIGHTS, AttemptDocument, Control, Heartbeat, Stream, latest, list_checkpoints, read_stream
from tests.s3 import S3Server, start_s3
from tests.services.local.waiting import until
from tests.trainer.gang import Kill, run_gang, write_job
from tests.trainer.test_pod import hook
from tests.trainer.test_resume import STEPS, small_spec
from trainer.checkpoints import newest_verified

pytestmark = pytest.mark.stack

OUTAGE_S = 4.0  # longer than the tries of one request


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_loss_that_is_not_finite_ends_it_and_the_last_good_checkpoint_stays(s3: S3Server, cache: Path) -> None:
    # Weight decay times the rate is 1000, behind a quiet start: weights grow a thousandfold each step.
    optim = {"lr": 1000, "weight_decay": 1, "schedule": {"kind": "constant", "warmup_steps": 10, "warmup_lr": 0.01}}
    prefix = write_job(s3.store(), small_spec(2, optim=optim), "nan")
    result = run_gang(s3, prefix, 1, 2, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "NonFiniteLoss")
    assert "learning rate of 1000" in result.message
    kept = latest(list_checkpoints(s3.store(), prefix, [1]))
    assert kept is not None
    assert kept.manifest.step >= 10


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"dataset": "digits", "train_limit": 5000}}, "1437"),
        ({"data": {"dataset": "digits", "augment": {"scale": [16, 32]}}}, "augment.scale"),
        ({"training": {"global_batch": 2048, "steps": 5}}, "2048"),
    ],
)
def test_data_that_do_not_serve_are_told_by_every_rank_at_once(
    s3: S3Server, cache: Path, changes: dict[str, object], told: str
) -> None:
    prefix = write_job(s3.store(), small_spec(2, **changes), f"data-{told.replace('.', '-')}")
    result = run_gang(s3, prefix, 1, 2, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", "InvalidData")
    assert told in result.message


def test_what_has_a_result_is_not_run_again(s3: S3Server, cache: Path) -> None:
    prefix = write_job(s3.store(), small_spec(2, training={"global_batch": 2048, "steps": 5}), "again")
    first = run_gang(s3, prefix, 1, 2, cache=cache)
    assert run_gang(s3, prefix, 1, 2, cache=cache) == first


def test_asked_to_stop_it_stops_at_a_step_with_a_checkpoint(s3: S3Server, cache: Path) -> None:
    store = s3.store()
    long = {"global_batch": 32, "steps": 100_000, "log_every_steps": 1, "seed": 7}
    prefix = write_job(store, small_spec(2, training=long), "stop")
    store.put(prefix.control, Control(desired="stop", generation=2).to_bytes())
    result = run_gang(s3, prefix, 1, 2, cache=cache)
    assert result is not None
    assert (result.outcome, result.reason) == ("stopped", None)
    last = latest(list_checkpoints(store, prefix, [1]))
    assert last is not None
    assert last.manifest.step == result.step > 0
    assert not last.manifest.final


@pytest.mark.parametrize("whose", ["a worker's", "the driver's"])
def test_a_pod_that_is_to_end_leaves_a_checkpoint_of_the_step_reached(
    s3: S3Server, cache: Path, tmp_path: Path, whose: str
) -> None:
    store = s3.store()
    long = {"global_batch": 32, "steps": 100_000, "log_every_steps": 1, "seed": 7}
    prefix = write_job(store, small_spec(2, training=long), f"ends-{whose[:5].strip()}")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run_gang, s3, prefix, 1, 2, cache=cache, pods=tmp_path)
        until(lambda: store.find(prefix.attempt(1).progress), within_s=60, what="a training")
        if whose == "a worker's":
            with hook(tmp_path / "1") as ending:  # not rank 0, which writes it
                assert ending.wait(60) == 0
            assert store.find(prefix.attempt(1).verdict) is not None  # not before the other has written the checkpoint
        else:
            told = Heartbeat(at=datetime.now(UTC), beat=1, every_s=1.0, leaves=True)
            store.put(prefix.attempt(1).heartbeat, told.to_bytes())
        result = running.result()
    assert result is not None
    assert (result.outcome, result.reason) == ("stopped", "Preempted")
    assert result.message == f"A pod of it was to end, so it stopped at step {result.step}, with a checkpoint."
    last = latest(list_checkpoints(store, prefix, [1]))
    assert last is not None
    assert last.manifest.step == result.step > 0


def test_another_number_of_workers_goes_on_where_the_first_stopped(s3: S3Server, cache: Path) -> None:
    store = s3.store()
    prefix = write_job(store, small_spec(2), "resized")
    assert run_gang(s3, prefix, 1, 2, cache=cache, kill=Kill(1, 17)) is None
    resumed = latest(list_checkpoints(store, prefix, [1]))
    assert resumed is not None
    result = run_gang(s3, prefix, 2, 4, cache=cache, resume_from=[1])
    assert result is not None
    assert (result.outcome, result.step) == ("succeeded", STEPS)
    steps = [line for _, line in read_stream(store, prefix, Stream.METRICS, [2]) if b'"kind":"train"' in line]
    assert len(steps) == STEPS - resumed.manifest.step


def test_a_store_that_is_away_for_a_while_costs_checkpoints_and_not_the_run(tmp_path: Path, cache: Path) -> None:
    s3 = start_s3(tmp_path)
    try:
        training = {"global_batch": 32, "steps": 1200, "log_every_steps": 10, "seed": 7}
        checkpoint = {"every_steps": 20, "every_epochs": None}
        prefix = write_job(s3.store(), small_spec(2, training=training, checkpoint=checkpoint), "away")

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_gang, s3, prefix, 1, 2, cache=cache)
            until(lambda: list_checkpoints(s3.store(), prefix, [1]), within_s=60, what="a checkpoint")
            # Here, not in the other thread: the server ends with the thread that started it.
            s3.stop()
            threading.Event().wait(OUTAGE_S)
            s3.start()
            result = running.result()
        assert result is not None
        assert (result.outcome, result.step) == ("succeeded", 1200)
        events = [line.decode() for _, line in read_stream(s3.store(), prefix, Stream.EVENTS, [1])]
        assert any("CheckpointFailed" in line for line in events)
        assert "CheckpointCommitted" in events[-2]
    finally:
        s3.stop()


def test_a_full_disk_keeps_what_was_written_and_says_so(tmp_path: Path, cache: Path) -> None:
    s3 = start_s3(tmp_path)
    try:
        training = {"global_batch": 32, "steps": 300, "log_every_steps": 10, "seed": 7}
        checkpoint = {"every_steps": 20, "every_epochs": None}
        prefix = write_job(s3.store(), small_spec(2, training=training, checkpoint=checkpoint), "full")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_gang, s3, prefix, 1, 2, cache=cache)
            until(lambda: list_checkpoints(s3.store(), prefix, [1]), within_s=60, what="a checkpoint")
            assert s3.process is not None
            # A limit on a file's size refuses a write as a full disk does, and needs no disk to fill.
            resource.prlimit(s3.process.pid, resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
            result = running.result()
        assert result is not None
        assert (result.outcome, result.reason) == ("failed", "CheckpointUploadFailed")
        assert "step 300" in result.message
        kept, damaged = newest_verified(s3.store(), prefix, [1])
        assert kept is not None
        assert damaged == []
        resource.prlimit(s3.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        again = run_gang(s3, prefix, 2, 2, cache=cache, resume_from=[1])
        assert again is not None
        assert (again.outcome, again.step) == ("succeeded", 300)
    finally:
        s3.stop()


def test_what_is_reported_is_the_mean_over_all_workers_and_steps(s3: S3Server, cache: Path) -> None:
    """Reports every seventh step say what reports of each step come to: the two runs train alike."""
    reported: dict[int, list[TrainPoint]] = {}
    for every in (1, 7):
        training = {"global_batch": 32, "steps": 14, "log_every_steps": every, "seed": 7}
        prefix = write_job(s3.store(), small_spec(2, training=training), f"means-{every}")
        result = run_gang(s3, prefix, 1, 2, cache=cache)
        assert result is not None
        assert result.outcome == "succeeded"
        lines = read_stream(s3.store(), prefix, Stream.METRICS, [1])
        points = [POINT.validate_json(line) for _, line in lines]
        reported[every] = [point for point in points if point.kind == "train"]
    assert [point.step for point in reported[7]] == [7, 14]
    for field in ("loss", "top1", "top5"):
        single = [getattr(point, field) for point in reported[1]]
        assert len(set(single)) > 3
        means = [sum(single[start : start + 7]) / 7 for start in (0, 7)]
        assert [getattr(point, field) for point in reported[7]] == pytest.approx(means, rel=1e-6)


def test_a_damaged_checkpoint_takes_no_place_of_those_that_follow(s3: S3Server, cache: Path) -> None:
    store = s3.store()
    spec = small_spec(2, checkpoint={"every_steps": 5, "every_epochs": None, "keep_last": 1})
    prefix = write_job(store, spec, "crowded")
    assert run_gang(s3, prefix, 1, 2, cache=cache, kill=Kill(1, 27)) is None
    for checkpoint in list_checkpoints(store, prefix, [1]):
        store.put(checkpoint.key + WEIGHTS, b"other bytes")
    # Killed again before it comes to the damaged one's step: what it wrote until then is still there, but for step 15,
    # which may still have been being written.
    assert run_gang(s3, prefix, 2, 2, cache=cache, resume_from=[1], kill=Kill(1, 17)) is None
    found, damaged = newest_verified(store, prefix, [1, 2])
    assert damaged == []
    assert found is not None
    assert found.manifest.attempt == 2
    assert found.manifest.step in (10, 15)


def test_a_superseded_attempt_does_not_begin(s3: S3Server, cache: Path) -> None:
    store = s3.store()
    prefix = write_job(store, small_spec(2), "superseded")
    store.put(prefix.attempt(2).attempt, AttemptDocument(number=2).to_bytes())
    assert run_gang(s3, prefix, 1, 2, cache=cache) is None
    assert list_checkpoints(store, prefix, [1]) == []
