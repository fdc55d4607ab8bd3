"""From a posted study to its jobs, and from its jobs to what is told of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from resforge.jobs import TERMINAL, Job, JobState
from resforge.resources import StudyInfo, StudyMemberInfo
from resforge.spec import MOST_PROBLEMS, FieldProblem, TrainSpec, field_problems
from resforge.studies import Member, StudyDocument, StudyMember, StudySpec, expand
from resforge.studies.catalog import with_ids
from services.api.admission import Trained, admit, parse_spec, sources_in
from services.api.context import Services
from services.api.problems import InvalidSpec
from services.store.access import random_id
from services.store.studies import NewJob

LABEL = "study"
# The field of a study that decides a field of its jobs, where no override does.
_DECIDED_BY = {"/model/depth": "/depths", "/scaling/workers": "/workers", "/training/seed": "/seeds"}


def parse_study(document: dict[str, Any]) -> StudySpec:
    """A posted document as a StudySpec.

    Raises:
        InvalidSpec: with every bad field.
    """
    try:
        return StudySpec.model_validate(document)
    except ValidationError as error:
        raise InvalidSpec(field_problems(error, StudySpec)) from error


def plan(services: Services, project: str, spec: StudySpec) -> tuple[StudyDocument, list[NewJob]]:
    """The study and all its jobs, each admitted as if it had been posted by itself.

    Raises:
        InvalidSpec: some jobs of the study are not acceptable; pointers are those of the study's own fields.
    """
    study_id = f"study-{random_id()}"
    members = expand(spec)
    ids = {member.key: f"job-{random_id()}" for member in members}
    jobs: list[NewJob] = []
    siblings: dict[str, Trained] = {}
    refused: set[str] = set()
    problems: dict[tuple[str, str | None, str], FieldProblem] = {}
    for member in members:
        document = with_ids(member.document, ids)
        document["labels"] = {**spec.labels, LABEL: study_id}
        try:
            parsed = parse_spec(document)
            if refused & {source.job for source in parsed.sources}:  # what it builds upon was told of already
                refused.add(ids[member.key])
                continue
            dataset = admit(parsed, services, project, sources_in(services, project, siblings))
            job = NewJob(ids[member.key], parsed, dataset)
        except InvalidSpec as error:
            refused.add(ids[member.key])
            for problem in _of_the_study(spec, member, error.problems):
                # Of several jobs with one fault the first tells it.
                problems.setdefault((problem.pointer, problem.given, problem.message.partition(": ")[2]), problem)
            continue
        jobs.append(job)
        if isinstance(parsed, TrainSpec):
            siblings[job.id] = Trained(parsed, job.dataset, JobState.QUEUED)
    if problems:
        raise InvalidSpec(tuple(problems.values())[:MOST_PROBLEMS], count=len(problems))
    document = StudyDocument(
        id=study_id,
        project=project,
        spec=spec,
        members=tuple(
            StudyMember(key=item.key, series=item.series, seed=item.seed, role=item.role, job=ids[item.key])
            for item in members
        ),
        created_at=datetime.now(UTC),
    )
    return document, jobs


def _of_the_study(spec: StudySpec, member: Member, found: Iterable[FieldProblem]) -> Iterable[FieldProblem]:
    """What is wrong with a job, told of the study's fields that made it so."""
    for item in found:
        steps = item.pointer.split("/")[1:]
        place: Any = spec.overrides
        for step in steps:
            place = place.get(step) if isinstance(place, Mapping) else None
        if place is not None or (steps and steps[0] in spec.overrides and steps[0] not in member.document):
            pointer = f"/overrides{item.pointer}"
        elif item.pointer == "/data/dataset":
            pointer = ("/source" if member.series.endswith("-source") else "/target") if _asked(spec) else "/setting"
        else:
            pointer = _DECIDED_BY.get(item.pointer, "")
        where = f"in the study's job {member.key}" + (f", {item.pointer}" if pointer == "" else "")
        yield FieldProblem(pointer=pointer, message=f"{where}: {item.message}", given=item.given)


def _asked(spec: StudySpec) -> bool:
    return spec.source is not None or spec.target is not None


def describe(document: StudyDocument, jobs: Sequence[Job]) -> StudyInfo:
    """What is told of a study. A job that somebody has deleted is shown without a state."""
    by_id = {job.id: job for job in jobs}
    members = [_member(item, by_id.get(item.job)) for item in document.members]
    started = [job.started_at for job in jobs if job.started_at is not None]
    finished = [job.finished_at for job in jobs if job.finished_at is not None]
    state = state_of([job.state for job in jobs], cancelling=any(job.cancel_requested for job in jobs))
    return StudyInfo(
        id=document.id,
        project=document.project,
        name=document.spec.name,
        spec=document.spec,
        state=state,
        counts=dict(Counter(str(job.state) for job in jobs)),
        deleted=len(members) - len(jobs),
        done=sum(map(_done, jobs)) / len(jobs) if jobs else 1.0,
        members=tuple(members),
        created_at=document.created_at,
        started_at=min(started, default=None),
        finished_at=max(finished, default=None) if state in TERMINAL else None,
    )


def _member(item: StudyMember, job: Job | None) -> StudyMemberInfo:
    if job is None:
        return StudyMemberInfo(**item.model_dump(), state=None, message="deleted")
    return StudyMemberInfo(
        **item.model_dump(), state=job.state, reason=job.reason, progress=job.progress, message=job.message
    )


def _done(job: Job) -> float:
    """How far a job has come, from 0 to 1."""
    if job.state in TERMINAL:
        return 1.0
    return min(1.0, job.progress.step / max(1, job.progress.total_steps)) if job.progress else 0.0


def state_of(states: Sequence[JobState], *, cancelling: bool) -> JobState:
    """A study's state, of its jobs': it goes on while one of them lives."""
    if any(state not in TERMINAL for state in states):
        if cancelling:
            return JobState.CANCELLING
        waiting = all(state is JobState.QUEUED for state in states)
        return JobState.QUEUED if waiting else JobState.RUNNING
    if all(state is JobState.SUCCEEDED for state in states):
        return JobState.SUCCEEDED
    return JobState.CANCELLED if JobState.CANCELLED in states else JobState.FAILED
