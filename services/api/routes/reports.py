"""What an evaluation, a reading or an ingest has found, with addresses to fetch its pictures from."""

from fastapi import APIRouter

from resforge.reports import Report
from resforge.resources import DownloadPart, JobReport
from resforge.storage import REPORT, JobPrefix
from services.api.context import Project, Svc
from services.errors import ReportNotFound

router = APIRouter(prefix="/v1", tags=["reports"])


@router.get("/jobs/{job_id}/report", summary="Read the report of an evaluation or a reading")
def get_report(project: Project, services: Svc, job_id: str) -> JobReport:
    """The figures, and presigned URLs of the pictures, which need no key and expire."""
    job = services.store.job(project, job_id)
    prefix = JobPrefix.of(job.project, job.id)
    for attempt in range(job.attempts, 0, -1):
        folder = prefix.attempt(attempt).report
        data = services.objects.find(folder + REPORT)
        if data is None:
            continue
        report = Report.model_validate_json(data)
        pictures = []
        for part in report.pictures:
            if "/" in part.name:  # written by workers, which run people's code: none may lead elsewhere
                continue
            address = services.objects.presign(folder + part.name, expires_s=services.settings.presign_expires_s)
            pictures.append(DownloadPart(**part.model_dump(), url=address.url, expires_at=address.expires_at))
        return JobReport(report=report, pictures=tuple(pictures))
    if job.spec.kind == "train":
        raise ReportNotFound(
            f"job {job_id} is a training, which leaves metrics and checkpoints; jobs of the other kinds leave reports"
        )
    raise ReportNotFound(
        f"job {job_id} is {job.state} and has left no report" + (f": {job.message}" * bool(job.message))
    )
