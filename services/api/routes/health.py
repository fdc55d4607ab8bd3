"""What machines ask: whether the process lives, whether its parts are ready, and its metrics."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from resforge.resources import NotReady, Readiness
from services.api.context import Services, Svc
from services.api.problems import MEDIA_TYPE, NOT_READY, kind_of

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])

# Of one part; one that takes longer is not ready. Kubernetes is told to wait a little longer than this.
DEADLINE_S = 4.0
READY = "ready"

Exclude = Annotated[
    list[Literal["database", "object_storage", "controller"]] | None,
    Query(
        description="Parts not to ask. Kubernetes leaves out what all replicas share and the API can do much without: "
        "else a controller that is away would take the API away too."
    ),
]


class ControllerSilent(Exception):
    """No controller works."""


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Are all its parts ready?", responses={503: {"model": NotReady}})
async def readyz(request: Request, services: Svc, exclude: Exclude = None) -> Response:
    """The database, object storage, the controller, and what else was configured; 503 says of each what is wrong."""
    checks: dict[str, Callable[[], object]] = {
        "database": services.store.check,
        "object_storage": services.objects.check,
        "controller": lambda: check_controller(services, datetime.now(UTC)),
        **services.checks,
    }
    checks = {name: check for name, check in checks.items() if name not in (exclude or ())}
    told = await asyncio.gather(*(_check(name, check) for name, check in checks.items()))
    parts = dict(zip(checks, told, strict=True))
    missing = [name for name, said in parts.items() if said != READY]
    if not missing:
        return Response(Readiness(parts=parts).model_dump_json(), media_type="application/json")
    problem = NotReady(
        type=NOT_READY.type,
        title=NOT_READY.title,
        status=NOT_READY.status,
        detail=f"not ready: {', '.join(missing)}",
        instance=request.url.path,
        parts=parts,
    )
    return Response(problem.model_dump_json(), NOT_READY.status, dict(NOT_READY.headers), media_type=MEDIA_TYPE)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
def metrics(services: Svc) -> Response:
    return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _check(name: str, check: Callable[[], object]) -> str:
    """READY, or what is wrong. Everybody may read this, so the particulars go to the log."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            await to_thread.run_sync(check, abandon_on_cancel=True)
    except TimeoutError:
        return f"no answer within {DEADLINE_S:g} s"
    except Exception as error:  # noqa: BLE001 - whatever a part raises, it is not ready
        logger.warning("not ready: %s: %s", name, error)
        kind = kind_of(error)
        return kind.title if kind else str(error) or type(error).__name__
    return READY


def check_controller(services: Services, now: datetime) -> None:
    """Return if a controller has finished a tick lately: within two leases, so that a takeover is no alarm.

    Raises:
        ControllerSilent: none has.
    """
    tick = services.store.last_tick()
    if tick is None:
        raise ControllerSilent("no controller has ever looked at the jobs; is one running?")
    age = (now - tick).total_seconds()
    if age > 2 * services.settings.lease_s:
        raise ControllerSilent(f"no controller has looked at the jobs for {age:.0f} s; is one running?")
