"""The client: every route of the API as a typed method.

    with Client() as client:
        job = client.submit({"recipe": "digits/resnet-20"})
        for job in client.watch(job.id): ...
        client.download(job.id, "best", "out")

Requests that may be sent twice without harm are sent again when the API does not answer; a submission is one of them,
since it carries an Idempotency-Key.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from resforge.connection import Connection, connection, home_directory
from resforge.downloads import fetch, fetch_parts
from resforge.errors import (
    ApiError,
    Conflict,
    CorruptDownload,
    DownloadFailed,
    NotAuthenticated,
    NotConnected,
    NotFound,
    Refused,
    ResforgeError,
    Unavailable,
    WaitTimeout,
    api_error,
)
from resforge.jobs import TERMINAL, Attempt, DatasetInfo, Event, Job, JobState
from resforge.plan import Plan
from resforge.recipes import Recipe
from resforge.resources import (
    METRIC_ENTRY,
    Checkpoint,
    CheckpointDownload,
    Deleted,
    EvalEntry,
    JobReport,
    LogEntry,
    ModelInfo,
    Problem,
    RemovedDataset,
    StudyInfo,
    TrainEntry,
)
from resforge.spec import CommonSpec, JobSpec
from resforge.sse import messages
from resforge.storage import MANIFEST, REPORT
from resforge.studies import StudyReport, StudySpec

if TYPE_CHECKING:
    import httpx

__all__ = [
    "ApiError", "Client", "Conflict", "Connection", "CorruptDownload", "DownloadFailed", "NotAuthenticated",
    "NotConnected", "NotFound", "Refused", "ResforgeError", "Unavailable", "WaitTimeout", "connection",
    "home_directory",
]  # fmt: skip

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")

# Seconds before each further try of a request; an API that is being restarted answers again within them.
PAUSES = (0.2, 0.5, 1.0)
# Within which the API answers that has removed a data set's objects, a thousand at a time.
REMOVAL_S = 600.0
# The server sends a keep-alive every 15 s, so a stream that is silent for longer than two of them is dead.
STREAM_SILENCE_S = 40.0


class _Page(BaseModel):
    items: list[Any]
    next_cursor: str | int | None = None


class Client:
    """A connection to the API.

    Args:
        url: the API's address. Left out, as with `api_key`: what `resforge.client.connection` finds.
        api_key: a key of the project.
        home: where the embedded stack keeps its state; left out: $RESFORGE_HOME or ~/.resforge.
        timeout_s: seconds to wait for a connection and for an answer.
        patience_s: how long `watch`, `wait` and the `follow_` methods go on trying while the API does not answer.

    Every method raises a subclass of ResforgeError: NotAuthenticated, NotFound, Refused (with `errors`, every bad
    field), Conflict, Unavailable, or ApiError for what fits none of them. The constructor raises NotConnected.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        home: Path | str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        import httpx  # here, since it takes a tenth of a second that `resforge --help` need not wait for

        self.connection = connection(url, api_key, home=home)
        self.url = self.connection.url
        self._patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.connection.api_key}"},
            timeout=httpx.Timeout(timeout_s),
            mounts={"all://127.0.0.1": None, "all://localhost": None},  # never through a proxy of the environment
        )

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, spec: JobSpec | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Post a job: a whole JobSpec, or a mapping, which may name a recipe and override some of its fields.

        Raises:
            Refused: the spec is not acceptable; `errors` lists every bad field.
        """
        document = _document(spec)
        key = idempotency_key or uuid.uuid4().hex
        answer = self._request("POST", "/v1/jobs", json=document, headers={"Idempotency-Key": key}, repeatable=True)
        return self._parse(Job, answer)

    def plan(self, spec: JobSpec | Mapping[str, Any]) -> Plan:
        """Ask what a training job would do: its batches, rates and lengths. Nothing is submitted.

        Raises:
            Refused: the spec is not acceptable, or is no training; `errors` lists every bad field.
        """
        return self._parse(Plan, self._request("POST", "/v1/plans", json=_document(spec), repeatable=True))

    def job(self, job_id: str) -> Job:
        return self._get(Job, f"/v1/jobs/{job_id}")

    def jobs(
        self,
        *,
        states: Sequence[JobState | str] = (),
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
        page_size: int = 50,
    ) -> Iterator[Job]:
        """The project's jobs, newest first, fetched a page at a time as they are asked for."""
        params = {
            "state": [str(state) for state in states],
            "label": [f"{key}={value}" for key, value in (labels or {}).items()],
            "limit": page_size,
        }
        return self._pages(Job, "/v1/jobs", params if project is None else {**params, "project": project}, "cursor")

    def cancel(self, job_id: str, *, generation: int | None = None) -> Job:
        """Ask for a job's end; with `generation`, only if nobody has changed the job since.

        Raises:
            Conflict: the job has ended, or its generation is another.
        """
        headers = {} if generation is None else {"If-Match": f'"{generation}"'}
        return self._parse(Job, self._request("POST", f"/v1/jobs/{job_id}/cancel", headers=headers))

    def delete(self, job_id: str) -> Deleted:
        """Remove an ended job and all its objects.

        Raises:
            Conflict: the job has not ended.
        """
        return self._parse(Deleted, self._request("DELETE", f"/v1/jobs/{job_id}"))

    def watch(self, job_id: str, *, every_s: float = 0.5) -> Iterator[Job]:
        """The job now, and again each time that something of it has changed, until it has ended."""
        last = None
        while True:
            job = self._patiently(lambda: self.job(job_id))
            if job != last:
                yield job
            last = job
            if job.state in TERMINAL:
                return
            time.sleep(every_s)

    def wait(self, job_id: str, timeout_s: float | None = None, *, every_s: float = 0.5) -> Job:
        """The job once it has ended.

        Raises:
            WaitTimeout: it has not ended within `timeout_s` seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            job = self._patiently(lambda: self.job(job_id))
            if job.state in TERMINAL:
                return job
            if deadline is not None and time.monotonic() + every_s > deadline:
                raise WaitTimeout(f"job {job_id} is {job.state} still after {timeout_s:g} s")
            time.sleep(every_s)

    # What happens to a job

    def attempts(self, job_id: str) -> list[Attempt]:
        return list(self._pages(Attempt, f"/v1/jobs/{job_id}/attempts"))

    def events(self, job_id: str, *, after: int | None = None) -> list[Event]:
        """What has happened so far, oldest first; only behind the event `after`, if given."""
        return list(self._pages(Event, f"/v1/jobs/{job_id}/events", {"after": after}))

    def logs(self, job_id: str, *, after: str | None = None) -> list[LogEntry]:
        """Every log line so far; only behind the cursor `after`, if given."""
        return list(self._pages(LogEntry, f"/v1/jobs/{job_id}/logs", {"after": after}))

    def metrics(self, job_id: str, *, after: str | None = None) -> list[TrainEntry | EvalEntry]:
        """Every training point and evaluation so far; only behind the cursor `after`, if given."""
        items = self._items(f"/v1/jobs/{job_id}/metrics", {"after": after}, "after")
        return [METRIC_ENTRY.validate_python(item) for item in items]

    def follow_events(self, job_id: str, *, after: int | None = None) -> Iterator[Event]:
        """Events as they happen, from the first on, until the job has ended."""
        start = None if after is None else str(after)
        return (Event.model_validate_json(data) for data in self._follow(f"/v1/jobs/{job_id}/events", start))

    def follow_logs(self, job_id: str, *, after: str | None = None) -> Iterator[LogEntry]:
        """Log lines as they come, from the first on, until the job has ended."""
        return (LogEntry.model_validate_json(data) for data in self._follow(f"/v1/jobs/{job_id}/logs", after))

    def follow_metrics(self, job_id: str, *, after: str | None = None) -> Iterator[TrainEntry | EvalEntry]:
        """Training points and evaluations as they come, from the first on, until the job has ended."""
        return (METRIC_ENTRY.validate_json(data) for data in self._follow(f"/v1/jobs/{job_id}/metrics", after))

    # Checkpoints

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """The job's checkpoints, by step."""
        return list(self._pages(Checkpoint, f"/v1/jobs/{job_id}/checkpoints"))

    def checkpoint(self, job_id: str, which: str | int = "best") -> Checkpoint:
        """One checkpoint: `best`, `latest`, or a step."""
        return self._get(Checkpoint, f"/v1/jobs/{job_id}/checkpoints/{which}")

    def download(self, job_id: str, which: str | int, directory: Path | str) -> CheckpointDownload:
        """Fetch a checkpoint's files and its manifest.json into a directory, each verified before it gets its name.

        Raises:
            CorruptDownload: a file's size or SHA-256 is not the manifest's.
            DownloadFailed: object storage does not answer, or refuses.
        """
        path = f"/v1/jobs/{job_id}/checkpoints/{which}/download"
        download = self._get(CheckpointDownload, path)
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        fetch(download, target)
        # Last, as in storage: a checkpoint without its manifest is not whole.
        (target / MANIFEST).write_bytes(download.manifest.to_bytes())
        return download

    # Reports

    def report(self, job_id: str) -> JobReport:
        """What an evaluation or a reading has found.

        Raises:
            NotFound: the job has left no report.
        """
        return self._get(JobReport, f"/v1/jobs/{job_id}/report")

    def download_report(self, job_id: str, directory: Path | str) -> JobReport:
        """Fetch a report's pictures and its report.json into a directory, each verified before it gets its name.

        Raises:
            CorruptDownload: a picture is not what the report says.
            DownloadFailed: object storage does not answer, or refuses.
        """
        found = self.report(job_id)
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        fetch_parts(found.report.pictures, found.pictures, target)
        (target / REPORT).write_bytes(found.report.to_bytes())
        return found

    # Studies

    def submit_study(self, spec: StudySpec | Mapping[str, Any], *, idempotency_key: str | None = None) -> StudyInfo:
        """Post a study, which becomes all its jobs at once.

        Raises:
            Refused: the study, or a job of it, is not acceptable; `errors` lists every bad field.
        """
        document = spec.model_dump(mode="json") if isinstance(spec, StudySpec) else dict(spec)
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._request("POST", "/v1/studies", json=document, headers=headers, repeatable=True)
        return self._parse(StudyInfo, answer)

    def study(self, study_id: str) -> StudyInfo:
        return self._get(StudyInfo, f"/v1/studies/{study_id}")

    def studies(self, *, page_size: int = 50) -> Iterator[StudyInfo]:
        """The project's studies, newest first, fetched a page at a time as they are asked for."""
        return self._pages(StudyInfo, "/v1/studies", {"limit": page_size}, "cursor")

    def cancel_study(self, study_id: str) -> StudyInfo:
        """Ask for the end of every job of a study."""
        return self._parse(StudyInfo, self._request("POST", f"/v1/studies/{study_id}/cancel"))

    def delete_study(self, study_id: str) -> Deleted:
        """Remove an ended study with its jobs and all their objects.

        Raises:
            Conflict: some of its jobs have not ended.
        """
        return self._parse(Deleted, self._request("DELETE", f"/v1/studies/{study_id}"))

    def watch_study(self, study_id: str, *, every_s: float = 1.0) -> Iterator[StudyInfo]:
        """The study now, and again each time that something of it has changed, until all its jobs have ended."""
        last = None
        while True:
            study = self._patiently(lambda: self.study(study_id))
            if study != last:
                yield study
            last = study
            if study.ended:
                return
            time.sleep(every_s)

    def wait_study(self, study_id: str, timeout_s: float | None = None, *, every_s: float = 1.0) -> StudyInfo:
        """The study once all its jobs have ended.

        Raises:
            WaitTimeout: they have not within `timeout_s` seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (found := self._patiently(lambda: self.study(study_id))).ended:
            if deadline is not None and time.monotonic() + every_s > deadline:
                raise WaitTimeout(f"study {study_id} is {found.state} still after {timeout_s:g} s")
            time.sleep(every_s)
        return found

    def study_report(self, study_id: str) -> StudyReport:
        """The study's figures, made anew from what its jobs have left."""
        return self._get(StudyReport, f"/v1/studies/{study_id}/report")

    def study_page(self, study_id: str) -> str:
        """The study's report as one page of HTML."""
        return self._request("GET", f"/v1/studies/{study_id}/report.html", repeatable=True).text

    # What there is to train

    def recipes(self) -> list[Recipe]:
        return list(self._pages(Recipe, "/v1/recipes"))

    def recipe(self, name: str) -> Recipe:
        return self._get(Recipe, f"/v1/recipes/{name}")

    def models(self) -> list[ModelInfo]:
        return list(self._pages(ModelInfo, "/v1/models"))

    def datasets(self) -> list[DatasetInfo]:
        return list(self._pages(DatasetInfo, "/v1/datasets"))

    def remove_dataset(self, name: str) -> RemovedDataset:
        """Remove a data set that the project has ingested; its objects too, where they lie in the service's own bucket.

        Raises:
            Conflict: a job that has not ended works on it, the project has not ingested it, or another data set lies
                in the same place.
            NotFound: the project may name no such data set.
            Unavailable: object storage fails; the data set is registered still, so that this can be repeated. Or the
                API does not answer within ten minutes, and goes on: then it is not registered any more.
        """
        # Quoted whole: httpx would follow a name's `..` to another route.
        path = f"/v1/datasets/{quote(name, safe='')}"
        return self._parse(RemovedDataset, self._request("DELETE", path, timeout=REMOVAL_S))

    # How it is done

    def _get(self, model: type[M], path: str) -> M:
        return self._parse(model, self._request("GET", path, repeatable=True))

    def _parse(self, model: type[M], answer: "httpx.Response") -> M:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            detail = f"{answer.url} answered with no {model.__name__}; is this the address of a Resforge API? {error}"
            raise ApiError(Problem(title="Unexpected answer", status=answer.status_code, detail=detail)) from error

    def _pages(
        self, model: type[M], path: str, params: Mapping[str, Any] | None = None, cursor: str = "after"
    ) -> Iterator[M]:
        return (model.model_validate(item) for item in self._items(path, params or {}, cursor))

    def _items(self, path: str, params: Mapping[str, Any], cursor: str) -> Iterator[Any]:
        asked = {key: value for key, value in params.items() if value is not None}
        while True:
            page = self._parse(_Page, self._request("GET", path, params=asked, repeatable=True))
            yield from page.items
            if page.next_cursor is None:
                return
            asked = {**asked, cursor: page.next_cursor}

    def _request(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> "httpx.Response":
        """Send a request, again where that is safe, and raise what the API or the network says against it."""
        import httpx

        for pause in (*PAUSES, None):
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                # Without a connection nothing was sent, so even what must not happen twice may be tried again.
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if pause is None or not (repeatable or unsent):
                    raise self._unreachable(error) from error
            else:
                if answer.is_success:
                    return answer
                failure = _failure(answer)
                if pause is None or not (repeatable and isinstance(failure, Unavailable)):
                    raise failure
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: Exception) -> Unavailable:
        detail = (
            f"the API at {self.url} does not answer ({error or type(error).__name__}); "
            "`resforge up` starts an embedded one, RESFORGE_URL names another"
        )
        return Unavailable(Problem(type="/problems/unreachable", title="API not reachable", status=503, detail=detail))

    def _patiently(self, call: Callable[[], R]) -> R:
        """What `call` returns; while the API does not answer, try again for `patience_s`."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSES[-1])

    def _follow(self, path: str, after: str | None) -> Iterator[str]:
        """The data of a stream's messages until its end event; a broken stream is taken up where it broke."""
        import httpx

        heard = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream"}
            if after is not None:
                headers["Last-Event-ID"] = after
            timeout = httpx.Timeout(self._http.timeout.connect, read=STREAM_SILENCE_S)
            opened = False
            try:
                with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                    if not answer.is_success:
                        answer.read()
                        raise _failure(answer)
                    opened = True
                    for message in messages(answer.iter_bytes()):
                        if message.event == "end":
                            return
                        after = message.id or after
                        yield message.data
                failure: Exception = ConnectionError("the stream broke off")
            except (httpx.TransportError, Unavailable) as error:
                failure = error
            if opened:  # keep-alives came until it broke, or its read would have timed out
                heard = time.monotonic()
            if time.monotonic() - heard > self._patience_s:
                raise failure if isinstance(failure, Unavailable) else self._unreachable(failure) from failure
            time.sleep(PAUSES[0])


def _document(spec: JobSpec | Mapping[str, Any]) -> dict[str, Any]:
    return spec.model_dump(mode="json") if isinstance(spec, CommonSpec) else dict(spec)


def _failure(answer: "httpx.Response") -> ApiError:
    """The exception for an answer that is no success; what sent it may be a proxy that knows no problem+json."""
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        detail = f"{answer.url} answered {answer.status_code}: {answer.text[:200]}"
        problem = Problem(title=answer.reason_phrase or "Error", status=answer.status_code, detail=detail)
    return api_error(problem)
