"""Pools at admission, over the wire: what could never run is refused at POST, with what would be accepted."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from services.errors import InvalidPools
from services.settings import Settings
from services.store.store import JobStore
from tests.s3 import S3Server
from tests.services.api.harness import Api, serve
from tests.services.launchers.example import POOLS

pytestmark = pytest.mark.stack

KUBERAY = {"launcher": "kuberay", "pools_file": str(POOLS), "trainer_image": "registry.example/trainer:1"}


@pytest.fixture
def pooled(sqlite_store: JobStore, s3: S3Server) -> Iterator[Api]:
    with serve(sqlite_store, s3, **KUBERAY) as api:
        yield api


def post(api: Api, scaling: dict[str, Any]) -> httpx.Response:
    with api.http() as http:
        return http.post("/v1/jobs", json={"recipe": "digits/resnet-20", "scaling": scaling})


@pytest.mark.parametrize(
    "scaling",
    [
        {},  # the first pool
        {"pool": "cpu", "workers": 2},
        {"pool": "h100", "workers": 64, "gpus_per_worker": 1, "cpus_per_worker": 11},
    ],
)
def test_a_job_that_a_pool_can_hold(pooled: Api, scaling: dict[str, Any]) -> None:
    answer = post(pooled, scaling)
    assert answer.status_code == 202, answer.text
    assert answer.json()["spec"]["scaling"]["pool"] == scaling.get("pool")


@pytest.mark.parametrize(
    ("scaling", "pointer", "words"),
    [
        ({"pool": "tpu"}, "/scaling/pool", "there are: h100, cpu"),
        ({"pool": "cpu", "gpus_per_worker": 1}, "/scaling/gpus_per_worker", "must be 0"),
        (
            {"pool": "h100", "workers": 64, "gpus_per_worker": 1, "cpus_per_worker": 12},
            "/scaling/workers",
            "at most 56 workers, or 64 with cpus_per_worker of at most 11.25",
        ),
        ({"pool": "cpu", "cpus_per_worker": 16}, "/scaling/cpus_per_worker", "has 15 CPUs"),
        ({"pool": "cpu", "workers": 64, "cpus_per_worker": 1}, "/scaling/workers", "at most 60 workers"),
    ],
)
def test_a_job_that_its_pool_could_never_hold(pooled: Api, scaling: dict[str, Any], pointer: str, words: str) -> None:
    answer = post(pooled, scaling)
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["pointer"] == pointer
    assert words in problem["message"]


def test_a_service_without_pools_says_so(api: Api) -> None:
    answer = post(api, {"pool": "h100"})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["pointer"], problem["given"]) == ("/scaling/pool", '"h100"')
    assert "no pools" in problem["message"]
    assert post(api, {}).status_code == 202


def test_a_study_tells_its_own_field(pooled: Api) -> None:
    with pooled.http() as http:
        study = {
            "study": "depth",
            "setting": "digits",
            "depths": [8],
            "seeds": 1,
            "overrides": {"scaling": {"pool": "x"}},
        }
        answer = http.post("/v1/studies", json=study)
    assert answer.status_code == 422, answer.text
    pointers = {problem["pointer"] for problem in answer.json()["errors"]}
    assert pointers == {"/overrides/scaling/pool"}, answer.text


def test_settings_that_do_not_go_together(sqlite_store: JobStore, s3: S3Server) -> None:
    for missing in ("pools_file", "trainer_image"):
        given = {key: value for key, value in KUBERAY.items() if key != missing}
        with pytest.raises(ValidationError, match=f"RESFORGE_LAUNCHER=kuberay needs RESFORGE_{missing.upper()}"):
            Settings(database_url="sqlite:///unused", s3_bucket="bucket", **given)  # type: ignore[arg-type]
    with (
        pytest.raises(InvalidPools, match="can't be read"),
        serve(sqlite_store, s3, **{**KUBERAY, "pools_file": "/nowhere"}),
    ):
        raise AssertionError("an API without its pools must not start")
