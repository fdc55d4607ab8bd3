"""Reads what a study's jobs have left in object storage. Nothing else is needed to make its report again."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from resforge.jobs import JobState
from resforge.metrics import POINT, EvalPoint, TrainPoint
from resforge.reports import Report
from resforge.storage import REPORT, AttemptDocument, Document, JobPrefix, Result, Stream, read_stream, study_key
from resforge.studies.report import Measured, StudyDocument, StudyMember, StudyReport, measured, summarise

if TYPE_CHECKING:
    from resforge.s3 import ObjectStore

AT_ONCE = 8  # jobs whose objects are read at the same time
LARGEST_PICTURE = 8 * 1024 * 1024


class Event(Document):
    """A line of the events stream, as far as a report reads it."""

    data: dict[str, Any] = Field(default_factory=dict)


def load(store: "ObjectStore", project: str, study_id: str) -> StudyDocument:
    """A study as it was submitted, from object storage.

    Raises:
        ObjectNotFound: there is none.
    """
    return StudyDocument.model_validate_json(store.get(study_key(project, study_id)))


def gather(store: "ObjectStore", study: StudyDocument, states: Mapping[str, JobState] | None = None) -> StudyReport:
    """Read what a study's jobs have left, and make its report.

    Args:
        states: of the jobs that still exist, by id. Without them a job that was deleted or cancelled in the queue
            is not told from one that has yet to begin.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda member: _measured(store, study.project, member), study.members))
    if states is not None:
        found = [_told(item, states.get(item.job)) for item in found]
    return summarise(study, found)


def pictures(store: "ObjectStore", study: StudyDocument, report: StudyReport) -> dict[str, list[bytes]]:
    """The pictures of a study's readings as PNG, by the member's key."""
    found: dict[str, list[bytes]] = {}
    for member in report.members:
        if member.role != "reading" or member.report is None:
            continue
        folder = JobPrefix.of(study.project, member.job).attempt(member.report.attempt).report
        for part in member.report.pictures:
            # Written by workers, which run people's code: none may lead elsewhere.
            if "/" not in part.name and part.name.endswith(".png") and part.size <= LARGEST_PICTURE:
                data = store.find(folder + part.name)
                if data is not None and data.startswith(b"\x89PNG"):
                    found.setdefault(member.key, []).append(data)
    return found


def _told(member: Measured, state: JobState | None) -> Measured:
    if state is None and not member.train_curve and member.outcome == "unfinished":
        return member.model_copy(update={"outcome": "deleted"})
    ended = {JobState.FAILED: "failed", JobState.CANCELLED: "stopped"}.get(state) if state else None
    return member.model_copy(update={"outcome": ended}) if ended and member.outcome == "unfinished" else member


def _measured(store: "ObjectStore", project: str, member: StudyMember) -> Measured:
    """A job's figures. One whose objects are damaged has none, and does not take the others' along."""
    try:
        return _measure(store, project, member)
    except ValidationError as error:
        message = f"what it has left can't be read: {error.errors()[0]['msg']}"
        return Measured(**member.model_dump(), outcome="unreadable", message=message)


def _measure(store: "ObjectStore", project: str, member: StudyMember) -> Measured:
    prefix = JobPrefix.of(project, member.job)
    attempts = _attempts(store, prefix)
    result = report = None
    if attempts:
        keys = prefix.attempt(attempts[-1])
        if (data := store.find(keys.result)) is not None:
            result = Result.model_validate_json(data)
        if member.role in ("evaluation", "reading") and (data := store.find(keys.report + REPORT)) is not None:
            report = Report.model_validate_json(data)
    points: list[TrainPoint | EvalPoint] = []
    about: dict[str, Any] = {}
    if member.role in ("training", "start"):
        points = [POINT.validate_json(line) for _, line in read_stream(store, prefix, Stream.METRICS, attempts)]
        about = _about(line for _, line in read_stream(store, prefix, Stream.EVENTS, attempts))
    elif report is not None:
        about = {"device": report.device, "versions": report.versions}
    return measured(member, points, result, report=report, **about)


def _attempts(store: "ObjectStore", prefix: JobPrefix) -> list[int]:
    """The attempts that led to a job's newest one: those that it may resume, and itself."""
    numbers = sorted(int(name) for name in store.list_folders(prefix.attempts) if name.isdecimal())
    data = store.find(prefix.attempt(numbers[-1]).attempt) if numbers else None
    if data is None:
        return numbers
    told = AttemptDocument.model_validate_json(data)
    return sorted({*told.resume_from, numbers[-1]})


def _about(events: Iterable[bytes]) -> dict[str, Any]:
    """What the newest start of a training's workers says of where they run."""
    found: dict[str, Any] = {}
    for line in events:
        if b'"device"' not in line:
            continue
        data = Event.model_validate_json(line).data
        if isinstance(data.get("device"), str) and isinstance(data.get("versions"), dict):
            found = {"device": data["device"], "versions": data["versions"]}
    return found
