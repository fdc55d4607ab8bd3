"""Every error is a problem+json that says what was wrong, where, and what would be accepted."""

import re
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy.exc import DataError

from resforge.jobs import JobState
from resforge.resources import Problem
from resforge.s3 import ObjectStore
from services.api import problems
from services.store.store import JobStore
from tests.s3 import S3Server
from tests.services.api.harness import PROJECT, SPEC, Api, new_store, serve

pytestmark = pytest.mark.stack

SECRET = "host=10.9.8.7 user=admin"


def check(answer: httpx.Response, status: int, name: str) -> Problem:
    """The problem in an answer, whose form is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(answer.json())
    assert (problem.status, problem.type) == (status, f"/problems/{name}")
    assert problem.instance == answer.request.url.path
    assert problem.title
    assert problem.detail
    return problem


def errors(problem: Problem) -> dict[str, str]:
    return {item.pointer: item.message for item in problem.errors}


def post(http: httpx.Client, **changes: Any) -> httpx.Response:
    """Post the recipe's whole spec with some of its parts replaced; None removes one."""
    document = {**SPEC.model_dump(mode="json", exclude_none=True), **changes}
    return http.post("/v1/jobs", json={name: value for name, value in document.items() if value is not None})


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v1/jobs/", "/healthz/x"):
        check(http.get(path), 404, "not-found")
    answer = http.put("/v1/jobs")
    assert "GET, POST" in check(answer, 405, "method-not-allowed").detail
    assert answer.headers["allow"] == "GET, POST"
    answer = http.post("/v1/jobs/x")
    check(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, DELETE"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Basic abc", "Bearer rf_x_y", "Bearer nonsense", "Bearer rf__", "Bearer \xff"],
)
def test_no_key_no_answer(api: Api, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    paths = ["/v1/jobs", "/v1/jobs/x", "/v1/recipes", "/v1/models", "/v1/datasets", "/v1/jobs/x/logs"]
    with httpx.Client(base_url=api.url, headers=headers) as http:
        for path in paths:
            answer = http.get(path)
            check(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        # Before the body is looked at.
        check(http.post("/v1/jobs", content=b"{"), 401, "unauthenticated")


def test_a_revoked_key_is_refused_at_once(api: Api) -> None:
    key_id, key = api.store.create_key(PROJECT)
    with api.http(key) as http:
        assert http.get("/v1/jobs").status_code == 200
        api.store.revoke_key(key_id)
        check(http.get("/v1/jobs"), 401, "unauthenticated")


def test_every_bad_field_is_listed_at_once(http: httpx.Client) -> None:
    document = {
        "model": {"family": "cifar", "depth": 21},
        "data": {"dataset": "../etc", "path": "/data"},
        "optim": {"lr": -1, "nestrov": True},
        "training": {"global_batch": "many", "epochs": 1},
        "labels": {"bad key": "x"},
        "scaling": [2],
        "webhook": "http://x",
    }
    found = errors(check(http.post("/v1/jobs", json=document), 422, "invalid-spec"))
    assert set(found) == {
        "/model/depth", "/data/dataset", "/data/path", "/optim/lr", "/optim/nestrov", "/training/global_batch",
        "/labels/bad key", "/scaling", "/webhook",
    }  # fmt: skip
    assert "20 and 26" in found["/model/depth"]
    assert "accepted here: dataset, augment, mean, train_limit" in found["/data/path"]
    assert "did you mean nesterov?" in found["/optim/nestrov"]
    assert "greater than 0" in found["/optim/lr"]
    assert "valid integer" in found["/training/global_batch"]
    assert "workers, cpus_per_worker, gpus_per_worker" in found["/scaling"]
    assert "letters" in found["/labels/bad key"]


def test_missing_fields_and_pointers_that_need_escapes(http: httpx.Client) -> None:
    found = errors(check(http.post("/v1/jobs", json={"model": {"depth": 20}, "a/b~c": 1}), 422, "invalid-spec"))
    assert set(found) == {"/model/family", "/data", "/training", "/a~1b~0c"}
    assert "imagenet" in found["/model/family"]
    assert "required" in found["/data"]


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"data": {"dataset": "imagenet"}}, "/data/dataset", "registered are: digits"),
        ({"model": {"family": "imagenet", "depth": 18}}, "/model", "32x32 pixels or more, not 8"),
        ({"training": {"global_batch": 2000, "epochs": 1}}, "/training/global_batch", "1,437 images"),
        (
            {"data": {"dataset": "synthetic", "train_limit": 32}, "training": {"global_batch": 64, "epochs": 1}},
            "/training/global_batch",
            "32 images",
        ),
        ({"training": {"global_batch": 5, "epochs": 1}, "scaling": {"workers": 2}}, "/training/global_batch", "4, 6"),
        ({"training": {"global_batch": 8}}, "/training/steps", "exactly one of epochs and steps"),
        ({"recipe": "digits/resnet-21"}, "/recipe", "did you mean digits/resnet-20"),
        ({"kind": "dream"}, "/kind", "expected one of train, evaluate, analyse, ingest"),
    ],
)
def test_what_does_not_fit_is_refused(http: httpx.Client, changes: dict[str, Any], pointer: str, words: str) -> None:
    changes = {"recipe": None, **changes}
    found = errors(check(post(http, **changes), 422, "invalid-spec"))
    assert set(found) == {pointer}
    assert words in found[pointer]


def test_two_things_that_do_not_fit_the_dataset_are_told_together(http: httpx.Client) -> None:
    answer = post(
        http, recipe=None, model={"family": "imagenet", "depth": 18}, training={"global_batch": 2000, "epochs": 1}
    )
    assert set(errors(check(answer, 422, "invalid-spec"))) == {"/model", "/training/global_batch"}


def test_malformed_bodies(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", content=b'{"recipe"}', headers={"Content-Type": "application/json"})
    assert "line 1, column 10" in check(answer, 400, "malformed-body").detail
    answer = http.post("/v1/jobs", content=b"a: [", headers={"Content-Type": "application/yaml"})
    assert "line 2, column 1" in check(answer, 400, "malformed-body").detail
    answer = http.post("/v1/jobs", data={"recipe": "digits/resnet-20"})
    assert "application/yaml" in check(answer, 415, "unsupported-media-type").detail
    assert set(errors(check(http.post("/v1/jobs", json=[1]), 422, "invalid-spec"))) == {""}


def test_a_laughing_body_is_refused(http: httpx.Client) -> None:
    """Ten levels of ten aliases each would be ten thousand million nodes once they are walked through."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
    assert yaml.safe_load("\n".join(rows[:3]))["a2"]
    answer = http.post("/v1/jobs", content="\n".join(rows), headers={"Content-Type": "application/yaml"})
    assert "aliases" in check(answer, 400, "malformed-body").detail


def test_a_hundred_bad_fields_are_enough(http: httpx.Client) -> None:
    problem = check(http.post("/v1/jobs", json={f"field {n}": n for n in range(1000)}), 422, "invalid-spec")
    assert len(problem.errors) == 100
    assert "1003 fields are not acceptable; the first 100" in problem.detail


def test_text_that_the_database_cannot_hold(api_on_each: Api) -> None:
    with api_on_each.http() as http:
        for path in ("/v1/jobs/a%00b", "/v1/jobs/a%00b/logs", "/v1/jobs?label=a%00=b", "/v1/jobs?label=a=%00b"):
            answer = http.get(path)
            if answer.status_code != 200:
                assert answer.status_code in (404, 422), path
                check(answer, answer.status_code, "invalid-value" if answer.status_code == 422 else "job-not-found")
        for text in ("\\u0000", "\\ud800"):
            body = f'{{"recipe": "digits/resnet-20", "labels": {{"a": "{text}"}}}}'
            answer = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert "/labels/a" in check(answer, 400, "malformed-body").detail


def test_parameters_are_checked_together(http: httpx.Client) -> None:
    answer = http.get("/v1/jobs", params={"limit": "201", "state": ["QUEUED", "DONE"]})
    found = errors(check(answer, 422, "invalid-parameters"))
    assert set(found) == {"/query/limit", "/query/state/1"}
    assert "200" in found["/query/limit"]
    assert "SUCCEEDED" in found["/query/state/1"]
    answer = http.get("/v1/jobs", params={"label": ["a=1", "b"]})
    assert "key=value" in errors(check(answer, 422, "invalid-parameters"))["/query/label/1"]
    answer = http.get("/v1/jobs", params={"label": [f"key{n}=x" for n in range(33)]})
    assert "32" in errors(check(answer, 422, "invalid-parameters"))["/query/label"]
    job = http.post("/v1/jobs", json={"recipe": "digits/resnet-20"}).json()["id"]
    answer = http.get(f"/v1/jobs/{job}/checkpoints/newest")
    assert "best|latest" in errors(check(answer, 422, "invalid-parameters"))["/path/which"]
    for key in ("", "a b", "x" * 201):
        answer = http.post("/v1/jobs", json={"recipe": "digits/resnet-20"}, headers={"Idempotency-Key": key})
        assert set(errors(check(answer, 422, "invalid-parameters"))) == {"/header/idempotency-key"}


def test_things_that_are_not_there(http: httpx.Client, api: Api) -> None:
    check(http.get("/v1/jobs/job-x"), 404, "job-not-found")
    check(http.get("/v1/jobs", params={"project": "other"}), 404, "project-not-found")
    assert "resnet-20" in check(http.get("/v1/recipes/digits/resnet-2"), 404, "recipe-not-found").detail
    job = api.to(api.submit(), JobState.CANCELLED)
    check(http.get(f"/v1/jobs/{job.id}/checkpoints/best"), 404, "checkpoint-not-found")


def test_storage_that_refuses(sqlite_store: JobStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = s3.store(attempts=1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = ObjectStore(s3.bucket, endpoint=s3.endpoint, attempts=1)
    with serve(sqlite_store, s3, objects=wrong) as api, api.http() as http:
        job = api.running()
        problem = check(http.get(f"/v1/jobs/{job.id}/logs"), 502, "storage-refused")
        check(http.get(f"/v1/jobs/{job.id}/checkpoints"), 502, "storage-refused")
        assert s3.endpoint not in problem.model_dump_json()
    objects.check()


def test_a_database_that_does_not_answer(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> None:
    folder = tmp_path_factory.mktemp("database")
    store = new_store(folder)
    with serve(store, s3) as api, api.http() as http:
        assert http.get("/v1/jobs").status_code == 200
        (folder / "api.db").rename(folder / "elsewhere.db")
        (folder / "api.db").mkdir()  # what can't be opened as a file
        store._engine.dispose()
        answer = http.get("/v1/jobs")
        problem = check(answer, 503, "database-unavailable")
        assert answer.headers["retry-after"]
        assert "sqlite" not in problem.model_dump_json()


def test_the_table_covers_what_it_promises(sqlite_store: JobStore, s3: S3Server) -> None:
    """Each exception of the table, and one that nobody foresaw, raised in a route."""
    with serve(sqlite_store, s3) as api, api.http() as http:
        raised: list[Exception] = []

        @api.server.app.get("/raise")
        def fail() -> None:
            raise raised[-1]

        for cls, kind in problems.TABLE.items():
            raised.append(example(cls))
            answer = http.get("/raise")
            problem = check(answer, kind.status, kind.name)
            assert [answer.headers[name] for name, _ in kind.headers] == [value for _, value in kind.headers]
            if kind.status >= 500:
                assert SECRET not in answer.text
                assert answer.status_code == 502 or answer.headers["retry-after"].isdigit()
            assert problem.title == kind.title
        raised.append(RuntimeError(SECRET))
        answer = http.get("/raise")
        check(answer, 500, "internal-error")
        assert SECRET not in answer.text
        assert "Traceback" not in answer.text
        samples = httpx.get(f"{api.url}/metrics").text  # uvicorn closes the connection on which it failed
        assert 'resforge_http_requests_total{method="GET",route="/raise",status="500"} 1.0' in samples


def example(cls: type[Exception]) -> Exception:
    if issubclass(cls, problems.InvalidFields):
        return cls([])
    return DataError(SECRET, {}, Exception(SECRET)) if cls is DataError else cls(SECRET)


def test_types_are_stable_words_and_each_has_one_meaning() -> None:
    kinds = list(problems.TABLE.values())
    assert all(re.fullmatch(r"/problems/[a-z]+(-[a-z]+)*", kind.type) for kind in kinds)
    by_type: dict[str, set[tuple[int, str]]] = {}
    for kind in kinds:
        by_type.setdefault(kind.type, set()).add((kind.status, kind.title))
    assert [name for name, meanings in by_type.items() if len(meanings) > 1] == []
