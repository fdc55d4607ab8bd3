"""Errors as problem+json (RFC 9457): the one table from exceptions to HTTP, and the handlers that apply it."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from resforge.recipes import UnknownRecipe
from resforge.resources import Problem
from resforge.s3 import ObjectNotFound, StorageRefused, StorageUnavailable
from resforge.spec import MOST_PROBLEMS, FieldProblem, field_problems
from services import errors

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5


class MalformedBody(errors.ServiceError):
    """The body is not the JSON or YAML that it says it is."""


class UnsupportedMediaType(errors.ServiceError):
    """The body is of a type that this route does not read."""


class BodyTooLarge(errors.ServiceError):
    """The body is larger than this API reads."""


class InvalidHeader(errors.ServiceError):
    """A header can't be read."""


class InvalidFields(errors.ServiceError):
    """Some fields are not acceptable."""

    def __init__(self, problems: Iterable[FieldProblem], *, count: int | None = None) -> None:
        self.problems = tuple(problems)
        count = count or len(self.problems)
        listed = f"; the first {len(self.problems)} are listed" if count > len(self.problems) else ""
        super().__init__(f"{count} field{'s are' if count != 1 else ' is'} not acceptable{listed}")


class InvalidSpec(InvalidFields):
    """The spec of the job is not acceptable."""


class InvalidParameters(InvalidFields):
    """Some parameters of the request are not acceptable."""

    @classmethod
    def of(cls, pointer: str, message: str, given: str | None = None) -> "InvalidParameters":
        return cls([FieldProblem(pointer=pointer, message=message, given=given)])


@dataclass(frozen=True)
class Kind:
    """A kind of problem. `detail` replaces the exception's own words where these would show the operator's side."""

    status: int
    name: str
    title: str
    detail: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def type(self) -> str:
        return f"/problems/{self.name}"


_LATER = (("Retry-After", str(RETRY_AFTER_S)),)

INTERNAL = Kind(500, "internal-error", "Internal error", "Something failed on our side. It was written to the log.")
NOT_FOUND = Kind(404, "not-found", "Not found")
METHOD_NOT_ALLOWED = Kind(405, "method-not-allowed", "Method not allowed")
NOT_READY = Kind(503, "not-ready", "Not ready", headers=_LATER)

TABLE: Mapping[type[Exception], Kind] = {
    errors.Unauthenticated: Kind(401, "unauthenticated", "No valid API key", headers=(("WWW-Authenticate", "Bearer"),)),
    errors.ProjectNotFound: Kind(404, "project-not-found", "No such project"),
    errors.JobNotFound: Kind(404, "job-not-found", "No such job"),
    errors.CheckpointNotFound: Kind(404, "checkpoint-not-found", "No such checkpoint"),
    errors.StudyNotFound: Kind(404, "study-not-found", "No such study"),
    errors.ReportNotFound: Kind(404, "report-not-found", "No report"),
    errors.DatasetNotFound: Kind(404, "dataset-not-found", "No such dataset"),
    UnknownRecipe: Kind(404, "recipe-not-found", "No such recipe"),
    ObjectNotFound: Kind(404, "not-found", "Not found", "What was asked for has just been removed."),
    errors.JobNotTerminal: Kind(409, "job-not-ended", "The job has not ended"),
    errors.StudyNotTerminal: Kind(409, "study-not-ended", "The study has not ended"),
    errors.DatasetNameTaken: Kind(409, "dataset-name-taken", "The name is another data set's"),
    errors.DatasetNotIngested: Kind(409, "dataset-not-ingested", "The project has not ingested the data set"),
    errors.DatasetInUse: Kind(409, "dataset-in-use", "Jobs work on the data set"),
    errors.DatasetsOverlap: Kind(409, "datasets-overlap", "Another data set lies in the same place"),
    errors.JobEnded: Kind(409, "job-ended", "The job has ended"),
    errors.Stale: Kind(409, "changed-meanwhile", "The job has just changed", "Read the job again, and try again."),
    errors.GenerationMismatch: Kind(412, "generation-mismatch", "The job was changed meanwhile"),
    errors.IdempotencyConflict: Kind(422, "idempotency-key-reused", "Idempotency-Key used before with another body"),
    DataError: Kind(422, "invalid-value", "A value that can't be looked for", "Text can't hold the character NUL."),
    errors.InvalidCursor: Kind(422, "invalid-cursor", "Not a cursor of this API"),
    InvalidSpec: Kind(422, "invalid-spec", "The job's spec is not acceptable"),
    InvalidParameters: Kind(422, "invalid-parameters", "Parameters of the request are not acceptable"),
    InvalidHeader: Kind(400, "invalid-header", "A header can't be read"),
    MalformedBody: Kind(400, "malformed-body", "The body can't be read"),
    BodyTooLarge: Kind(413, "body-too-large", "The body is too large"),
    UnsupportedMediaType: Kind(415, "unsupported-media-type", "The body's type is not accepted"),
    StorageUnavailable: Kind(
        503, "storage-unavailable", "Object storage does not answer", "Try again in some seconds.", _LATER
    ),
    StorageRefused: Kind(
        502, "storage-refused", "Object storage refuses", "The operator has to mend this: see the log of the API."
    ),
    errors.StoreUnavailable: Kind(
        503, "database-unavailable", "The database does not answer", "Try again in some seconds.", _LATER
    ),
    errors.SchemaNotCurrent: Kind(
        503, "schema-not-current", "The database is of another version", "The operator has to migrate it.", _LATER
    ),
}


def respond(
    kind: Kind,
    *,
    instance: str,
    detail: str | None = None,
    errors: Iterable[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells of a problem. A kind's own detail goes before the one given."""
    problem = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=kind.detail or detail or "",
        instance=instance,
        errors=tuple(errors),
    )
    return Response(
        problem.model_dump_json(), kind.status, {**dict(kind.headers), **(headers or {})}, media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""
    for exception in TABLE:
        app.add_exception_handler(exception, _known)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unknown)


def kind_of(error: Exception) -> Kind | None:
    """The kind that the table has for an exception or the nearest of its bases."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)


def _known(request: Request, error: Exception) -> Response:
    kind = kind_of(error) or INTERNAL
    if kind.status >= 500:
        logger.warning("%s %s: %s", request.method, request.url.path, error)
    fields = error.problems if isinstance(error, InvalidFields) else ()
    # A docstring is an exception's message where it was raised without one.
    detail = str(error) or (error.__doc__ or "").strip()
    return respond(kind, instance=request.url.path, detail=detail, errors=fields)


def _parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    invalid = InvalidParameters(parameter_problems(error))
    return respond(TABLE[InvalidParameters], instance=request.url.path, detail=str(invalid), errors=invalid.problems)


def parameter_problems(error: RequestValidationError) -> list[FieldProblem]:
    """Every bad parameter, pointed at by where it stood and its name."""
    return [
        FieldProblem(
            pointer="/" + "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in item["loc"]),
            message=item["msg"],
            given=None if item["type"] == "missing" else str(item.get("input"))[:80],
        )
        for item in error.errors()
    ]


def _http(request: Request, error: Exception) -> Response:
    """What the framework itself refuses."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    headers = dict(error.headers or {})
    if error.status_code == NOT_FOUND.status:
        return respond(NOT_FOUND, instance=path, detail=f"there is nothing at {path}; /docs lists what there is")
    if error.status_code == METHOD_NOT_ALLOWED.status:
        allowed = ", ".join(_methods(request))
        detail = f"{path} does not take {request.method}; it takes {allowed}"
        return respond(METHOD_NOT_ALLOWED, instance=path, detail=detail, headers={"Allow": allowed})
    phrase = HTTPStatus(error.status_code).phrase
    kind = Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase)
    return respond(kind, instance=path, detail=str(error.detail), headers=headers)


def _methods(request: Request) -> list[str]:
    """What this path takes. The framework names only the methods of the first route that has the path."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _unknown(request: Request, _error: Exception) -> Response:
    # The server logs the traceback; the answer says nothing of it.
    return respond(INTERNAL, instance=request.url.path)


def spec_problems(error: ValidationError) -> InvalidSpec:
    """The refusal of a document that is no JobSpec."""
    count = error.error_count()
    return InvalidSpec(field_problems(error), count=count if count > MOST_PROBLEMS else None)
