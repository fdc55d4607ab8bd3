"""What a job waits for whose source has not ended, and when it never starts."""

import pytest

from resforge.jobs import JobState, Reason
from resforge.spec import EvaluateSpec, ScalingSpec
from services.controller.decide import Apply, Observed, decide
from services.controller.fit import FitAnswer, driver_needs, gang_of
from services.controller.sources import Sources, sources_of
from tests.services.controller.stage import Stage
from tests.services.controller.values import POLICY, SPEC, T0, record

ONE, OTHER = "job-aaaaaaaaaaaa", "job-bbbbbbbbbbbb"
S = JobState


def evaluating(*sources: tuple[str, str | int]) -> EvaluateSpec:
    return EvaluateSpec.model_validate(
        {"kind": "evaluate", "checkpoints": [{"job": job, "which": which} for job, which in sources]}
    )


@pytest.mark.parametrize("which", ["best", "latest", 7])
@pytest.mark.parametrize("state", list(S))
def test_every_state_of_a_source(state: JobState, which: str | int) -> None:
    found = sources_of(evaluating((ONE, which)), {ONE: state})
    if which == 7 or state is S.SUCCEEDED:
        assert found == Sources()
    elif state in (S.FAILED, S.CANCELLED):
        assert found.broken
        assert not found.pending
    else:
        assert ONE in found.pending
        assert state in found.pending


def test_several_sources_are_waited_for_and_one_that_is_gone_ends_it() -> None:
    both = evaluating((ONE, "best"), (OTHER, "best"))
    assert sources_of(both, {ONE: S.RUNNING, OTHER: S.SUCCEEDED}).pending == f"Waits for the end of {ONE} (RUNNING)."
    assert "deleted" in sources_of(both, {ONE: S.RUNNING}).broken
    assert sources_of(SPEC, {}) == Sources()


def test_what_is_decided() -> None:
    fits = FitAnswer("fits")
    waits = decide(record(S.QUEUED), Observed(sources_pending="Waits.", fit=fits), T0, POLICY)
    assert isinstance(waits, Apply)
    assert waits.change.job == {"reason": Reason.WAITS_FOR_SOURCE, "message": "Waits."}
    broken = decide(record(S.QUEUED), Observed(sources_broken="Gone.", fit=fits), T0, POLICY)
    assert broken is not None
    assert (broken.change.job["state"], broken.change.job["reason"]) == (S.FAILED, Reason.SOURCE_UNAVAILABLE)
    cancelled = decide(record(S.QUEUED, cancel=True), Observed(sources_pending="Waits."), T0, POLICY)
    assert cancelled is not None
    assert cancelled.change.job["state"] is S.CANCELLED


def test_one_process_asks_for_itself_and_a_gang_for_its_workers() -> None:
    spec = evaluating((ONE, "best"))
    assert driver_needs(spec) == (1.0, 0)
    alone = SPEC.model_copy(update={"scaling": ScalingSpec(workers=1, cpus_per_worker=2, gpus_per_worker=1)})
    assert driver_needs(alone) == (2.0, 1)
    gang = SPEC.model_copy(update={"scaling": ScalingSpec(workers=2)})
    assert driver_needs(gang) == (0.0, 0)
    assert gang_of(spec).workers == 1


@pytest.mark.stack
def test_a_job_starts_when_its_source_has_succeeded_and_holds_nobody_back(stage: Stage) -> None:
    controller, source = stage.controller(), stage.submit()
    waiting, _ = stage.store.submit(stage.project, evaluating((source.id, "best")), stage.dataset)
    behind = stage.submit()
    driver = stage.running(controller, source)
    assert stage.job(waiting).reason is Reason.WAITS_FOR_SOURCE
    assert stage.until(controller, behind, S.STARTING, S.RUNNING).reason is None
    driver.succeed()
    stage.launcher.become(f"{source.id}-1", "succeeded")
    assert stage.until(controller, waiting, S.STARTING).attempts == 1


@pytest.mark.stack
def test_a_job_whose_source_failed_fails(stage: Stage) -> None:
    controller, source = stage.controller(), stage.submit(infrastructure=0)
    waiting, _ = stage.store.submit(stage.project, evaluating((source.id, "latest")), stage.dataset)
    stage.running(controller, source).fail(Reason.NON_FINITE_LOSS)
    ended = stage.until(controller, waiting, S.FAILED)
    assert ended.reason is Reason.SOURCE_UNAVAILABLE
    assert source.id in ended.message
