"""What happens to a job: its events, log lines and metrics, as pages of JSON or as Server-Sent Events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, SerializeAsAny
from starlette.types import Send

from resforge.jobs import Event
from resforge.resources import LogEntry, MetricEntry, Page
from resforge.storage import Cursor, Stream
from services.api.context import Project, Services, Svc
from services.api.streams import job_events, job_stream
from services.api.tail import P, Source
from services.errors import InvalidCursor

router = APIRouter(prefix="/v1", tags=["streams"])

Accept = Annotated[str | None, Header(include_in_schema=False)]
LastEventId = Annotated[
    str | None, Header(description="For an event stream: go on behind this id. Goes before `after`.")
]
After = Annotated[str | None, Query(description="The `id` of an item; what comes behind it is given.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items of a page; an event stream has no limit.")]

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page. With `Accept: text/event-stream` an event stream instead: each item is the data of "
        "an event, and an event named `end` comes last, once the job has ended and everything was sent.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/jobs/{job_id}/events", summary="A job's history", responses=STREAM, response_model=Page[Event])
def list_events(
    project: Project,
    services: Svc,
    job_id: str,
    accept: Accept = None,
    last_event_id: LastEventId = None,
    after: After = None,
    limit: Limit = 100,
) -> Response:
    """Every transition with its time and cause, and what the trainer reports."""
    services.store.job(project, job_id)
    source = job_events(services.store, project, job_id)
    if _wants_stream(accept):
        return _stream(services, source, _event_id(last_event_id or after))
    return _page(source, _event_id(after), limit)


@router.get("/jobs/{job_id}/logs", summary="A job's log", responses=STREAM, response_model=Page[LogEntry])
def list_logs(
    project: Project,
    services: Svc,
    job_id: str,
    accept: Accept = None,
    last_event_id: LastEventId = None,
    after: After = None,
    limit: Limit = 1000,
) -> Response:
    """What the driver and the workers of all attempts printed."""
    return _lines(services, project, job_id, Stream.LOGS, accept, last_event_id, after, limit)


@router.get("/jobs/{job_id}/metrics", summary="A job's curves", responses=STREAM, response_model=Page[MetricEntry])
def list_metrics(
    project: Project,
    services: Svc,
    job_id: str,
    accept: Accept = None,
    last_event_id: LastEventId = None,
    after: After = None,
    limit: Limit = 1000,
) -> Response:
    """Training points and evaluations of all attempts, in the order in which they were written."""
    return _lines(services, project, job_id, Stream.METRICS, accept, last_event_id, after, limit)


def _lines(
    services: Services,
    project: str,
    job_id: str,
    stream: Stream,
    accept: str | None,
    last_event_id: str | None,
    after: str | None,
    limit: int,
) -> Response:
    services.store.job(project, job_id)
    source = job_stream(services.store, services.objects, project, job_id, stream)
    if _wants_stream(accept):
        return _stream(services, source, _cursor(last_event_id or after))
    return _page(source, _cursor(after), limit)


def _page(source: Source[P], after: P, limit: int) -> Response:
    items = source.read(after, limit + 1)
    following = str(items[limit - 1].place) if len(items) > limit else None
    records = tuple(item.record for item in items[:limit] if item.record is not None)
    # Not through the response model: these are of it already, and there may be many.
    page = Page[SerializeAsAny[BaseModel]](items=records, next_cursor=following)
    return Response(page.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})


def _stream(services: Services, source: Source[P], after: P) -> Response:
    return _EventStream(
        services.tails.follow(source, after),
        headers={"Vary": "Accept", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


class _EventStream(EventSourceResponse):
    """Closes its generator as soon as the client is gone, rather than when it is collected."""

    async def stream_response(self, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


def _wants_stream(accept: str | None) -> bool:
    return "text/event-stream" in (accept or "").lower()


def _cursor(text: str | None) -> Cursor:
    try:
        return Cursor.parse(text) if text else Cursor()
    except ValueError as error:
        raise InvalidCursor(str(error)) from error


def _event_id(text: str | None) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidCursor(f"{text!r} is no event's id; these are whole numbers")
    return int(text)
