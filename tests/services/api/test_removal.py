"""Removing an ingested data set over HTTP: its objects on a real S3 server, and those that are not its own."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from resforge.errors import Conflict, NotFound, Unavailable
from resforge.jobs import DatasetInfo, JobState
from resforge.resources import RemovedDataset
from resforge.s3 import ObjectStore, StorageUnavailable
from services.api.ingests import remove
from services.errors import DatasetNotFound
from services.store.store import JobStore
from tests.gate import Fault, gate_before
from tests.s3 import S3Server
from tests.services.api.harness import PROJECT, SPEC, Api, serve

FILES = ("dataset.json", "ingest/train-000000.json", "train-000000.idx", "train-000000.tar")


@pytest.fixture
def shards(s3: S3Server) -> Iterator[Callable[[str], list[str]]]:
    """Puts a data set's objects at an address, and gives their keys; all go at the end."""
    put: list[tuple[ObjectStore, str]] = []

    def make(address: str) -> list[str]:
        objects, folder = _opened(s3, address)
        put.append((objects, folder))
        for name in FILES:
            objects.put(f"{folder}{name}", b"bytes")
        return [f"{folder}{name}" for name in FILES]

    yield make
    for objects, folder in put:
        objects.delete_prefix(folder)


def _opened(s3: S3Server, address: str) -> tuple[ObjectStore, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    s3.store()  # which puts the keys into the environment
    objects = ObjectStore(bucket, endpoint=s3.endpoint, attempts=1)
    objects.ensure_bucket()
    return objects, f"{key.rstrip('/')}/"


def there(s3: S3Server, address: str) -> list[str]:
    objects, folder = _opened(s3, address)
    return [item.key for item in objects.list_objects(folder)]


def own(s3: S3Server, place: str) -> str:
    return f"s3://{s3.bucket}/{PROJECT}/datasets/{place}"


def register(store: JobStore, name: str, location: str, project: str | None = PROJECT) -> DatasetInfo:
    dataset = DatasetInfo(
        name=name, format="shards", location=location, channels=3, classes=2, image_size=32, train_images=100,
        test_images=20, project=project,
    )  # fmt: skip
    store.register_dataset(dataset)
    return dataset


def training(dataset: str) -> dict[str, Any]:
    return {
        "model": {"family": "cifar", "depth": 8},
        "data": {"dataset": dataset},
        "training": {"global_batch": 4, "epochs": 1},
    }


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    return answer.status_code, body["type"].removeprefix("/problems/"), body["detail"]


@pytest.mark.parametrize("name", ["pets", "pets/small"])
def test_it_is_gone_with_its_objects_and_its_neighbours_stay(
    api_on_each: Api, s3: S3Server, shards: Callable[[str], list[str]], name: str
) -> None:
    api, place = api_on_each, own(s3, f"{name}/a")
    shards(place)
    beside = {address: shards(address) for address in (f"{place}b", own(s3, f"{name}2/a"), own(s3, f"{name}/b"))}
    register(api.store, name, place)
    for number, address in enumerate(beside):
        register(api.store, f"other-{number}", address)
    with api.http() as http:
        answer = http.delete(f"/v1/datasets/{name}")
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "deleted": name, "objects_removed": len(FILES), "location": place, "objects_left": False,
        }  # fmt: skip
        assert there(s3, place) == []
        assert {address: there(s3, address) for address in beside} == beside
        names = {item["name"] for item in http.get("/v1/datasets").json()["items"]}
        assert (name in names, {"other-0", "other-1", "other-2", "digits"} <= names) == (False, True)
        assert http.post("/v1/jobs", json=training(name)).status_code == 422
        assert problem(http.delete(f"/v1/datasets/{name}"))[:2] == (404, "dataset-not-found")


def test_it_stays_while_a_job_works_on_it(api_on_each: Api, s3: S3Server, shards: Callable[[str], list[str]]) -> None:
    api, place = api_on_each, own(s3, "pets/a")
    keys = shards(place)
    register(api.store, "pets", place)
    with api.http() as http:
        job = http.post("/v1/jobs", json=training("pets")).json()["id"]
        status, kind, detail = problem(http.delete("/v1/datasets/pets"))
        assert (status, kind) == (409, "dataset-in-use")
        assert f"jobs that have not ended: {job}; wait for their end, or cancel them" in detail
        assert there(s3, place) == keys
        api.to(api.store.job(PROJECT, job), JobState.CANCELLED)
        assert http.delete("/v1/datasets/pets").status_code == 200
        assert http.get(f"/v1/jobs/{job}").json()["dataset"] == "pets"
    assert there(s3, place) == []


def test_what_the_project_has_not_ingested_stays(
    fresh_api: Api, s3: S3Server, shards: Callable[[str], list[str]]
) -> None:
    place, theirs = own(s3, "operators"), f"s3://{s3.bucket}/other/datasets/theirs"
    keys = {address: shards(address) for address in (place, theirs)}
    fresh_api.store.create_project("other")
    register(fresh_api.store, "operators", place, project=None)
    register(fresh_api.store, "theirs", theirs, project="other")
    with fresh_api.http() as http:
        for name in ("operators", "digits"):
            status, kind, detail = problem(http.delete(f"/v1/datasets/{name}"))
            assert (status, kind) == (409, "dataset-not-ingested")
            assert detail == f"data set {name} is the operator's; a project removes only what it has ingested itself"
        stranger, nowhere = (http.delete(f"/v1/datasets/{name}") for name in ("theirs", "nowhere"))
        assert problem(stranger)[:2] == (404, "dataset-not-found")
        assert stranger.text == nowhere.text.replace("nowhere", "theirs")
        for name in ("", "%00", "a%2F..%2Fb"):
            assert problem(http.delete(f"/v1/datasets/{name}"))[:2] == (404, "dataset-not-found")
    assert {address: there(s3, address) for address in keys} == keys
    assert {"operators", "theirs", "digits"} <= {item.name for item in fresh_api.store.datasets()}


def test_it_stays_where_another_lies_in_the_same_place(
    fresh_api: Api, s3: S3Server, shards: Callable[[str], list[str]]
) -> None:
    place = own(s3, "pets")
    keys = shards(place) + shards(f"{place}/small")
    register(fresh_api.store, "pets", place)
    register(fresh_api.store, "small", f"{place}/small")
    with fresh_api.client() as client:
        for name, other in (("pets", "small"), ("small", "pets")):
            with pytest.raises(Conflict, match=f"in one place with those of {other}") as refused:
                client.remove_dataset(name)
            assert refused.value.problem.type == "/problems/datasets-overlap"
    assert there(s3, place) == sorted(keys)


@pytest.mark.parametrize(
    "place", ["s3://elsewhere/demo/datasets/pets", "s3://{own}/demo/photographs", "s3://{own}/other/datasets/pets"]
)
def test_objects_elsewhere_are_left(
    fresh_api: Api, s3: S3Server, shards: Callable[[str], list[str]], place: str
) -> None:
    place = place.format(own=s3.bucket)
    keys = shards(place)
    register(fresh_api.store, "pets", place)
    with fresh_api.client() as client:
        removed = client.remove_dataset("pets")
        assert removed == RemovedDataset(deleted="pets", objects_removed=0, location=place, objects_left=True)
        assert "pets" not in {item.name for item in client.datasets()}
    assert there(s3, place) == keys


def test_where_storage_fails_it_stays_and_is_removed_later(
    sqlite_store: JobStore, s3: S3Server, shards: Callable[[str], list[str]]
) -> None:
    place = own(s3, "pets/a")
    keys = shards(place)
    dataset = register(sqlite_store, "pets", place)
    with (
        gate_before(s3) as gate,
        serve(sqlite_store, s3, objects=gate.s3.store(attempts=1)) as api,
        api.http() as http,
        api.client() as client,
    ):
        gate.spoil("list-type", [], always=Fault(status=503, code="SlowDown"))
        answer = http.delete("/v1/datasets/pets")
        assert problem(answer)[:2] == (503, "storage-unavailable")
        assert answer.headers["retry-after"]
        with pytest.raises(Unavailable):
            client.remove_dataset("pets")
        assert sqlite_store.dataset("pets") == dataset
        assert there(s3, place) == keys
        gate.mend()
        assert client.remove_dataset("pets").objects_removed == len(FILES)
    assert there(s3, place) == []


class Failing(ObjectStore):
    """Removes one object, does what the test wants meanwhile, and fails."""

    def __init__(self, s3: S3Server, meanwhile: Callable[[], object]) -> None:
        super().__init__(s3.bucket, endpoint=s3.endpoint, attempts=1)
        self._meanwhile = meanwhile

    def delete_prefix(self, prefix: str) -> int:
        self.delete(self.list_objects(prefix)[0].key)
        self._meanwhile()
        raise StorageUnavailable("as the test wants")


def test_what_was_half_removed_is_removed_by_repeating_it(
    sqlite_store: JobStore, s3: S3Server, shards: Callable[[str], list[str]]
) -> None:
    place = own(s3, "pets/a")
    shards(place)
    dataset = register(sqlite_store, "pets", place)

    def looks() -> None:
        with pytest.raises(DatasetNotFound):  # so that no job begins to read it
            sqlite_store.dataset("pets")

    with pytest.raises(StorageUnavailable):
        remove("pets", PROJECT, sqlite_store, Failing(s3, looks))
    assert sqlite_store.dataset("pets") == dataset
    assert remove("pets", PROJECT, sqlite_store, s3.store()).objects_removed == len(FILES) - 1
    assert there(s3, place) == []


def test_a_name_that_is_taken_meanwhile_stays_with_its_new_owner(
    sqlite_store: JobStore,
    s3: S3Server,
    shards: Callable[[str], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = own(s3, "pets/a")
    shards(place)
    register(sqlite_store, "pets", place)
    newer: list[DatasetInfo] = []
    failing = Failing(s3, lambda: newer.append(register(sqlite_store, "pets", "s3://elsewhere/pets", "other")))
    with pytest.raises(StorageUnavailable):
        remove("pets", PROJECT, sqlite_store, failing)
    assert [sqlite_store.dataset("pets")] == newer
    assert f"some objects are left at {place}" in caplog.text


def test_a_name_leads_to_no_other_route(fresh_api: Api) -> None:
    job = fresh_api.to(fresh_api.submit(SPEC), JobState.CANCELLED)
    with fresh_api.client() as client:
        for name in (f"../jobs/{job.id}", f"a/../../jobs/{job.id}", "pets?x", "pets#x"):
            with pytest.raises(NotFound, match="no dataset"):
                client.remove_dataset(name)
        assert client.job(job.id) == job
