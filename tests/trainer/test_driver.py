"""Why an attempt under Ray Train failed, by what Ray Train raises."""

import pytest
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from resforge.jobs import Reason
from trainer.driver import _Trainer, _why
from trainer.gang import GangNotJoined


@pytest.mark.parametrize(
    ("failure", "reason", "words"),
    [
        (None, Reason.TRAINING_ERROR, "the workers ended and left no result"),
        (WorkerGroupError("two", {1: ValueError("no such thing")}), Reason.TRAINING_ERROR, "rank 1: no such thing"),
        (WorkerGroupError("one", {0: RuntimeError("it timed out")}), Reason.COLLECTIVE_TIMEOUT, "rank 0: it timed out"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), Reason.UNSCHEDULABLE, "its workers found no place again"),
        (ControllerError(GangNotJoined("rank 1 died")), Reason.NODE_LOST, "did not find each other: rank 1 died"),
        (ControllerError(ValueError("a bug")), Reason.TRAINING_ERROR, "a bug"),
    ],
)
def test_the_reason(failure: TrainingFailedError | None, reason: Reason, words: str) -> None:
    found, message = _why(failure)
    assert found is reason
    assert words in message


def test_nothing_is_started_that_asks_for_the_controllers_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    names = {type(callback).__name__ for callback in _Trainer(lambda: None)._create_default_callbacks()}
    assert "BackendSetupCallback" in names
    assert names.isdisjoint({"StateManagerCallback", "PlacementGroupCleanerCallback", "DatasetsCallback"})
