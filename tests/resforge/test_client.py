"""The client against a real API, directly and over a line that breaks at bad moments."""

import itertools
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resforge import Client
from resforge.client import (
    ApiError,
    Conflict,
    NotAuthenticated,
    NotConnected,
    NotFound,
    Refused,
    Unavailable,
    WaitTimeout,
    connection,
)
from resforge.jobs import JobState
from resforge.resources import LogEntry
from resforge.sse import Message, messages
from resforge.storage import Stream
from tests.s3 import free_port, start_s3
from tests.services.api.harness import PROJECT, SPEC, Api, evaluation, line, new_store, point, serve

pytestmark = pytest.mark.stack

RECIPE = {"recipe": "digits/resnet-20"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    s3 = start_s3(tmp_path_factory.mktemp("s3"))
    try:
        with serve(new_store(tmp_path_factory.mktemp("database")), s3) as api:
            yield api
    finally:
        s3.stop()


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with api.client() as client:
        yield client


class BrokenLine:
    """A TCP proxy to the API. For each connection it takes the next limit: so many bytes of answer and no more."""

    def __init__(self, target: str, limits: Iterable[int | None]) -> None:
        self._target = urlsplit(target)
        self._limits = itertools.chain(limits, itertools.repeat(None))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._relay, args=(near, next(self._limits)), daemon=True).start()

    def _relay(self, near: socket.socket, limit: int | None) -> None:
        far = socket.create_connection((self._target.hostname, self._target.port))
        threading.Thread(target=_pump, args=(near, far, None), daemon=True).start()
        _pump(far, near, limit)

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    passed = 0
    try:
        while data := source.recv(65536):
            if limit is not None and passed + len(data) > limit:
                target.sendall(data[: limit - passed])
                break
            target.sendall(data)
            passed += len(data)
    except OSError:
        pass
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def line_of(api: Api, *limits: int | None) -> Iterator[tuple[Client, BrokenLine]]:
    with closing(BrokenLine(api.url, limits)) as proxy, Client(proxy.url, api.key, patience_s=20) as client:
        yield client, proxy


def answering(status: str, body: bytes) -> str:
    """The address of a server that gives everyone this answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            near, _ = listener.accept()
            with near:
                near.recv(65536)
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                near.sendall(head.encode() + body)

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


# Where to connect


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RESFORGE_URL", "RESFORGE_API_KEY", "RESFORGE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RESFORGE_HOME", str(tmp_path))
    return tmp_path


def write(home: Path, **fields: str) -> None:
    document = {"url": "http://127.0.0.1:1234/", "api_key": "of-the-file", "s3_bucket": "resforge", **fields}
    (home / "connection.json").write_text(json.dumps(document))


def test_connection_is_read_from_the_home(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(home)
    found = connection()
    assert (found.url, found.api_key, found.s3_bucket) == ("http://127.0.0.1:1234", "of-the-file", "resforge")
    other = tmp_path / "other"
    other.mkdir()
    write(other, api_key="of-another")
    assert connection(home=other).api_key == "of-another"
    monkeypatch.delenv("RESFORGE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    with pytest.raises(NotConnected, match=r"user/\.resforge/connection\.json"):
        connection()


def test_the_environment_goes_before_the_file_and_arguments_before_both(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home)
    monkeypatch.setenv("RESFORGE_API_KEY", "of-the-environment")
    assert connection().api_key == "of-the-environment"
    assert connection().url == "http://127.0.0.1:1234"
    monkeypatch.setenv("RESFORGE_URL", "http://elsewhere:80/")
    assert connection().url == "http://elsewhere:80"
    assert connection().s3_bucket is None  # the file is of another stack
    given_ = connection("http://given", "key")
    assert (given_.url, given_.api_key) == ("http://given", "key")


def test_the_files_key_goes_to_no_other_address(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home)
    monkeypatch.setenv("RESFORGE_URL", "http://elsewhere")
    with pytest.raises(NotConnected, match="RESFORGE_API_KEY") as caught:
        connection()
    assert "of-the-file" not in str(caught.value)
    monkeypatch.setenv("RESFORGE_URL", "http://127.0.0.1:1234")
    assert connection().api_key == "of-the-file"


def test_says_what_to_try_when_nothing_is_known(home: Path) -> None:
    with pytest.raises(NotConnected, match="resforge up"):
        connection()
    with pytest.raises(NotConnected, match="RESFORGE_API_KEY"):
        connection("http://somewhere")
    for text in ("{", "[]", '{"url": 1}', "\xff"):
        (home / "connection.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(NotConnected, match=r"connection\.json can't be read"):
            connection()


def test_the_client_reads_its_own_connection(home: Path, api: Api) -> None:
    write(home, url=api.url, api_key=api.key)
    (home / "connection.json").chmod(stat.S_IRUSR)
    with Client() as client:
        assert client.submit(RECIPE).project == PROJECT


def test_importing_it_is_light() -> None:
    code = "import sys, resforge.client; print([m for m in ('httpx', 'boto3', 'torch', 'fastapi') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Jobs


def test_submits_lists_cancels_and_deletes(api: Api, client: Client) -> None:
    job = client.submit({**RECIPE, "labels": {"of": "this-test"}})
    assert client.job(job.id) == job
    same = client.submit(SPEC.model_copy(update={"labels": {"of": "this-test"}}))
    found = client.jobs(labels={"of": "this-test"}, states=[JobState.QUEUED], project=PROJECT, page_size=1)
    assert [item.id for item in found] == [same.id, job.id]
    cancelled = client.cancel(job.id, generation=1)
    assert (cancelled.cancel_requested, cancelled.generation) == (True, 2)
    with pytest.raises(Conflict, match="generation"):
        client.cancel(same.id, generation=9)
    with pytest.raises(Conflict, match="QUEUED"):
        client.delete(same.id)
    api.to(job, JobState.CANCELLED)
    with pytest.raises(Conflict, match="ended"):
        client.cancel(job.id)
    assert client.delete(job.id).deleted == job.id
    with pytest.raises(NotFound, match=job.id):
        client.job(job.id)


def test_pages_are_fetched_as_they_are_asked_for(api: Api, client: Client) -> None:
    for _ in range(5):
        api.submit(SPEC.model_copy(update={"labels": {"for": "paging"}}))
    with line_of(api) as (counted, _):
        jobs = counted.jobs(labels={"for": "paging"}, page_size=2)
        assert len({job.id for job in jobs}) == 5


def test_a_submission_whose_answer_was_lost_is_one_job(api: Api) -> None:
    spec = {**RECIPE, "labels": {"lost": "answer"}}
    with line_of(api, 0, 0) as (client, proxy):
        job = client.submit(spec)
        assert proxy.connections == 3
        assert [item.id for item in client.jobs(labels={"lost": "answer"})] == [job.id]


def test_what_may_not_happen_twice_is_not_sent_twice(api: Api) -> None:
    job = api.ended()
    with line_of(api, 0) as (client, proxy):
        with pytest.raises(Unavailable):
            client.delete(job.id)
        assert proxy.connections == 1


def test_errors_by_what_a_caller_can_do(api: Api, client: Client) -> None:
    with pytest.raises(Refused) as refused:
        client.submit({"recipe": "digits/resnet-20", "bogus": 1, "scaling": {"workers": 0}})
    assert [item.pointer for item in refused.value.errors] == ["/scaling/workers", "/bogus"]
    assert "/scaling/workers: " in str(refused.value)
    assert refused.value.problem.type == "/problems/invalid-spec"
    with pytest.raises(NotFound) as missing:
        client.checkpoint("job-x", "best")
    assert missing.value.problem.status == 404
    with Client(api.url, "rf_wrong_key") as stranger, pytest.raises(NotAuthenticated):
        stranger.job("job-x")
    with pytest.raises(NotFound):
        list(client.follow_logs("job-x"))
    with pytest.raises(NotFound):
        client.wait("job-x")


def test_says_who_does_not_answer_and_what_to_try() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, "key", patience_s=0) as client:
        for call in (lambda: client.job("x"), lambda: client.delete("x"), lambda: list(client.follow_logs("x"))):
            with pytest.raises(Unavailable, match=f"{url}.*resforge up"):
                call()


def test_answers_that_are_none_of_ours() -> None:
    with Client(answering("200 OK", b"<html>hello"), "key") as client, pytest.raises(ApiError, match="Resforge API"):
        client.job("x")
    with Client(answering("418 Teapot", b"short"), "key") as client, pytest.raises(ApiError, match="418: short"):
        client.job("x")
    with Client(answering("502 Bad Gateway", b"<html>"), "key") as client, pytest.raises(Unavailable, match="502"):
        client.delete("x")


# Watching


def test_watch_gives_the_job_each_time_it_changes(api: Api, client: Client) -> None:
    job = api.submit()
    states = []
    for seen in client.watch(job.id, every_s=0.01):
        states.append(seen.state)
        if seen.state is JobState.QUEUED:
            job = api.start(job)
        elif seen.state is JobState.STARTING:
            job = api.to(job, JobState.RUNNING)
        elif seen.state is JobState.RUNNING:
            job = api.to(job, JobState.SUCCEEDED)
    assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert [seen.state for seen in client.watch(job.id)] == ["SUCCEEDED"]


def test_watch_outlives_an_api_that_is_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resforge.client.PAUSES", (0.01, 0.01, 0.01))
    job = api.running()
    # More tries fail than one request makes; the job is seen all the same.
    with line_of(api, *[0] * 9) as (client, proxy):
        seen = client.watch(job.id, every_s=0.01)
        assert next(seen).state is JobState.RUNNING
        assert proxy.connections == 10


def test_wait(api: Api, client: Client) -> None:
    job = api.running()
    with pytest.raises(WaitTimeout, match="RUNNING"):
        client.wait(job.id, 0.05, every_s=0.01)
    with pytest.raises(TimeoutError):
        client.wait(job.id, 0)
    api.to(job, JobState.FAILED)
    assert client.wait(job.id, 30).state is JobState.FAILED


# What happens to a job


def test_lists_what_happened(api: Api, client: Client) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("one"), line("two")])
    api.append(job, Stream.METRICS, 1, [point(1), evaluation(1, 0.5)])
    api.checkpoint(job, 10, top1=0.5)
    assert [attempt.number for attempt in client.attempts(job.id)] == [1]
    events = client.events(job.id)
    assert events[0].type == "JobSubmitted"
    assert client.events(job.id, after=events[0].id) == events[1:]
    logs = client.logs(job.id)
    assert [entry.line for entry in logs] == ["one", "two"]
    assert client.logs(job.id, after=logs[0].id) == logs[1:]
    points = client.metrics(job.id)
    assert [entry.kind for entry in points] == ["train", "eval"]
    assert client.metrics(job.id, after=points[0].id) == points[1:]
    [checkpoint] = client.checkpoints(job.id)
    assert (
        checkpoint == client.checkpoint(job.id) == client.checkpoint(job.id, 10) == client.checkpoint(job.id, "latest")
    )


def test_lists_more_than_a_page(api: Api, client: Client) -> None:
    job = api.running()
    for part in range(1, 6):
        api.append(job, Stream.LOGS, part, [line(f"{part}-{number}") for number in range(300)])
    assert [entry.line for entry in client.logs(job.id)] == [f"{p}-{n}" for p in range(1, 6) for n in range(300)]


def test_follows_events_and_metrics(api: Api, client: Client) -> None:
    job = api.running()
    api.append(job, Stream.METRICS, 1, [point(1), evaluation(1, 0.5), point(2)])
    api.to(job, JobState.SUCCEEDED)
    assert list(client.follow_events(job.id)) == client.events(job.id)
    points = list(client.follow_metrics(job.id))
    assert points == client.metrics(job.id)
    assert list(client.follow_metrics(job.id, after=points[1].id)) == points[2:]
    first = client.events(job.id)[0]
    assert list(client.follow_events(job.id, after=first.id)) == client.events(job.id)[1:]


@pytest.mark.parametrize("limits", [[0], [300, 0, 700], [450] * 4, [1, 2, 999, 1500, 400]])
def test_a_stream_that_breaks_off_is_taken_up_where_it_broke(api: Api, limits: list[int]) -> None:
    job = api.running()
    wanted = [f"line {number} " + "x" * (number * 7 % 90) for number in range(30)]
    for part, batch in enumerate((wanted[start : start + 4] for start in range(0, 30, 4)), start=1):
        api.append(job, Stream.LOGS, part, [line(text) for text in batch])
    api.to(job, JobState.SUCCEEDED)
    with line_of(api, *limits) as (client, proxy):
        assert [entry.line for entry in client.follow_logs(job.id)] == wanted
        assert proxy.connections >= len(limits)


def test_a_listener_may_leave(api: Api, client: Client) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("one"), line("two")])
    stream = client.follow_logs(job.id)
    first: LogEntry = next(stream)
    assert first.line == "one"
    del stream
    assert client.job(job.id).state is JobState.RUNNING


# The wire format of streams

text = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=8)
events = st.lists(
    st.builds(
        Message,
        data=st.lists(text, min_size=1, max_size=3).map("\n".join),
        event=st.sampled_from(["message", "end"]),
        id=st.none() | st.from_regex(r"[0-9.]{1,5}", fullmatch=True),
    ),
    max_size=5,
)


@given(events, st.lists(st.integers(1, 9), max_size=20), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_messages_however_the_stream_is_cut(
    wanted: list[Message], sizes: list[int], newline: str, comments: bool
) -> None:
    rows: list[str] = []
    for message in wanted:
        rows += [": keep-alive", ""] * comments
        rows += [] if message.event == "message" else [f"event: {message.event}"]
        rows += [f"data: {part}" for part in message.data.split("\n")]
        rows += [] if message.id is None else [f"id:{message.id}"]
        rows += ["retry: 1000", ""]
    whole = "".join(row + newline for row in rows).encode()
    chunks, place = [], 0
    for size in [*sizes, len(whole)]:
        chunks.append(whole[place : place + size])
        place += size
    assert list(messages(chunks)) == wanted
    # What the end cuts off in its middle is not given.
    assert list(messages([whole[:-2]])) == (wanted[:-1] if wanted else [])


def test_fields_that_are_unknown_are_passed_over() -> None:
    assert list(messages([b"foo: bar\n\n", b"data\n\ndata:x\n\n"])) == [Message(""), Message("x")]
