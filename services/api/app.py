"""The FastAPI application: its parts, middleware, routes and documentation."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import resforge
from resforge.resources import Problem
from resforge.s3 import ObjectStore
from services.api import problems
from services.api.body import BodyLimit
from services.api.context import Services
from services.api.metrics import Measured, ServiceMetrics
from services.api.routes import catalogue, checkpoints, health, jobs, reports, streams, studies
from services.api.tail import Tails
from services.launchers.pools import pools_of
from services.settings import Settings
from services.store import connect
from services.store.store import JobStore

DESCRIPTION = """
Training of deep residual networks as a service. A job is posted, trained by workers on a Ray cluster, and leaves
checkpoints to download.

Every request under `/v1` carries `Authorization: Bearer <key>`; a key is for one project and sees no other's jobs.
Errors are `application/problem+json` (RFC 9457) with a stable `type`, and list every bad field at once.
"""


def create_app(
    settings: Settings,
    *,
    store: JobStore | None = None,
    objects: ObjectStore | None = None,
    checks: Mapping[str, Callable[[], object]] | None = None,
    poll_s: float = 1.0,
) -> FastAPI:
    """Put the API together.

    Args:
        store, objects: made from the settings where left out.
        checks: further parts that /readyz asks, such as the launcher; each returns, or raises what is wrong.
        poll_s: seconds between two looks at a stream that somebody follows.
    """
    metrics = ServiceMetrics()
    store = store or JobStore(connect(settings.database_url), observe=metrics.database)
    objects = objects or ObjectStore(
        settings.s3_bucket,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        observe=metrics.s3,
    )
    metrics.watch(store)
    tails = Tails(every_s=poll_s, opened=metrics.streams.inc, closed=metrics.streams.dec)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        tails.close()

    app = FastAPI(
        title="Resforge",
        version=resforge.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # One schema for each model, whether it is sent or received.
        separate_input_output_schemas=False,
    )
    app.state.services = Services(settings, store, objects, tails, metrics, checks or {}, pools_of(settings))
    problems.install(app)
    # The last added sees a request first.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Measured, metrics=metrics)
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": Problem, "description": "The request can't be served; the problem says why."},
        "5XX": {"model": Problem, "description": "A part of the service fails or does not answer."},
    }
    for module in (jobs, streams, checkpoints, reports, studies, catalogue):
        app.include_router(module.router, responses=errors)
    app.include_router(health.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema, with the errors as they are sent here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                _describe_errors(operation["responses"])
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _describe_errors(responses: dict[str, Any]) -> None:
    responses.pop("422", None)  # FastAPI's own format, which is never sent
    for status, response in responses.items():
        if not status.startswith("2") and "application/json" in response.get("content", {}):
            response["content"] = {problems.MEDIA_TYPE: response["content"].pop("application/json")}
