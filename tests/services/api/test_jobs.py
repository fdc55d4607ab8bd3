"""Submitting, finding, cancelling and deleting jobs, over HTTP and on both databases."""

import json
from collections.abc import Iterator

import httpx
import pytest
import yaml

from resforge.jobs import Job, JobState
from resforge.spec import TrainSpec
from resforge.storage import Stream
from tests.services.api.harness import PROJECT, SPEC, Api, line

RECIPE = {"recipe": "digits/resnet-20"}


@pytest.fixture
def both(api_on_each: Api) -> Iterator[tuple[Api, httpx.Client]]:
    with api_on_each.http() as http:
        yield api_on_each, http


def test_submits_and_reads_back(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    answer = http.post("/v1/jobs", json={**RECIPE, "name": "mine", "labels": {"team": "vision"}})
    assert answer.status_code == 202
    job = Job.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    assert answer.headers["etag"] == '"1"'
    assert (job.state, job.project, job.name, job.labels) == ("QUEUED", PROJECT, "mine", {"team": "vision"})
    assert job.spec == SPEC.model_copy(update={"name": "mine", "labels": {"team": "vision"}})
    again = http.get(answer.headers["location"])
    assert (again.status_code, again.json()) == (200, answer.json())
    assert again.headers["etag"] == '"1"'
    assert api.store.job(PROJECT, job.id) == job


def test_a_whole_spec_and_yaml_are_taken(http: httpx.Client) -> None:
    whole = SPEC.model_dump(mode="json")
    as_json = http.post("/v1/jobs", json=whole)
    as_yaml = http.post("/v1/jobs", content=yaml.safe_dump(whole), headers={"Content-Type": "application/yaml"})
    assert (as_json.status_code, as_yaml.status_code) == (202, 202)
    assert TrainSpec.model_validate(as_json.json()["spec"]) == SPEC == TrainSpec.model_validate(as_yaml.json()["spec"])


def test_overrides_are_laid_over_the_recipe(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", json={**RECIPE, "training": {"steps": 7}, "scaling": {"workers": 4}})
    spec = TrainSpec.model_validate(answer.json()["spec"])
    assert (spec.training.steps, spec.training.epochs, spec.training.global_batch) == (7, None, 64)
    assert (spec.scaling.workers, spec.recipe) == (4, "digits/resnet-20")


def test_a_plan_says_what_would_follow_and_submits_nothing(http: httpx.Client) -> None:
    before = http.get("/v1/jobs").json()
    answer = http.post("/v1/plans", json={**RECIPE, "scaling": {"workers": 4}, "optim": {"lr_batch": 32}})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["images_per_worker"], found["steps_per_epoch"], found["train_images"]) == (16, 22, 1437)
    assert (found["learning_rate"], found["learning_rate_scaled"]) == (2 * SPEC.optim.lr, 2)
    assert http.get("/v1/jobs").json() == before


def test_a_plan_refuses_what_a_job_would_and_what_is_no_training(http: httpx.Client) -> None:
    small = http.post("/v1/plans", json={**RECIPE, "training": {"global_batch": 2000}})
    assert (small.status_code, small.json()["errors"][0]["pointer"]) == (422, "/training/global_batch")
    ingest = {"kind": "ingest", "dataset": "mine", "source": "s3://data/mine"}
    other = http.post("/v1/plans", json=ingest)
    assert (other.status_code, other.json()["errors"][0]["pointer"]) == (422, "/kind")


def test_a_repeated_key_gives_the_first_job_again(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    headers = {"Idempotency-Key": "once"}
    first = http.post("/v1/jobs", json={**RECIPE, "name": "a", "labels": {"k": "v"}}, headers=headers)
    assert "idempotent-replayed" not in first.headers
    # The same document, written differently.
    text = "labels: {k: v}\nname: a\nrecipe: digits/resnet-20\n"
    second = http.post("/v1/jobs", content=text, headers={**headers, "Content-Type": "application/yaml"})
    assert second.status_code == first.status_code == 202
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert second.json() == first.json()
    other = http.post("/v1/jobs", json={**RECIPE, "name": "b"}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")
    assert [job.name for job in api.store.jobs(PROJECT)[0]] == ["a"]


def test_another_projects_key_may_be_the_same(api: Api) -> None:
    _, key = api.store.create_key(api.store.create_project("another-with-the-same-key"))
    ids = set()
    for token in (None, key):
        with api.http(token) as http:
            answer = http.post("/v1/jobs", json=RECIPE, headers={"Idempotency-Key": "once"})
            ids.add(answer.json()["id"])
    assert len(ids) == 2


def test_lists_by_page_newest_first(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    wanted = [api.submit().id for _ in range(5)][::-1]
    found, cursor = [], None
    for _ in range(3):
        page = http.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        found += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
    assert (found, cursor) == (wanted, None)


def test_filters(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    api.store.create_project("other")
    api.submit(project="other")
    cat = api.submit(SPEC.model_copy(update={"labels": {"a": "1", "b": "x=y"}}))
    dog = api.submit(SPEC.model_copy(update={"labels": {"a": "2"}}))
    ended = api.to(api.submit(), JobState.CANCELLED)

    def ids(**params: object) -> set[str]:
        answer = http.get("/v1/jobs", params=params)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        return {job["id"] for job in answer.json()["items"]}

    assert ids() == ids(project=PROJECT) == {cat.id, dog.id, ended.id}
    assert ids(state="QUEUED") == {cat.id, dog.id}
    assert ids(state=["QUEUED", "CANCELLED"]) == {cat.id, dog.id, ended.id}
    assert ids(label="a=1") == {cat.id} == ids(label=["a=1", "b=x=y"])
    assert ids(label=["a=1", "b=nothing"]) == set()


def test_cancels(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    job = api.running()
    answer = http.post(f"/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["cancel_requested"], answer.headers["etag"]) == (202, True, '"2"')
    again = http.post(f"/v1/jobs/{job.id}/cancel")
    assert (again.status_code, again.headers["etag"]) == (202, '"2"')


def test_cancel_may_depend_on_the_generation(api: Api, http: httpx.Client) -> None:
    path = f"/v1/jobs/{api.submit().id}/cancel"
    stale = http.post(path, headers={"If-Match": '"7"'})
    assert (stale.status_code, stale.json()["type"]) == (412, "/problems/generation-mismatch")
    weak = http.post(path, headers={"If-Match": 'W/"1"'})
    assert weak.status_code == 412  # RFC 9110, 13.1.1: If-Match compares strongly
    bare = http.post(path, headers={"If-Match": "1"})
    assert (bare.status_code, bare.json()["type"]) == (400, "/problems/invalid-header")
    assert http.get(path.removesuffix("/cancel")).json()["cancel_requested"] is False
    assert http.post(path, headers={"If-Match": '"3", "1"'}).status_code == 202
    assert http.post(path, headers={"If-Match": "*"}).status_code == 202


def test_what_has_ended_is_not_cancelled(api: Api, http: httpx.Client) -> None:
    answer = http.post(f"/v1/jobs/{api.ended().id}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/job-ended")


def test_deletes_the_objects_and_the_job(both: tuple[Api, httpx.Client]) -> None:
    api, http = both
    job, kept = api.running(), api.running()
    for each in (job, kept):
        api.append(each, Stream.LOGS, 1, [line("hello")])
        api.checkpoint(each, 10)
    live = http.delete(f"/v1/jobs/{job.id}")
    assert (live.status_code, live.json()["type"]) == (409, "/problems/job-not-ended")
    assert len(api.objects.list_objects(api.prefix(job).key)) == 4

    api.to(job, JobState.SUCCEEDED)
    answer = http.delete(f"/v1/jobs/{job.id}")
    assert (answer.status_code, answer.json()) == (200, {"deleted": job.id, "objects_removed": 4})
    assert api.objects.list_objects(api.prefix(job).key) == []
    assert http.get(f"/v1/jobs/{job.id}").status_code == http.delete(f"/v1/jobs/{job.id}").status_code == 404
    assert len(api.objects.list_objects(api.prefix(kept).key)) == 4
    assert http.get(f"/v1/jobs/{kept.id}").status_code == 200


def test_lists_attempts(api: Api, http: httpx.Client) -> None:
    job = api.retry(api.running())
    items = http.get(f"/v1/jobs/{job.id}/attempts").json()["items"]
    assert [(item["number"], item["job"]) for item in items] == [(1, job.id), (2, job.id)]


def test_another_projects_job_is_not_there(api: Api) -> None:
    job = api.ended()
    api.append(job, Stream.LOGS, 1, [line("secret")])
    api.checkpoint(job, 10, top1=0.5)
    _, key = api.store.create_key(api.store.create_project("stranger"))
    paths = ["", "/attempts", "/events", "/logs", "/metrics", "/checkpoints", "/checkpoints/best"]
    asked = [("GET", path) for path in [*paths, "/checkpoints/best/download"]] + [("POST", "/cancel"), ("DELETE", "")]
    with api.http(key) as stranger, api.http() as owner:
        for method, path in asked:
            for headers in ({}, {"Accept": "text/event-stream"}, {"If-Match": '"1"'}):
                answer = stranger.request(method, f"/v1/jobs/{job.id}{path}", headers=headers)
                nowhere = stranger.request(method, f"/v1/jobs/job-nowhere{path}", headers=headers)
                assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found"), (method, path)
                # Not even the words tell a stranger's job from one that never was.
                assert answer.text == nowhere.text.replace("job-nowhere", job.id)
        assert stranger.get("/v1/jobs").json() == {"items": [], "next_cursor": None}
        asked_for = stranger.get("/v1/jobs", params={"project": PROJECT})
        assert (asked_for.status_code, asked_for.json()["type"]) == (404, "/problems/project-not-found")
        assert owner.get(f"/v1/jobs/{job.id}").status_code == 200
    assert json.loads(api.store.job(PROJECT, job.id).model_dump_json())["state"] == "SUCCEEDED"
