"""Jobs: submitting, finding, cancelling and deleting them."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from resforge.jobs import TERMINAL, Attempt, Job, JobState
from resforge.plan import Plan, plan
from resforge.resources import Deleted, Page
from resforge.spec import FieldProblem, TrainSpec
from resforge.storage import JobPrefix
from services.api import examples
from services.api.admission import admit, parse_spec, request_hash, sources_in
from services.api.context import Document, Project, Svc
from services.api.problems import InvalidHeader, InvalidParameters, InvalidSpec
from services.errors import GenerationMismatch, JobNotTerminal, ProjectNotFound

router = APIRouter(prefix="/v1", tags=["jobs"])

_ETAG = re.compile(r'(?:W/)?"[^"]*"|\*')


@router.post("/jobs", status_code=202, summary="Submit a job", openapi_extra={"requestBody": examples.JOB_BODY})
def submit_job(
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
            description="A value of your own. Sent again with the same body, it gives the first job again.",
        ),
    ] = None,
) -> Job:
    """Take a job: a whole spec, or `{"recipe": NAME, ...}` with some of its fields overridden, as JSON or YAML.

    The job is QUEUED at first. A repeated Idempotency-Key answers with the same job and `Idempotent-Replayed: true`.
    """
    spec = parse_spec(document)
    dataset = admit(spec, services, project, sources_in(services, project), idempotency_key=idempotency_key)
    job, created = services.store.submit(
        project, spec, dataset, idempotency_key=idempotency_key, request_hash=request_hash(document)
    )
    response.headers["Location"] = request.app.url_path_for("get_job", job_id=job.id)
    response.headers["ETag"] = _etag(job)
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return job


@router.post("/plans", summary="See what a training job would do", openapi_extra={"requestBody": examples.JOB_BODY})
def plan_job(project: Project, services: Svc, document: Document) -> Plan:
    """Take what `POST /v1/jobs` takes, check it likewise, and answer with what follows from it. Submit nothing."""
    spec = parse_spec(document)
    if not isinstance(spec, TrainSpec):
        message = "a plan is of a training; jobs of other kinds have none"
        raise InvalidSpec([FieldProblem(pointer="/kind", message=message, given=f'"{spec.kind}"')])
    return plan(spec, admit(spec, services, project, sources_in(services, project)))


@router.get("/jobs", summary="List jobs, newest first")
def list_jobs(
    project: Project,
    services: Svc,
    state: Annotated[list[JobState] | None, Query(description="May be given several times.")] = None,
    asked_project: Annotated[
        str | None, Query(alias="project", description="The key's own, which is also what is meant without it.")
    ] = None,
    label: Annotated[
        list[str] | None, Query(max_length=32, description="key=value; a job must have all that are given.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Page[Job]:
    if asked_project not in (None, project):
        raise ProjectNotFound(f"there is no project {asked_project!r} for this key")
    labels = dict(_label(index, text) for index, text in enumerate(label or ()))
    items, following = services.store.jobs(project, states=state or (), labels=labels, limit=limit, cursor=cursor)
    return Page(items=tuple(items), next_cursor=following)


@router.get("/jobs/{job_id}", summary="Read a job")
def get_job(project: Project, services: Svc, job_id: str, response: Response) -> Job:
    """Its ETag is its generation, which only people's changes move: progress does not."""
    job = services.store.job(project, job_id)
    response.headers["ETag"] = _etag(job)
    response.headers["Cache-Control"] = "no-store"
    return job


@router.post("/jobs/{job_id}/cancel", status_code=202, summary="Cancel a job")
def cancel_job(
    project: Project,
    services: Svc,
    job_id: str,
    response: Response,
    if_match: Annotated[str | None, Header(description='An ETag, such as "1": only if the job has it still.')] = None,
) -> Job:
    """Ask for the job's end. Its workers stop at a step; it is CANCELLED a little later."""
    generation = None
    if if_match is not None:
        generation = services.store.job(project, job_id).generation
        tags = _etags(if_match)
        if "*" not in tags and f'"{generation}"' not in tags:
            raise GenerationMismatch(f'job {job_id} is at generation "{generation}", not {if_match}')
    job = services.store.request_cancel(project, job_id, generation=generation)
    response.headers["ETag"] = _etag(job)
    return job


@router.delete("/jobs/{job_id}", summary="Delete an ended job and its objects")
def delete_job(project: Project, services: Svc, job_id: str) -> Deleted:
    """Remove the job's checkpoints, logs and metrics from object storage, and then the job itself."""
    job = services.store.job(project, job_id)
    if job.state not in TERMINAL:
        raise JobNotTerminal(f"job {job_id} is {job.state}; only ended jobs can be deleted, so cancel it first")
    # Objects first: if this is interrupted, the job is there still and can be deleted again.
    removed = services.objects.delete_prefix(JobPrefix.of(project, job_id).key)
    services.store.delete_job(project, job_id)
    return Deleted(deleted=job_id, objects_removed=removed)


@router.get("/jobs/{job_id}/attempts", summary="List a job's attempts")
def list_attempts(project: Project, services: Svc, job_id: str) -> Page[Attempt]:
    return Page(items=tuple(services.store.attempts(project, job_id)))


def _etag(job: Job) -> str:
    return f'"{job.generation}"'


def _etags(header: str) -> list[str]:
    tags = [tag.strip() for tag in header.split(",")]
    if not all(_ETAG.fullmatch(tag) for tag in tags):
        raise InvalidHeader(f'If-Match holds {header!r}; it takes ETags with their quotes, such as "1", or *')
    return tags


def _label(index: int, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidParameters.of(f"/query/label/{index}", "a label is given as key=value", text)
    return key, value
