"""Removing what a project has ingested, on both databases: what goes, what is refused, and jobs that come meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

import pytest

from resforge.jobs import DatasetInfo, JobState
from resforge.spec import EvaluateSpec, IngestSpec, TrainSpec
from resforge.storage import own_folder
from resforge.studies import StudySpec
from resforge.studies.report import StudyDocument, StudyMember
from services.errors import DatasetInUse, DatasetNotFound, DatasetNotIngested, DatasetsOverlap
from services.store import store as store_module
from services.store.records import Change
from services.store.store import JobStore
from services.store.studies import NewJob
from tests.services.store.conftest import record_of

BUCKET = "bucket"
BESIDE = 0.5  # seconds that what is held back has to show that it does not wait


@pytest.fixture
def pets(store: JobStore, project: str) -> DatasetInfo:
    """A data set that the project has ingested."""
    dataset = at("pets", f"s3://{BUCKET}/{project}/datasets/pets/job-a", project)
    store.register_dataset(dataset)
    return dataset


@pytest.fixture
def on_pets(spec: TrainSpec) -> TrainSpec:
    return naming(spec, "pets")


def at(name: str, location: str | None, project: str | None) -> DatasetInfo:
    return DatasetInfo(
        name=name, format="shards", location=location, channels=3, classes=2, image_size=32, project=project
    )


def naming(spec: TrainSpec, dataset: str) -> TrainSpec:
    return spec.model_copy(update={"data": spec.data.model_copy(update={"dataset": dataset})})


def end(store: JobStore, job_id: str, project: str) -> None:
    lease = store.acquire_lease("controller", "one", 600)
    assert lease is not None
    record = record_of(store, store.job(project, job_id))
    store.apply(lease, record, Change(job={"state": JobState.CANCELLED}))


def test_what_is_removed_is_gone_and_nothing_else(
    store: JobStore, project: str, on_pets: TrainSpec, pets: DatasetInfo
) -> None:
    other = at("pets2", f"{pets.location}b", project)
    store.register_dataset(other)
    job, _ = store.submit(project, on_pets, pets)
    end(store, job.id, project)
    assert store.remove_dataset(project, "pets", bucket=BUCKET) == pets
    with pytest.raises(DatasetNotFound, match="'pets'"):
        store.dataset("pets")
    with pytest.raises(DatasetNotFound, match="'pets'"):
        store.remove_dataset(project, "pets", bucket=BUCKET)
    assert store.dataset("pets2") == other
    assert store.source(project, job.id)[1] == pets  # a job that has ended keeps what it was submitted with


def test_only_its_own_project_removes_it(store: JobStore, project: str, pets: DatasetInfo) -> None:
    store.create_project("other")
    with pytest.raises(DatasetNotFound, match="'pets'"):
        store.remove_dataset("other", "pets", bucket=BUCKET)
    with pytest.raises(DatasetNotFound, match="'dogs'"):
        store.remove_dataset(project, "dogs", bucket=BUCKET)
    with pytest.raises(DatasetNotIngested, match="data set digits is the operator's"):
        store.remove_dataset(project, "digits", bucket=BUCKET)
    assert store.dataset("pets") == pets
    assert store.dataset("digits").name == "digits"


@pytest.mark.parametrize(
    ("location", "busy"),
    [
        ("s3://bucket/demo/datasets/pets/job-a", True),
        ("s3://bucket/demo/datasets/pets/job-a/more", True),
        ("s3://bucket/demo/datasets/", True),
        ("s3://bucket/demo/datasets/pets/job-ab", False),  # what an older ingest of that name made
        ("s3://other/demo/datasets/pets/job-a", False),
        ("/bucket/demo/datasets/pets/job-a", False),
        (None, False),
    ],
)
def test_it_stays_while_a_job_reads_at_its_place(
    store: JobStore, project: str, spec: TrainSpec, pets: DatasetInfo, location: str | None, busy: bool
) -> None:
    theirs = at("theirs", location, project)
    store.register_dataset(theirs)
    first, _ = store.submit(project, naming(spec, "theirs"), theirs)
    second, _ = store.submit(project, naming(spec, "theirs"), theirs)
    store.register_dataset(at("theirs", "s3://elsewhere/theirs", project))  # replaced, and the jobs go on
    if busy:
        with pytest.raises(DatasetInUse, match=f"not ended: {first.id}, {second.id}; wait"):
            store.remove_dataset(project, "pets", bucket=BUCKET)
        assert store.dataset("pets") == pets
        for job in (first, second):
            end(store, job.id, project)
    store.remove_dataset(project, "pets", bucket=BUCKET)


@pytest.mark.parametrize("target", ["s3://bucket/demo/datasets/pets/job-a/", "s3://bucket/demo/datasets", None])
def test_it_stays_while_an_ingest_writes_at_its_place(store: JobStore, project: str, target: str | None) -> None:
    # One without a target writes to a folder of its own, below the one that an older ingest was given.
    pets = at("pets", f"s3://{BUCKET}/{project}/datasets/pets" + ("" if target is None else "/job-a"), project)
    store.register_dataset(pets)
    ingest = IngestSpec.model_validate({"dataset": "pets", "source": "s3://photographs/pets", "target": target})
    job, _ = store.submit(project, ingest, at("pets", target, project))
    with pytest.raises(DatasetInUse, match=job.id):
        store.remove_dataset(project, "pets", bucket=BUCKET)
    end(store, job.id, project)
    store.remove_dataset(project, "pets", bucket=BUCKET)


def test_an_ingest_elsewhere_does_not_hold_it(store: JobStore, project: str, pets: DatasetInfo) -> None:
    ingest = IngestSpec.model_validate({"dataset": "pets", "source": "s3://photographs/pets"})
    store.submit(project, ingest, at("pets", None, project))
    assert store.remove_dataset(project, "pets", bucket=BUCKET) == pets


def test_many_jobs_are_counted(store: JobStore, project: str, on_pets: TrainSpec, pets: DatasetInfo) -> None:
    for _ in range(22):
        store.submit(project, on_pets, pets)
    with pytest.raises(DatasetInUse, match=r"(job-\w+, ){19}job-\w+ and 2 more; wait"):
        store.remove_dataset(project, "pets", bucket=BUCKET)


@pytest.mark.parametrize("place", ["pets/job-a", "pets/job-a/more", "pets", ""])
def test_it_stays_where_another_lies_in_the_same_place(
    store: JobStore, project: str, pets: DatasetInfo, place: str
) -> None:
    store.register_dataset(at("other", f"s3://{BUCKET}/{project}/datasets/{place}", None))
    with pytest.raises(DatasetsOverlap, match="in one place with those of other, which"):
        store.remove_dataset(project, "pets", bucket=BUCKET)
    assert store.dataset("pets") == pets
    store.register_dataset(at("other", f"{pets.location}2", None))
    store.remove_dataset(project, "pets", bucket=BUCKET)


def test_where_objects_are_left_another_may_lie_there(store: JobStore, project: str) -> None:
    for name in ("one", "two"):
        store.register_dataset(at(name, "s3://elsewhere/pets", project))
    for name in ("one", "two"):
        store.remove_dataset(project, name, bucket=BUCKET)


def test_a_removal_waits_for_a_job_that_is_being_submitted(
    store: JobStore, project: str, on_pets: TrainSpec, pets: DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserted, go_on = threading.Event(), threading.Event()
    append: Callable[..., None] = store_module.append_events

    def held(*arguments: Any) -> None:
        append(*arguments)
        inserted.set()
        assert go_on.wait(30)

    monkeypatch.setattr(store_module, "append_events", held)
    with ThreadPoolExecutor(2) as pool:
        try:
            submission = pool.submit(store.submit, project, on_pets, pets)
            assert inserted.wait(30)
            removal = pool.submit(store.remove_dataset, project, "pets", bucket=BUCKET)
            assert not wait([removal], BESIDE).done
        finally:
            go_on.set()
        with pytest.raises(DatasetInUse, match=submission.result()[0].id):
            removal.result()


def test_a_job_that_comes_after_the_removal_is_not_taken(
    store: JobStore, project: str, on_pets: TrainSpec, pets: DatasetInfo
) -> None:
    source, _ = store.submit(project, on_pets, pets)
    end(store, source.id, project)
    store.remove_dataset(project, "pets", bucket=BUCKET)
    with pytest.raises(DatasetNotFound, match="'pets'"):
        store.submit(project, on_pets, pets)
    study = StudyDocument(
        id="study-1", project=project, spec=StudySpec(study="degradation", seeds=(0,)), created_at=datetime.now(UTC),
        members=(StudyMember(key="one", series="one", seed=0, job="job-1"),),
    )  # fmt: skip
    with pytest.raises(DatasetNotFound, match="'pets'"):
        store.submit_study(study, [NewJob("job-1", on_pets, pets)])
    assert store.studies(project) == ([], None)
    assert [job.id for job in store.jobs(project)[0]] == [source.id]
    # It names no data set, and what was its source's may be there still, in another bucket.
    evaluation = EvaluateSpec.model_validate({"checkpoints": [{"job": source.id}]})
    store.submit(project, evaluation, pets)


def test_a_data_set_comes_back_unless_its_name_is_taken(store: JobStore, project: str, pets: DatasetInfo) -> None:
    store.remove_dataset(project, "pets", bucket=BUCKET)
    assert store.restore_dataset(pets)
    assert store.dataset("pets") == pets
    store.remove_dataset(project, "pets", bucket=BUCKET)
    newer = at("pets", "s3://elsewhere/pets", None)
    store.register_dataset(newer)
    assert not store.restore_dataset(pets)
    assert store.dataset("pets") == newer


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        ("s3://bucket/demo/datasets/pets", "demo/datasets/pets/"),
        ("s3://bucket/demo/datasets/pets/small/job-a/", "demo/datasets/pets/small/job-a/"),
        ("s3://bucket/demo/datasets/", None),  # all the project's data sets
        ("s3://bucket/demo/datasets", None),
        ("s3://bucket/demo/datasetsx/pets", None),
        ("s3://bucket/demo/job-a", None),
        ("s3://bucket/demo2/datasets/pets", None),
        ("s3://bucket/other/datasets/pets", None),
        ("s3://bucket/demo/datasets/../../other/datasets/pets", None),
        ("s3://bucket/demo/datasets//pets", None),
        ("s3://bucket/", None),
        ("s3://bucket", None),
        ("s3://bucket2/demo/datasets/pets", None),
        ("/bucket/demo/datasets/pets", None),
        ("", None),
        (None, None),
    ],
)
def test_the_service_removes_only_what_lies_below_its_projects_data_sets(
    location: str | None, folder: str | None
) -> None:
    assert own_folder(at("pets", location, "demo"), "bucket") == folder
    assert own_folder(at("pets", location, None), "bucket") is None
