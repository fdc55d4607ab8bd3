"""Studies: submitting, following and cancelling them, and their reports."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import HTMLResponse

from resforge.jobs import TERMINAL
from resforge.resources import Deleted, Page, StudyInfo
from resforge.storage import JobPrefix, study_key
from resforge.studies import StudyDocument, StudyReport, gather
from resforge.studies.gather import pictures
from services.api import examples
from services.api.admission import request_hash
from services.api.context import Document, Project, Services, Svc
from services.api.studies import describe, parse_study, plan
from services.errors import StudyNotTerminal

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
    created = False
    try:
        taken, created = services.store.submit_study(
            study, jobs, idempotency_key=idempotency_key, request_hash=request_hash(document)
        )
    finally:
        if not created:
            services.objects.delete(study_key(project, study.id))
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Location"] = request.app.url_path_for("get_study", study_id=taken.id)
    return describe(*services.store.study(project, taken.id))


@router.get("/studies", summary="List studies, newest first")
def list_studies(
    project: Project,
    services: Svc,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[StudyInfo]:
    found, following = services.store.studies(project, limit=limit, cursor=cursor)
    return Page(items=tuple(describe(*item) for item in found), next_cursor=following)


@router.get("/studies/{study_id}", summary="Read a study")
def get_study(project: Project, services: Svc, study_id: str) -> StudyInfo:
    return describe(*services.store.study(project, study_id))


@router.post("/studies/{study_id}/cancel", status_code=202, summary="Cancel a study")
def cancel_study(project: Project, services: Svc, study_id: str) -> StudyInfo:
    """Ask for the end of every job of the study that has not ended."""
    return describe(*services.store.cancel_study(project, study_id))


@router.delete("/studies/{study_id}", summary="Delete an ended study with its jobs and their objects")
def delete_study(project: Project, services: Svc, study_id: str) -> Deleted:
    """Remove the objects of all its jobs from object storage, then the jobs and the study."""
    study, jobs = services.store.study(project, study_id)
    live = sum(job.state not in TERMINAL for job in jobs)
    if live:
        raise StudyNotTerminal(f"{live} jobs of study {study_id} have not ended; cancel it first")
    # Objects first: if this is interrupted, the study is there still and can be deleted again.
    removed = sum(services.objects.delete_prefix(JobPrefix.of(project, member.job).key) for member in study.members)
    services.store.delete_study(project, study_id)
    services.objects.delete(study_key(project, study_id))
    return Deleted(deleted=study_id, objects_removed=removed + 1)


@router.get("/studies/{study_id}/report", summary="Read a study's report")
def get_report(project: Project, services: Svc, study_id: str) -> StudyReport:
    """Made anew from what the jobs have left in object storage, also while some still run."""
    return _report(services, project, study_id)[1]


# The class of the answer is told by hand: as response_class, FastAPI would tell of errors as pages, too.
@router.get(
    "/studies/{study_id}/report.html",
    summary="Read a study's report as a page",
    response_class=Response,
    responses={200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_page(project: Project, services: Svc, study_id: str) -> HTMLResponse:
    """One page of HTML with its pictures inside, which runs no scripts and fetches nothing."""
    from resforge.studies.page import render  # takes a second for matplotlib

    study, report = _report(services, project, study_id)
    page = render(report, pictures(services.objects, study, report))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})


def _report(services: Services, project: str, study_id: str) -> tuple[StudyDocument, StudyReport]:
    study, jobs = services.store.study(project, study_id)
    key = study_key(project, study_id)
    if services.objects.find(key) is None:  # somebody has emptied the bucket: the report shall need no database
        services.objects.put(key, study.to_bytes(), "application/json")
    return study, gather(services.objects, study, {job.id: job.state for job in jobs})
