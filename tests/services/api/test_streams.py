"""Events, logs and metrics over HTTP from a real S3 server: pages of JSON, and streams that are taken up again."""

import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resforge.jobs import Job, JobState
from resforge.storage import Stream
from services.store.store import JobStore
from tests.s3 import start_s3
from tests.services.api.harness import Api, Sse, evaluation, line, point, read_sse, serve, wait_for

pytestmark = pytest.mark.stack

SSE = {"Accept": "text/event-stream"}


def pages(http: httpx.Client, path: str, **params: Any) -> list[list[dict[str, Any]]]:
    """Every page, each asked for by what the one before says."""
    found = []
    while True:
        answer = http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append(page["items"])
        if page["next_cursor"] is None:
            return found
        params["after"] = page["next_cursor"]


def follow(http: httpx.Client, path: str, last: str | None = None, take: int | None = None) -> list[Sse]:
    """The events of one connection: all up to its end, or the first `take`."""
    headers = SSE if last is None else {**SSE, "Last-Event-ID": last}
    with http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(itertools.islice(read_sse(response), take))


def lines_of(events: list[Sse]) -> list[str]:
    return [event.data["line"] for event in events if event.event is None]


@pytest.fixture
def job(api: Api) -> Job:
    """A running job in its second attempt, with log lines in several objects of both."""
    job = api.retry(api.running())
    for attempt, part, numbers in ((1, 1, (1, 2)), (1, 2, (3,)), (2, 1, (4, 5, 6)), (2, 3, (7,))):
        api.append(job, Stream.LOGS, part, [line(f"line {n}") for n in numbers], attempt=attempt)
    return job


def test_logs_by_page(api: Api, http: httpx.Client, job: Job) -> None:
    path = f"/v1/jobs/{job.id}/logs"
    [whole] = pages(http, path)
    assert [item["line"] for item in whole] == [f"line {n}" for n in range(1, 8)]
    assert [item["id"] for item in whole] == ["1.1.1", "1.1.2", "1.2.1", "2.1.1", "2.1.2", "2.1.3", "2.3.1"]
    for limit in (1, 2, 3, 7):
        parts = pages(http, path, limit=limit)
        assert [len(part) for part in parts[:-1]] == [limit] * (len(parts) - 1)
        assert list(itertools.chain(*parts)) == whole
    for index, item in enumerate(whole):
        assert pages(http, path, after=item["id"]) == [whole[index + 1 :]]


def test_metrics_carry_points_and_evaluations(api: Api, http: httpx.Client, job: Job) -> None:
    nothing = point(3).model_copy(update={"loss": None})
    api.append(job, Stream.METRICS, 1, [point(1), evaluation(2, 0.75), nothing])
    [items] = pages(http, f"/v1/jobs/{job.id}/metrics")
    assert [(item["kind"], item["step"], item["id"]) for item in items] == [
        ("train", 1, "1.1.1"), ("eval", 2, "1.1.2"), ("train", 3, "1.1.3"),
    ]  # fmt: skip
    assert (items[0]["loss"], items[1]["top1"], items[2]["loss"]) == (0.5, 0.75, None)


def test_events_tell_every_transition(api: Api, http: httpx.Client) -> None:
    job = api.ended()
    path = f"/v1/jobs/{job.id}/events"
    [events] = pages(http, path)
    changes = [(event["type"], event["before"], event["after"]) for event in events]
    assert changes == [
        ("JobSubmitted", None, "QUEUED"),
        ("AttemptStateChanged", None, "PENDING"),
        ("JobStateChanged", "QUEUED", "STARTING"),
        ("JobStateChanged", "STARTING", "RUNNING"),
        ("JobStateChanged", "RUNNING", "SUCCEEDED"),
    ]
    assert list(itertools.chain(*pages(http, path, limit=2))) == events
    followed = follow(http, path)
    assert [event.data for event in followed[:-1]] == events
    assert [event.id for event in followed[:-1]] == [str(event["id"]) for event in events]
    assert followed[-1] == Sse(None, "end", {"state": "SUCCEEDED"})
    assert [event.data for event in follow(http, path, last=str(events[2]["id"]))[:-1]] == events[3:]


def test_follows_until_the_job_has_ended(api: Api, http: httpx.Client, job: Job) -> None:
    with http.stream("GET", f"/v1/jobs/{job.id}/logs", headers=SSE) as response:
        events = read_sse(response)
        assert lines_of(list(itertools.islice(events, 7))) == [f"line {n}" for n in range(1, 8)]
        api.append(job, Stream.LOGS, 4, [line("line 8")], attempt=2)
        assert lines_of([next(events)]) == ["line 8"]
        # Written just before the end: it comes before the end event, however the looks fall.
        api.append(job, Stream.LOGS, 5, [line("line 9")], attempt=2)
        api.to(job, JobState.SUCCEEDED)
        *rest, end = events
        assert lines_of(rest) == ["line 9"]
        assert end == Sse(None, "end", {"state": "SUCCEEDED"})


def test_a_new_attempt_goes_on_in_the_same_stream(api: Api, http: httpx.Client) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("first attempt")])
    with http.stream("GET", f"/v1/jobs/{job.id}/logs", headers=SSE) as response:
        events = read_sse(response)
        assert lines_of([next(events)]) == ["first attempt"]
        job = api.retry(job)
        api.append(job, Stream.LOGS, 1, [line("second attempt", attempt=2)], attempt=2)
        found = next(events)
        assert (found.id, lines_of([found])) == ("2.1.1", ["second attempt"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(takes=st.lists(st.integers(1, 3), max_size=6))
def test_resumes_without_loss_or_repetition(api: Api, http: httpx.Client, job: Job, takes: list[int]) -> None:
    if api.store.job(job.project, job.id).state is JobState.RUNNING:
        api.to(job, JobState.SUCCEEDED)
    found: list[Sse] = []
    for take in [*takes, None]:
        found += follow(http, f"/v1/jobs/{job.id}/logs", last=found[-1].id if found else None, take=take)
        if found[-1].event == "end":
            break
    assert lines_of(found) == [f"line {n}" for n in range(1, 8)]
    assert [event.event for event in found] == [None] * 7 + ["end"]


def test_after_is_where_a_stream_without_last_event_id_begins(http: httpx.Client, api: Api, job: Job) -> None:
    api.to(job, JobState.FAILED)
    path = f"/v1/jobs/{job.id}/logs?after=2.1.1"
    assert lines_of(follow(http, path)) == ["line 5", "line 6", "line 7"]
    assert lines_of(follow(http, path, last="2.1.3")) == ["line 7"]


def test_lines_that_cannot_be_read_are_passed_over(api: Api, http: httpx.Client) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("one"), b'{"half": ', b"[]", b'{"at": 1}', line("two"), b'{"at": "2026'])
    path = f"/v1/jobs/{job.id}/logs"
    [items] = pages(http, path)
    assert [(item["id"], item["line"]) for item in items] == [("1.1.1", "one"), ("1.1.5", "two")]
    with http.stream("GET", path, headers=SSE) as response:
        events = read_sse(response)
        assert lines_of(list(itertools.islice(events, 2))) == ["one", "two"]
        # The last line was still being written when it was read. It is whole now.
        api.append(job, Stream.LOGS, 1, [*[line("-")] * 5, line("three")])
        assert lines_of([next(events)]) == ["three"]
        api.to(job, JobState.SUCCEEDED)
        assert [event.event for event in events] == ["end"]


def test_a_bad_line_at_the_end_of_a_page_is_not_the_end(api: Api, http: httpx.Client) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("1"), line("2"), b"bad", line("3"), b"bad", b"bad", line("4"), b"bad"])
    for limit in range(1, 9):
        parts = pages(http, f"/v1/jobs/{job.id}/logs", limit=limit)
        assert [item["line"] for part in parts for item in part] == ["1", "2", "3", "4"]


def test_text_of_any_kind_comes_through(api: Api, http: httpx.Client) -> None:
    text = "a\nb\r\nc\u2028d\x85e\x0bf\0g\x1b[31m 図 \U0001f642 data: x\n\nevent: end\n\n"
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line(text)])
    api.to(job, JobState.SUCCEEDED)
    assert lines_of(follow(http, f"/v1/jobs/{job.id}/logs")) == [text]
    with api.client() as client:
        assert [entry.line for entry in client.follow_logs(job.id)] == [text]


@pytest.mark.parametrize("cursor", ["x", "1.2", "-1.0.0", "1.2.3.4", "９", "9" * 30])
def test_what_is_no_cursor_is_refused(http: httpx.Client, job: Job, cursor: str) -> None:
    answers = [http.get("/v1/jobs", params={"cursor": cursor})]
    for stream in ("logs", "metrics", "events"):
        path = f"/v1/jobs/{job.id}/{stream}"
        answers.append(http.get(path, params={"after": cursor}))
        answers.append(http.get(path, params={"after": cursor}, headers=SSE))
        if cursor.isascii():
            answers.append(http.get(path, headers={**SSE, "Last-Event-ID": cursor}))
    for answer in answers:
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-cursor")


def test_connections_share_a_tailer_and_leave_nothing_behind(fresh_api: Api) -> None:
    api, job = fresh_api, fresh_api.running()
    api.append(job, Stream.LOGS, 1, [line("hello")])
    tails = api.server.app.state.services.tails
    path = f"/v1/jobs/{job.id}/logs"
    with api.http() as http, api.http() as one, api.http() as two:

        def open_streams() -> str:
            rows = http.get("/metrics").text.splitlines()
            [row] = [row for row in rows if row.startswith("resforge_http_streams ")]
            return row.split()[1]

        assert open_streams() == "0.0"
        with one.stream("GET", path, headers=SSE) as first, two.stream("GET", path, headers=SSE) as second:
            streams = [read_sse(first), read_sse(second)]
            assert [next(stream).data["line"] for stream in streams] == ["hello", "hello"]
            assert (open_streams(), tails.active) == ("2.0", 1)
        wait_for(lambda: open_streams() == "0.0", "the end of both streams")
        assert tails.active == 0


def test_the_server_stops_while_streams_are_open(fresh_api: Api) -> None:
    job = fresh_api.running()
    fresh_api.append(job, Stream.LOGS, 1, [line("hello")])
    with fresh_api.http() as http, http.stream("GET", f"/v1/jobs/{job.id}/logs", headers=SSE) as response:
        stream = read_sse(response)
        assert lines_of([next(stream)]) == ["hello"]
        fresh_api.server.should_exit = True
        # It is over in good order, rather than cut off after the server's grace, and the client takes it up again.
        assert list(stream) == []


def test_storage_that_does_not_answer_is_waited_for(sqlite_store: JobStore, tmp_path: Path) -> None:
    s3 = start_s3(tmp_path)
    try:
        with serve(sqlite_store, s3) as api, api.http() as http:
            job = api.running()
            api.append(job, Stream.LOGS, 1, [line("before")])
            path = f"/v1/jobs/{job.id}/logs"
            with http.stream("GET", path, headers=SSE) as response:
                stream = read_sse(response)
                assert lines_of([next(stream)]) == ["before"]
                s3.stop()
                page = http.get(path)
                assert (page.status_code, page.json()["type"]) == (503, "/problems/storage-unavailable")
                assert page.headers["retry-after"]
                s3.start()
                api.append(job, Stream.LOGS, 2, [line("after")])
                assert lines_of([next(stream)]) == ["after"]
    finally:
        s3.stop()
