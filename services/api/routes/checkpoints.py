"""A job's checkpoints and the addresses to download them from."""

from typing import Annotated

from fastapi import APIRouter, Path

from resforge.resources import Checkpoint, CheckpointDownload, Page
from services.api import checkpoints
from services.api.context import Project, Svc

router = APIRouter(prefix="/v1", tags=["checkpoints"])

Which = Annotated[str, Path(pattern="^(best|latest|[0-9]{1,10})$", description="`best`, `latest` or a step.")]


@router.get("/jobs/{job_id}/checkpoints", summary="List a job's checkpoints, by step")
def list_checkpoints(project: Project, services: Svc, job_id: str) -> Page[Checkpoint]:
    found = checkpoints.stored(services.objects, services.store.job(project, job_id))
    return Page(items=tuple(checkpoints.describe(found)))


@router.get("/jobs/{job_id}/checkpoints/{which}", summary="Read one checkpoint")
def get_checkpoint(project: Project, services: Svc, job_id: str, which: Which) -> Checkpoint:
    found = checkpoints.stored(services.objects, services.store.job(project, job_id))
    return checkpoints.describe(found)[checkpoints.choose(found, which)]


@router.get("/jobs/{job_id}/checkpoints/{which}/download", summary="Get addresses to download a checkpoint from")
def download_checkpoint(project: Project, services: Svc, job_id: str, which: Which) -> CheckpointDownload:
    """Presigned URLs of all parts, which need no key and expire, with the sizes and SHA-256 to verify them by."""
    found = checkpoints.stored(services.objects, services.store.job(project, job_id))
    index = checkpoints.choose(found, which)
    return checkpoints.download(
        services.objects,
        checkpoints.describe(found)[index],
        found[index],
        expires_s=services.settings.presign_expires_s,
    )
