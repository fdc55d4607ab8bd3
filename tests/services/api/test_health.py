"""What machines ask: health, readiness with the part that is missing, and metrics."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import resforge
from resforge.jobs import JobState
from resforge.metrics import API_METRICS
from services.api.app import create_app
from services.api.routes import health
from services.store import connect
from services.store.builtin import BUILTIN
from services.store.store import JobStore
from tests.s3 import S3Server, start_s3
from tests.services.api.harness import PROJECT, SPEC, Api, serve, serve_app, settings_for
from tests.services.exposition import check_exposition

pytestmark = pytest.mark.stack


def ready(api: Api) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{api.url}/readyz")
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "/problems/not-ready"
        assert answer.headers["retry-after"]
    return answer.status_code, answer.json()


def tick(store: JobStore) -> None:
    lease = store.acquire_lease("controller", "test", 600)
    assert lease is not None
    store.record_tick(lease)


def test_healthz_needs_nothing(api: Api) -> None:
    assert httpx.get(f"{api.url}/healthz").json() == {"status": "ok"}


def test_ready_when_all_parts_are(store: JobStore, s3: S3Server) -> None:
    asked: list[str] = []
    with serve(store, s3, app_options={"checks": {"launcher": lambda: asked.append("nodes")}}) as api:
        tick(store)
        status, answer = ready(api)
        parts = ("database", "object_storage", "controller", "launcher")
        assert (status, answer) == (200, {"parts": dict.fromkeys(parts, "ready")})
        assert asked == ["nodes"]


def test_says_that_no_controller_works(fresh_api: Api) -> None:
    status, answer = ready(fresh_api)
    assert (status, answer["detail"]) == (503, "not ready: controller")
    assert answer["parts"]["database"] == answer["parts"]["object_storage"] == "ready"
    assert "no controller has ever" in answer["parts"]["controller"]


def test_leaves_out_what_it_is_told_to(fresh_api: Api) -> None:
    answer = httpx.get(f"{fresh_api.url}/readyz", params={"exclude": ["controller", "object_storage"]})
    assert (answer.status_code, answer.json()) == (200, {"parts": {"database": "ready"}})
    wrong = httpx.get(f"{fresh_api.url}/readyz", params={"exclude": "contoller"})
    assert wrong.status_code == 422
    assert "object_storage" in wrong.text  # what would be accepted


def test_says_that_the_controller_has_fallen_silent(sqlite_url: str, s3: S3Server) -> None:
    engine = connect(sqlite_url)
    late = datetime.now(UTC) - timedelta(seconds=300)
    tick(JobStore(engine, clock=lambda: late))
    store = JobStore(engine)
    store.create_project("demo")
    with serve(store, s3) as api:
        status, answer = ready(api)
        assert (status, answer["detail"]) == (503, "not ready: controller")
        assert re.search(r"for 30\d s", answer["parts"]["controller"])
        samples = httpx.get(f"{api.url}/metrics").text
        age = re.search(r"^resforge_controller_tick_age_seconds (\S+)$", samples, re.M)
        assert age is not None
        assert 299 < float(age[1]) < 400
    engine.dispose()


def test_says_that_storage_is_down_and_up_again(sqlite_store: JobStore, tmp_path: Path) -> None:
    s3 = start_s3(tmp_path)
    try:
        with serve(sqlite_store, s3) as api:
            tick(sqlite_store)
            assert ready(api)[0] == 200
            s3.stop()
            status, answer = ready(api)
            assert (status, answer["detail"]) == (503, "not ready: object_storage")
            assert answer["parts"]["object_storage"] == "Object storage does not answer"
            s3.start()
            assert ready(api)[0] == 200
    finally:
        s3.stop()


def test_says_that_the_database_is_of_another_version(sqlite_store: JobStore, s3: S3Server) -> None:
    with serve(sqlite_store, s3) as api:
        with sqlite_store._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
        status, answer = ready(api)
        assert status == 503
        assert answer["parts"]["database"] == "The database is of another version"


def test_without_a_database_it_still_tells_what_it_knows_itself(sqlite_url: str, s3: S3Server) -> None:
    engine = connect(sqlite_url)
    store = JobStore(engine)
    store.create_project("demo")
    with serve(store, s3) as api:
        assert "resforge_jobs" in httpx.get(f"{api.url}/metrics").text
        engine.dispose()
        path = Path(str(engine.url.database))
        path.unlink()
        path.mkdir()  # which can't be opened as a file
        text = httpx.get(f"{api.url}/metrics").text
        assert "resforge_http_requests_total" in text
        assert "resforge_jobs" not in text
        status, answer = ready(api)
        assert status == 503
        assert answer["parts"]["database"] == "The database does not answer"
        assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_a_part_that_hangs_is_not_ready(sqlite_store: JobStore, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DEADLINE_S", 0.1)
    with serve(sqlite_store, s3, app_options={"checks": {"launcher": lambda: time.sleep(1)}}) as api:
        _, answer = ready(api)
        assert answer["parts"]["launcher"] == "no answer within 0.1 s"
        assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_every_metric_of_the_api_is_there_and_no_other(sqlite_url: str, s3: S3Server) -> None:
    engine = connect(sqlite_url)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    store = JobStore(engine, clock=lambda: hour_ago)
    store.create_project(PROJECT)
    key = store.create_key(PROJECT)[1]
    tick(store)
    job = store.submit(PROJECT, SPEC, BUILTIN[0])[0]
    app = create_app(settings_for(s3, database_url=sqlite_url))
    with (
        serve_app(app) as (_, url),
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http,
    ):
        http.get(f"/v1/jobs/{job.id}")
        http.get("/v1/recipes/digits/resnet-20")
        http.get("/wp-login.php")
        http.request("PROPFIND", "/v1/jobs")
        http.get("/readyz")
        answer = http.get("/metrics")
    engine.dispose()
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    check_exposition(text, API_METRICS)
    counts = dict(re.findall(r'^resforge_jobs\{state="(\w+)"\} (\S+)$', text, re.M))
    assert counts == {state: "1.0" if state == "QUEUED" else "0.0" for state in JobState}
    oldest = re.search(r"^resforge_queue_oldest_seconds (\S+)$", text, re.M)
    assert oldest is not None
    assert 3600 <= float(oldest[1]) < 3700
    assert re.search(r'^resforge_s3_seconds_count\{operation="check",outcome="ok"\} 1.0$', text, re.M)
    assert re.search(r'^resforge_database_seconds_count\{kind="read",outcome="ok"\} [1-9]', text, re.M)
    assert f'resforge_build_info{{component="api",version="{resforge.__version__}"}} 1.0' in text
    requests = re.findall(
        r'^resforge_http_requests_total\{method="(.+?)",route="(.+?)",status="(.+?)"\} 1.0$', text, re.M
    )
    assert set(requests) == {
        ("GET", "/v1/jobs/{job_id}", "200"),
        ("GET", "/v1/recipes/{name:path}", "200"),
        ("GET", "unmatched", "404"),
        ("GET", "/readyz", "503"),
        ("other", "/v1/jobs", "405"),
    }


def test_nobody_waits(fresh_api: Api) -> None:
    assert "\nresforge_queue_oldest_seconds 0.0\n" in httpx.get(f"{fresh_api.url}/metrics").text
