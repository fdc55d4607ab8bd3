"""An ingest that succeeds registers its data set in the transaction that ends the job."""

import pytest

from resforge.jobs import DatasetInfo, Job, JobState
from resforge.spec import IngestSpec
from resforge.storage import Result
from services.controller.loop import Controller
from services.errors import DatasetNotFound
from tests.services.controller.stage import Stage, _now

pytestmark = pytest.mark.stack

MADE = DatasetInfo(
    name="something-else", format="shards", location="s3://bucket/pets", channels=3, classes=7, image_size=32,
    train_images=70, test_images=7, project="not-mine", job="not-mine",
)  # fmt: skip


def ingested(stage: Stage, controller: Controller, dataset: str = "pets") -> Job:
    spec = IngestSpec(dataset=dataset, source="s3://photographs/pets", image_size=32)
    to_be = MADE.model_copy(update={"name": dataset, "classes": 2})
    job = stage.store.submit(stage.project, spec, to_be)[0]
    driver = stage.running(controller, job)
    with pytest.raises(DatasetNotFound):
        stage.store.dataset("pets")
    driver._put(driver.keys.result, Result(at=_now(), outcome="succeeded", step=3, dataset=MADE))
    return stage.until(controller, job, JobState.SUCCEEDED)


def test_it_is_registered_under_its_job_and_project(each_stage: Stage) -> None:
    stage = each_stage
    job = ingested(stage, stage.controller())
    assert job.message == ""
    # Whatever the trainer says of names.
    assert stage.store.dataset("pets") == MADE.model_copy(
        update={"name": "pets", "project": stage.project, "job": job.id}
    )


def test_an_operators_data_set_is_kept_and_the_job_says_so(each_stage: Stage) -> None:
    stage = each_stage
    own = MADE.model_copy(update={"name": "cats", "project": None, "job": None})
    stage.store.register_dataset(own)
    job = ingested(stage, stage.controller(), "cats")
    assert "there is one of the name cats that this project has not ingested, and it was kept" in job.message
    assert stage.store.dataset("cats") == own
    [last] = [event for event in stage.events(job) if event.after == "SUCCEEDED" and event.type == "JobStateChanged"]
    assert last.message == job.message


def test_what_a_training_says_of_data_sets_is_nothing(stage: Stage) -> None:
    controller, job = stage.controller(), stage.submit()
    driver = stage.running(controller, job)
    driver._put(driver.keys.result, Result(at=_now(), outcome="succeeded", step=3, dataset=MADE))
    stage.until(controller, job, JobState.SUCCEEDED)
    assert "something-else" not in {item.name for item in stage.store.datasets()}
