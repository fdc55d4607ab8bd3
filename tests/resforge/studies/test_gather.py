"""A study's report from a real object storage alone: there is no database in these tests."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resforge.jobs import JobState
from resforge.metrics import EvalPoint, TrainPoint
from resforge.reports import Report
from resforge.s3 import ObjectNotFound, ObjectStore
from resforge.storage import REPORT, AttemptDocument, JobPrefix, Part, Result, Stream, study_key
from resforge.studies import StudyDocument, StudyMember, StudyReport, StudySpec, expand, gather, load
from resforge.studies.gather import pictures
from resforge.studies.page import render
from tests.s3 import start_s3

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = "demo"
PNG = b"\x89PNG picture"
ERRORS = {"plain-8": 20, "plain-14": 40, "resnet-8": 20, "resnet-14": 15}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    server = start_s3(tmp_path_factory.mktemp("s3"))
    yield server.store(attempts=1)
    server.stop()


def points(attempt: int, steps: range, error: float) -> list[TrainPoint | EvalPoint]:
    common: dict[str, Any] = {"attempt": attempt, "loss": 1.0, "top1": 1 - error / 100, "top5": 1.0}
    found: list[TrainPoint | EvalPoint] = [
        TrainPoint(
            at=T0 + timedelta(seconds=step), step=step, epoch=0, lr=0.1, images_per_second=50, step_time_s=1,
            data_wait_s=0, eta_s=0, **common,
        )
        for step in steps
    ]  # fmt: skip
    splits = ("train", "test")
    evaluated = {"at": T0, "step": steps[-1], "epoch": 0, "images": 10, **common}
    return [*found, *(EvalPoint.model_validate({**evaluated, "split": split}) for split in splits)]


def append(objects: ObjectStore, job: str, attempt: int, stream: Stream, lines: list[bytes], part: int = 1) -> None:
    keys = JobPrefix.of(PROJECT, job).attempt(attempt)
    objects.put(keys.stream_part(stream, part), b"".join(line + b"\n" for line in lines))


def put_attempt(objects: ObjectStore, job: str, number: int, resume_from: tuple[int, ...] = ()) -> None:
    keys = JobPrefix.of(PROJECT, job).attempt(number)
    objects.put(keys.attempt, AttemptDocument(number=number, resume_from=resume_from).to_bytes())


def end(objects: ObjectStore, job: str, attempt: int = 1, **fields: Any) -> None:
    result = Result.model_validate({"at": T0, "outcome": "succeeded", **fields})
    objects.put(JobPrefix.of(PROJECT, job).attempt(attempt).result, result.to_bytes())


def train(objects: ObjectStore, job: str, error: float, attempt: int = 1, steps: range = range(1, 11)) -> None:
    lines = [point.model_dump_json().encode() for point in points(attempt, steps, error)]
    append(objects, job, attempt, Stream.METRICS, lines)
    append(
        objects, job, attempt, Stream.EVENTS,
        [b'{"at": "2026-01-01T00:00:00Z", "type": "WorkersStarted", "message": "", '
         b'"data": {"step": 0, "device": "NVIDIA H100", "versions": {"torch": "2.9"}}}',
         b'{"at": "2026-01-01T00:00:00Z", "type": "CheckpointWritten", "message": "", "data": {"step": 10}}'],
    )  # fmt: skip


def look(objects: ObjectStore, job: str, *names: str) -> Report:
    parts = tuple(Part(name=name, size=len(PNG), sha256="") for name in names)
    report = Report(
        kind="analyse", name="responses", title="t", job=job, attempt=1, checkpoints=(), dataset="digits", split="test",
        images=1, values={"top1_error": 0.25}, pictures=parts, seconds=1, device="a CPU", versions={"numpy": "2"},
        made_at=T0,
    )  # fmt: skip
    folder = JobPrefix.of(PROJECT, job).attempt(1).report
    objects.put(folder + REPORT, report.to_bytes())
    return report


def submitted(objects: ObjectStore, number: int, **fields: Any) -> StudyDocument:
    """A study in storage whose jobs have left nothing yet."""
    spec = StudySpec.model_validate({"study": "degradation", "setting": "digits", "seeds": 1, **fields})
    members = tuple(
        StudyMember(key=m.key, series=m.series, seed=m.seed, role=m.role, job=f"job-{number}-{index}")
        for index, m in enumerate(expand(spec))
    )
    study = StudyDocument(id=f"study-{number}", project=PROJECT, spec=spec, members=members, created_at=T0)
    objects.put(study_key(PROJECT, study.id), study.to_bytes())
    return study


def by_key(report: StudyReport) -> Mapping[str, Any]:
    return {member.key: member for member in report.members}


def test_storage_alone_gives_the_whole_report_again(objects: ObjectStore) -> None:
    study = submitted(objects, 1, readings=True)
    for member in study.members:
        put_attempt(objects, member.job, 1)
        if member.role == "reading":
            look(objects, member.job, "a.png")
            objects.put(JobPrefix.of(PROJECT, member.job).attempt(1).report + "a.png", PNG)
        else:
            train(objects, member.job, ERRORS[member.series])
        end(objects, member.job)
    found = load(objects, PROJECT, study.id)
    assert found == study
    report = gather(objects, found)
    assert report.unfinished == ()
    assert [finding.holds for finding in report.findings] == [True, True, True]
    errors = {series.name: series.train_error.mean for series in report.series if series.train_error}
    assert errors == pytest.approx(ERRORS)
    assert (report.devices, report.versions) == (("NVIDIA H100", "a CPU"), {"torch": "2.9", "numpy": "2"})
    shown = pictures(objects, found, report)
    assert set(shown) == {member.key for member in study.members if member.role == "reading"}
    page = render(report, shown)
    assert page.count("data:image/png") == len(shown) == 8
    # And again, to the letter, but for when it was made.
    assert gather(objects, found).model_copy(update={"made_at": report.made_at}) == report


def test_a_study_that_was_never_there(objects: ObjectStore) -> None:
    with pytest.raises(ObjectNotFound):
        load(objects, PROJECT, "study-none")


def test_a_job_that_was_taken_up_again_counts_each_step_once(objects: ObjectStore) -> None:
    study = submitted(objects, 2)
    job = study.members[0].job
    train(objects, job, 80, attempt=1, steps=range(1, 7))
    put_attempt(objects, job, 1)
    train(objects, job, 99, attempt=2, steps=range(1, 3))  # given up before it left a checkpoint
    put_attempt(objects, job, 2)
    train(objects, job, 20, attempt=3, steps=range(5, 11))
    put_attempt(objects, job, 3, resume_from=(1,))
    end(objects, job, 3)
    member = gather(objects, study).members[0]
    assert [step for step, _ in member.train_curve] == list(range(1, 11))
    assert [round(error) for _, error in member.train_curve] == [80] * 4 + [20] * 6
    assert round(member.test_error or 0) == 20


def test_what_each_job_has_come_to(objects: ObjectStore) -> None:
    study = submitted(objects, 3)
    running, failed, gone, queued = study.members
    train(objects, running.job, 50)
    put_attempt(objects, failed.job, 1)
    end(objects, failed.job, outcome="failed", message="no luck")
    alone = by_key(gather(objects, study))
    assert [alone[m.key].outcome for m in study.members] == ["unfinished", "failed", "unfinished", "unfinished"]
    assert alone[failed.key].message == "no luck"
    states = {running.job: JobState.RUNNING, failed.job: JobState.FAILED, queued.job: JobState.CANCELLED}
    told = by_key(gather(objects, study, states))
    assert [told[m.key].outcome for m in study.members] == ["unfinished", "failed", "deleted", "stopped"]
    assert told[running.key].train_curve
    assert told[gone.key].train_curve == ()


def test_a_report_leads_nowhere_but_into_its_own_folder(objects: ObjectStore) -> None:
    study = submitted(objects, 4, readings=True)
    [reading, *_] = [member for member in study.members if member.role == "reading"]
    put_attempt(objects, reading.job, 1)
    look(objects, reading.job, "../../../other.png", "good.png", "page.html", "text.png", "none.png")
    folder = JobPrefix.of(PROJECT, reading.job).attempt(1).report
    objects.put(folder + "good.png", PNG)
    objects.put(folder + "page.html", PNG)
    objects.put(folder + "text.png", b"<html>")
    end(objects, reading.job)
    assert pictures(objects, study, gather(objects, study)) == {reading.key: [PNG]}


@pytest.mark.parametrize("damaged", ["metrics", "events", "result", "attempt", "report"])
def test_damaged_objects_cost_their_own_jobs_figures_alone(objects: ObjectStore, damaged: str) -> None:
    study = submitted(objects, 6, readings=damaged == "report")
    for member in study.members:
        put_attempt(objects, member.job, 1)
        if member.role == "reading":
            look(objects, member.job)
        else:
            train(objects, member.job, ERRORS[member.series])
        end(objects, member.job)
    one = next(m for m in study.members if m.role == ("reading" if damaged == "report" else "training"))
    keys = JobPrefix.of(PROJECT, one.job).attempt(1)
    key = {
        "metrics": keys.stream_part(Stream.METRICS, 1), "events": keys.stream_part(Stream.EVENTS, 1),
        "result": keys.result, "attempt": keys.attempt, "report": keys.report + REPORT,
    }[damaged]  # fmt: skip
    objects.put(key, b'{"device": 3, "data": ')
    found = gather(objects, study)
    assert found.unfinished == (one.key,)
    [member] = [member for member in found.members if member.key == one.key]
    assert member.outcome == "unreadable"
    assert "can't be read" in member.message
    assert "unreadable" in render(found)


def test_what_a_newer_version_has_added_is_let_through(objects: ObjectStore) -> None:
    study = submitted(objects, 5)
    data = objects.get(study_key(PROJECT, study.id))
    objects.put(study_key(PROJECT, study.id), data.replace(b"{", b'{"colour": "green",', 1))
    assert load(objects, PROJECT, study.id) == study
