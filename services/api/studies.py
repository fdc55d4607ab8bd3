"""From a posted study to its jobs, and from its jobs to what is told of it."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from resforge.jobs import TERMINAL, Job, JobState
from resforge.resources import StudyInfo, StudyMemberInfo
from resforge.spec import MOST_PROBLEMS, FieldProblem, TrainSpec, field_problems
from resforge.studies import Member, StudySpec, expand
from resforge.studies.catalog import with_ids
from resforge.studies.report import StudyDocument, StudyMember
from services.api.admission import Trained, admit, parse_spec, sources_in
from services.api.context import Services
from services.api.problems import InvalidSpec
from services.store.access import random_id
from services.store.studies import NewJob

LABEL = "study"


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
        InvalidSpec: a job of the study is not acceptable; pointers are those of its own fields.
    """
    study_id = f"study-{random_id()}"
    members = expand(spec)
    ids = {member.key: f"job-{random_id()}" for member in members}
    jobs: list[NewJob] = []
    siblings: dict[str, Trained] = {}
    for member in members:
        job = _admitted(services, project, member, spec, study_id, ids, siblings)
        jobs.append(job)
        if isinstance(job.spec, TrainSpec):
            siblings[job.id] = Trained(job.spec, job.dataset, JobState.QUEUED)
    document = StudyDocument(
        id=study_id,
        project=project,
        spec=spec,
        members=tuple(
            StudyMember(key=item.key, series=item.series, seed=item.seed, job=ids[item.key]) for item in members
        ),
        created_at=datetime.now(UTC),
    )
    return document, jobs


def _admitted(
    services: Services,
    project: str,
    member: Member,
    spec: StudySpec,
    study_id: str,
    ids: dict[str, str],
    siblings: dict[str, Trained],
) -> NewJob:
    document = with_ids(member.document, ids)
    document["labels"] = {**spec.labels, LABEL: study_id}
    try:
        parsed = parse_spec(document)
        return NewJob(ids[member.key], parsed, admit(parsed, services.store, sources_in(services, project, siblings)))
    except InvalidSpec as error:
        problems = [
            FieldProblem(
                pointer=item.pointer, message=f"in the study's job {member.key}: {item.message}", given=item.given
            )
            for item in error.problems[:MOST_PROBLEMS]
        ]
        raise InvalidSpec(problems) from error


def describe(document: StudyDocument, jobs: Sequence[Job]) -> StudyInfo:
    """What is told of a study. A job that somebody has deleted is shown without a state."""
    by_id = {job.id: job for job in jobs}
    members = [
        StudyMemberInfo(
            **item.model_dump(),
            state=by_id[item.job].state if item.job in by_id else None,
            progress=by_id[item.job].progress if item.job in by_id else None,
            message=by_id[item.job].message if item.job in by_id else "deleted",
        )
        for item in document.members
    ]
    counts = Counter(str(member.state) for member in members if member.state is not None)
    return StudyInfo(
        id=document.id,
        project=document.project,
        spec=document.spec,
        state=state_of([job.state for job in jobs], cancelling=any(job.cancel_requested for job in jobs)),
        counts=dict(counts),
        members=tuple(members),
        created_at=document.created_at,
    )


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
