"""The documentation that the API gives of itself: whole, true and with examples that work."""

import json
from typing import Any

import httpx
import pytest
import yaml

from resforge.spec import TrainSpec
from services.api import examples
from services.api.admission import parse_spec
from services.api.studies import parse_study
from tests.services.api.harness import Api


@pytest.fixture
def schema(api: Api) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{api.url}/openapi.json").json()
    return answer


def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_there(schema: dict[str, Any]) -> None:
    assert set(operations(schema)) == {
        "POST /v1/jobs", "POST /v1/plans", "GET /v1/jobs", "GET /v1/jobs/{job_id}", "DELETE /v1/jobs/{job_id}",
        "POST /v1/jobs/{job_id}/cancel", "GET /v1/jobs/{job_id}/attempts", "GET /v1/jobs/{job_id}/events",
        "GET /v1/jobs/{job_id}/logs", "GET /v1/jobs/{job_id}/metrics", "GET /v1/jobs/{job_id}/checkpoints",
        "GET /v1/jobs/{job_id}/checkpoints/{which}", "GET /v1/jobs/{job_id}/checkpoints/{which}/download",
        "GET /v1/jobs/{job_id}/report", "POST /v1/studies", "GET /v1/studies", "GET /v1/studies/{study_id}",
        "DELETE /v1/studies/{study_id}", "POST /v1/studies/{study_id}/cancel", "GET /v1/studies/{study_id}/report",
        "GET /v1/studies/{study_id}/report.html", "GET /v1/recipes", "GET /v1/recipes/{name}", "GET /v1/models",
        "GET /v1/datasets", "DELETE /v1/datasets/{name}",
        "GET /healthz", "GET /readyz", "GET /metrics",
    }  # fmt: skip


def test_everything_under_v1_wants_a_key_and_tells_its_errors(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema).items():
        assert operation["summary"], name
        under = "/v1/" in name
        assert bool(operation.get("security")) == under, name
        if under:
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]
                assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert "422" not in operation["responses"], name


def test_references_lead_somewhere(schema: dict[str, Any]) -> None:
    def references(node: Any) -> Any:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                yield from references(item)

    found = set(references(schema))
    assert "#/components/schemas/TrainSpec" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in schema["components"]["schemas"], reference
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_every_body_has_examples_and_each_is_a_job(schema: dict[str, Any], http: httpx.Client) -> None:
    bodies = {name: op["requestBody"] for name, op in operations(schema).items() if "requestBody" in op}
    assert set(bodies) == {"POST /v1/jobs", "POST /v1/plans", "POST /v1/studies"}
    for example in bodies["POST /v1/studies"]["content"]["application/json"]["examples"].values():
        assert parse_study(example["value"])
    content = bodies["POST /v1/jobs"]["content"]
    assert set(content) == {"application/json", "application/yaml"}
    for example in content["application/json"]["examples"].values():
        assert parse_spec(example["value"]).kind == example["value"].get("kind", "train")
    for example in content["application/yaml"]["examples"].values():
        assert isinstance(parse_spec(yaml.safe_load(example["value"])), TrainSpec)
        answer = http.post("/v1/jobs", content=example["value"], headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 202
    assert content["application/json"]["examples"] == json.loads(json.dumps(examples.JOBS))


def test_streams_are_told_of(schema: dict[str, Any]) -> None:
    for stream in ("events", "logs", "metrics"):
        content = operations(schema)[f"GET /v1/jobs/{{job_id}}/{stream}"]["responses"]["200"]["content"]
        assert {"application/json", "text/event-stream"} <= set(content)


def test_a_studys_report_is_a_page(schema: dict[str, Any]) -> None:
    answers = operations(schema)["GET /v1/studies/{study_id}/report.html"]["responses"]
    assert set(answers["200"]["content"]) == {"text/html"}


def test_the_pages_for_people_are_served(api: Api) -> None:
    for path in ("/docs", "/redoc"):
        answer = httpx.get(api.url + path)
        assert answer.status_code == 200
        assert "/openapi.json" in answer.text
