"""Studies: submitting, following and cancelling them, and their reports."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import HTMLResponse

from resforge.resources import Page, StudyInfo
from resforge.storage import study_key
from resforge.studies.report import StudyReport, gather
from services.api import examples
from services.api.admission import request_hash
from services.api.context import Document, Project, Svc
from services.api.studies import describe, parse_study, plan

router = APIRouter(prefix="/v1", tags=["studies"])


@router.post("/studies", status_code=202, summary="Submit a study", openapi_extra={"requestBody": examples.STUDY_BODY})
def submit_study(
    project: Project,
    services: Svc,
    document: Document,
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            pattern=r"^[\x21-\x7e]+$",
            description="A value of your own. Sent again with the same body, it gives the first study again.",
        ),
    ] = None,
) -> StudyInfo:
    """Expand a study into its jobs and take them all, or none. They run as capacity allows."""
    study, jobs = plan(services, project, parse_study(document))
    # First: what has no row is never looked for, and a row without its document would have no report.
    services.objects.put(study_key(project, study.id), study.to_bytes(), "application/json")
    taken, created = services.store.submit_study(
        study, jobs, idempotency_key=idempotency_key, request_hash=request_hash(document)
    )
    if not created:
        services.objects.delete(study_key(project, study.id))
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Location"] = request.app.url_path_for("get_study", study_id=taken.id)
    return describe(*services.store.study(project, taken.id))


@router.get("/studies", summary="List studies, newest first")
def list_studies(project: Project, services: Svc, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> Page[StudyInfo]:
    return Page(items=tuple(describe(*item) for item in services.store.studies(project, limit=limit)))


@router.get("/studies/{study_id}", summary="Read a study")
def get_study(project: Project, services: Svc, study_id: str) -> StudyInfo:
    return describe(*services.store.study(project, study_id))


@router.post("/studies/{study_id}/cancel", status_code=202, summary="Cancel a study")
def cancel_study(project: Project, services: Svc, study_id: str) -> StudyInfo:
    """Ask for the end of every job of the study that has not ended."""
    return describe(*services.store.cancel_study(project, study_id))


@router.get("/studies/{study_id}/report", summary="Read a study's report")
def get_report(project: Project, services: Svc, study_id: str) -> StudyReport:
    """Made anew from what the jobs have left in object storage, also while some still run."""
    study, _ = services.store.study(project, study_id)
    return gather(services.objects, study)


@router.get("/studies/{study_id}/report.html", summary="Read a study's report as a page", response_class=HTMLResponse)
def get_page(project: Project, services: Svc, study_id: str) -> HTMLResponse:
    """One page of HTML with its curves inside."""
    from resforge.studies.page import render  # takes a second for matplotlib

    study, _ = services.store.study(project, study_id)
    return HTMLResponse(render(gather(services.objects, study)))
