"""What every route is handed: the services, and the project that the request's key is for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from resforge.s3 import ObjectStore
from services.api.body import parse_document
from services.api.metrics import ServiceMetrics
from services.api.tail import Tails
from services.errors import Unauthenticated
from services.launchers.pools import Pools
from services.settings import Settings
from services.store.store import JobStore


@dataclass(frozen=True)
class Services:
    """The parts behind the routes. `checks` are further parts to be ready; each returns or raises.

    `pools` are those that jobs may name; None where the launcher has none.
    """

    settings: Settings
    store: JobStore
    objects: ObjectStore
    tails: Tails
    metrics: ServiceMetrics
    checks: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    pools: Pools | None = None


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Svc = Annotated[Services, Depends(_services)]

_bearer = HTTPBearer(
    auto_error=False, scheme_name="API key", description="A key of a project: `python -m services keys create PROJECT`."
)


def _project(services: Svc, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    if credentials is None:
        raise Unauthenticated("an API key is wanted: send the header `Authorization: Bearer <key>`")
    return services.store.authenticate(credentials.credentials)


Project = Annotated[str, Depends(_project)]


async def _body(request: Request, _: Project) -> bytes:
    # After the key was checked: nobody else's body is read.
    return await request.body()


def _document(request: Request, body: Annotated[bytes, Depends(_body)]) -> dict[str, object]:
    # In a thread, since a mebibyte of YAML takes a while.
    return parse_document(body, request.headers.get("content-type"))


Document = Annotated[dict[str, object], Depends(_document)]
