"""Ingests over HTTP: what is taken, from where and to where, under which name, and who sees what came of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from resforge.errors import Conflict
from resforge.jobs import DatasetInfo, Job, JobState
from services.settings import Settings
from services.store import connect
from services.store.records import Change
from services.store.store import JobStore
from tests.s3 import S3Server
from tests.services.api.harness import PROJECT, Api, serve

INGEST = {"kind": "ingest", "dataset": "pets", "source": "s3://photographs/pets", "image_size": 32}
MINE = DatasetInfo(
    name="pets", format="shards", location="s3://somewhere/pets", channels=3, classes=2, image_size=32,
    train_images=100, test_images=20, project=PROJECT, job="job-aaaaaaaaaaaa",
)  # fmt: skip


@pytest.fixture
def rooted(sqlite_template: Path, tmp_path: Path, s3: S3Server) -> Iterator[Api]:
    """An API that lets images be read from two folders."""
    engine = connect(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'api.db')}")
    store = JobStore(engine)
    store.create_project(PROJECT)
    with serve(store, s3, data_roots="/data:/mnt/images/") as api:
        yield api
    engine.dispose()


def refusal(http: httpx.Client, **changes: Any) -> dict[str, str]:
    answer = http.post("/v1/jobs", json=INGEST | changes)
    assert answer.status_code == 422, answer.text
    return {item["pointer"]: item["message"] for item in answer.json()["errors"]}


def registered(api: Api, dataset: DatasetInfo) -> Job:
    """Register as the controller does, beside a job's change."""
    return api.change(api.submit(), lambda _: Change(job={"message": ""}, dataset=dataset))


def test_an_ingest_is_taken(fresh_api: Api) -> None:
    with fresh_api.http() as http, fresh_api.client() as client:
        answer = http.post("/v1/jobs", json=INGEST)
        assert answer.status_code == 202, answer.text
        job = Job.model_validate(answer.json())
        assert (job.spec.kind, job.dataset, job.state) == ("ingest", "pets", "QUEUED")
        assert job.spec.subject == "pets from s3://photographs/pets"
        assert "pets" not in {item.name for item in client.datasets()}  # not before it is there
        assert "registered are: digits" in http.post("/v1/jobs", json=_training("pets")).text


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"source": "photographs"}, "/source", "expected s3://bucket/prefix or an absolute path"),
        ({"source": "s3://"}, "/source", "expected s3://bucket/prefix"),
        ({"source": "s3://a b/c"}, "/source", "is no bucket"),
        ({"source": "s3://photographs/../private"}, "/source", "no part between slashes may be"),
        ({"source": "/data/../etc"}, "/source", "no part between slashes may be"),
        ({"source": "s3://photographs//pets"}, "/source", "no part between slashes may be"),
        ({"target": "/data/out"}, "/target", "shards lie in object storage"),
        ({"target": "s3://bucket"}, "/target", "expected s3://bucket/prefix"),
        ({"dataset": "a/../b"}, "/dataset", "no part between slashes may be"),
        ({"shorter_side": 16}, "/shorter_side", "below the network's input of 32 pixels"),
        ({"quality": 101}, "/quality", "less than or equal to 100"),
        ({"channels": 1}, "/channels", "3"),
        ({"scaling": {"gpus_per_worker": 1}}, "/scaling/gpus_per_worker", "works on CPUs"),
        ({"model": "resnet"}, "/model", "unknown field"),
    ],
)
def test_what_the_spec_itself_refuses(http: httpx.Client, changes: dict[str, Any], pointer: str, message: str) -> None:
    assert message in refusal(http, **changes)[pointer]


def test_folders_are_read_only_where_an_operator_allows_it(rooted: Api, http: httpx.Client) -> None:
    told = refusal(http, source="/data/pets")["/source"]
    assert told == (
        "this folder may not be read here; accepted are only s3://bucket/prefix. An operator allows folders by "
        "RESFORGE_DATA_ROOTS"
    )
    with rooted.http() as own:
        for source in ("/data", "/data/pets", "/mnt/images/pets/"):
            assert own.post("/v1/jobs", json=INGEST | {"source": source}).status_code == 202
        for source in ("/", "/data2/pets", "/mnt", "/home"):
            assert "accepted are folders below /data, /mnt/images/ and s3" in refusal(own, source=source)["/source"]


def test_roots_are_absolute() -> None:
    with pytest.raises(ValueError, match="'data' is no absolute folder; expected such as /data:/mnt/images"):
        Settings(database_url="sqlite://", s3_bucket="b", data_roots="/mnt:data")  # type: ignore[arg-type]


def test_in_the_services_bucket_a_project_has_its_own_part(http: httpx.Client, s3: S3Server) -> None:
    bucket = s3.bucket
    for key in ("", "/other/photographs", f"/{PROJECT}2/x"):
        assert f"s3://{bucket}/{PROJECT}/ alone" in refusal(http, source=f"s3://{bucket}{key}")["/source"]
    for key in ("other/datasets/x", f"{PROJECT}/job-aaaaaaaaaaaa", f"{PROJECT}/datasetsx"):
        assert f"below s3://{bucket}/{PROJECT}/datasets/" in refusal(http, target=f"s3://{bucket}/{key}")["/target"]
    for fields in (
        {"source": f"s3://{bucket}/{PROJECT}/photographs", "target": f"s3://{bucket}/{PROJECT}/datasets/x"},
        {"target": "s3://elsewhere/x"},
    ):
        assert http.post("/v1/jobs", json=INGEST | fields).status_code == 202


def test_two_ingests_do_not_write_to_one_place_at_a_time(api_on_each: Api) -> None:
    api, there = api_on_each, INGEST | {"target": "s3://shards/animals/pets"}
    with api.http() as http:
        first = http.post("/v1/jobs", json=there, headers={"Idempotency-Key": "pets"})
        assert first.status_code == 202
        assert http.post("/v1/jobs", json=there, headers={"Idempotency-Key": "pets"}).json() == first.json()
        for place in ("s3://shards/animals/pets", "s3://shards/animals", "s3://shards/animals/pets/cats/"):
            message = refusal(http, dataset="more", target=place)["/target"]
            assert message.startswith("an ingest writes to s3://shards/animals/pets now")
        beside = http.post("/v1/jobs", json=INGEST | {"dataset": "more", "target": "s3://shards/animals/pets-2"})
        assert beside.status_code == 202
        api.to(Job.model_validate(first.json()), JobState.CANCELLED)
        assert http.post("/v1/jobs", json=there).status_code == 202


def test_what_was_ingested_is_seen_and_named_by_its_project_alone(fresh_api: Api) -> None:
    fresh_api.store.create_project("other")
    registered(fresh_api, MINE)
    other = fresh_api.store.create_key("other")[1]
    with fresh_api.http() as http, fresh_api.http(other) as theirs, fresh_api.client() as client:
        [shown] = [item for item in client.datasets() if item.name == "pets"]
        assert shown == MINE.model_copy(update={"location": None})
        assert http.post("/v1/jobs", json=_training("pets")).status_code == 202
        assert "pets" not in theirs.get("/v1/datasets").text
        refused = theirs.post("/v1/jobs", json=_training("pets"))
        assert (refused.status_code, "registered are: digits, synthetic" in refused.text) == (422, True)
        assert http.post("/v1/jobs", json=INGEST).status_code == 202  # its own may be replaced
        taken = theirs.post("/v1/jobs", json=INGEST)
        assert (taken.status_code, taken.json()["type"]) == (409, "/problems/dataset-name-taken")


def test_an_operators_name_is_not_taken(fresh_api: Api) -> None:
    with fresh_api.client() as client, pytest.raises(Conflict, match="data set digits that this project has not"):
        client.submit(INGEST | {"dataset": "digits"})
    theirs = MINE.model_copy(update={"project": None, "job": None, "location": "/operator/pets"})
    fresh_api.store.register_dataset(theirs)
    job = registered(fresh_api, MINE)
    assert "there is one of the name pets that this project has not ingested" in job.message
    assert fresh_api.store.dataset("pets") == theirs


def test_a_newer_ingest_replaces_an_older_one(fresh_api: Api) -> None:
    registered(fresh_api, MINE)
    newer = MINE.model_copy(update={"classes": 5, "job": "job-bbbbbbbbbbbb"})
    assert registered(fresh_api, newer).message == ""
    assert fresh_api.store.dataset("pets") == newer


def _training(dataset: str) -> dict[str, Any]:
    return {
        "model": {"family": "cifar", "depth": 8},
        "data": {"dataset": dataset},
        "training": {"global_batch": 4, "epochs": 1},
    }
