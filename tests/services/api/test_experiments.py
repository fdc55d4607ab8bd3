"""Evaluations, readings and studies over HTTP: what is taken, what is refused, and their reports."""

import hashlib
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from resforge.errors import CorruptDownload, NotFound, Refused
from resforge.jobs import Job, JobState
from resforge.reports import Report
from resforge.storage import REPORT, Part, Stream, study_key
from tests.services.api.harness import PROJECT, Api, evaluation, point

S = JobState


def refusals(http: httpx.Client, document: dict[str, Any]) -> dict[str, str]:
    answer = http.post("/v1/jobs", json=document)
    assert answer.status_code == 422, answer.text
    return {item["pointer"]: item["message"] for item in answer.json()["errors"]}


def evaluate(job: Job | str, which: str | int = "best", **fields: Any) -> dict[str, Any]:
    reference = {"job": job if isinstance(job, str) else job.id, "which": which}
    return {"kind": "evaluate", "checkpoints": [reference], **fields}


def test_an_evaluation_takes_its_sources_data_set(api: Api, http: httpx.Client) -> None:
    source = api.submit()
    answer = http.post("/v1/jobs", json=evaluate(source, protocol={"views": "ten-crop"}))
    assert answer.status_code == 202, answer.text
    job = Job.model_validate(answer.json())
    assert (job.spec.kind, job.dataset, job.state) == ("evaluate", "digits", "QUEUED")
    assert job.spec.subject == f"ten-crop of {source.id}:best"


def test_what_can_not_be_a_source(api: Api, http: httpx.Client) -> None:
    source = api.submit()
    reading = {"kind": "analyse", "checkpoint": {"job": source.id}, "reading": {"name": "lesions"}}
    analysis = http.post("/v1/jobs", json=reading).json()["id"]
    assert "no job" in refusals(http, evaluate("job-aaaaaaaaaaaa"))["/checkpoints/0/job"]
    assert "only training leaves checkpoints" in refusals(http, evaluate(analysis))["/checkpoints/0/job"]
    assert "no checkpoint of step 5; there are none" in refusals(http, evaluate(source, 5))["/checkpoints/0/which"]
    failed = api.to(api.running(), S.FAILED)
    assert "is FAILED" in refusals(http, evaluate(failed))["/checkpoints/0/job"]
    api.checkpoint(failed, 5, top1=0.5)
    assert http.post("/v1/jobs", json=evaluate(failed, 5)).status_code == 202


def test_what_can_not_be_shown(api: Api, http: httpx.Client) -> None:
    source = api.submit()
    told = refusals(http, evaluate(source, data={"dataset": "synthetic"}))["/checkpoints/0/job"]
    assert "1 channel(s)" in told
    assert "registered are: digits" in refusals(http, evaluate(source, data={"dataset": "moon"}))["/data/dataset"]
    assert "held no images back" in refusals(http, evaluate(source, data={"split": "validation"}))["/data/split"]


def test_weights_to_begin_with_must_fit(api: Api, http: httpx.Client) -> None:
    source = api.submit()  # resnet-20 on digits
    begin = {"checkpoint": {"job": source.id}}
    same = {"recipe": "digits/resnet-20", "init": begin}
    assert http.post("/v1/jobs", json=same).status_code == 202
    grown = {"recipe": "digits/resnet-20", "model": {"depth": 32}, "init": {**begin, "take": "grow"}}
    assert http.post("/v1/jobs", json=grown).status_code == 202
    shrunk = {**grown, "model": {"depth": 14}}
    assert "does not grow into" in refusals(http, shrunk)["/init/take"]
    assert "is cifar/resnet-32" in refusals(http, {**same, "model": {"depth": 32}})["/init/take"]
    other = {**same, "data": {"dataset": "synthetic", "augment": {"pad": 0}}}
    assert "1 channel(s)" in refusals(http, other)["/init/checkpoint/job"]


def test_a_split_must_leave_something(http: httpx.Client) -> None:
    told = refusals(http, {"recipe": "digits/resnet-20", "data": {"validation": 1437}})
    assert "nothing is left" in told["/data/validation"]
    told = refusals(http, {"recipe": "digits/resnet-20", "data": {"downscale": 3}})
    assert "can't be downscaled by 3" in told["/data/downscale"]


def publish(api: Api, job: Job, picture: bytes = b"png", **fields: Any) -> Report:
    part = Part(name="lesions.png", size=len(picture), sha256=hashlib.sha256(picture).hexdigest())
    report = Report(
        kind="analyse", name="lesions", title="lesions of it", job=job.id, attempt=1, checkpoints=(), dataset="digits",
        split="test", images=360, values={"error": 0.1}, pictures=(part,), seconds=1, device="cpu",
        made_at=datetime.now(UTC), **fields,
    )  # fmt: skip
    folder = api.prefix(job).attempt(1).report
    api.objects.put(folder + "lesions.png", picture)
    api.objects.put(folder + REPORT, report.to_bytes())
    return report


def test_a_report_and_its_pictures(api: Api, tmp_path: Any) -> None:
    job = api.running()
    with api.client() as client:
        with pytest.raises(NotFound, match="leaves metrics and checkpoints"):
            client.report(job.id)
        report = publish(api, job)
        assert client.report(job.id).report == report
        client.download_report(job.id, tmp_path)
        assert (tmp_path / "lesions.png").read_bytes() == b"png"
        assert Report.model_validate_json((tmp_path / REPORT).read_bytes()) == report
        api.objects.put(api.prefix(job).attempt(1).report + "lesions.png", b"bad")
        with pytest.raises(CorruptDownload, match="SHA-256"):
            client.download_report(job.id, tmp_path / "again")
        assert not list((tmp_path / "again").iterdir())


STUDY = {"study": "degradation", "setting": "digits", "seeds": [0]}


def test_a_study_becomes_its_jobs_at_once(api: Api, http: httpx.Client) -> None:
    with api.client() as client:
        study = client.submit_study(STUDY, idempotency_key="once")
        assert client.submit_study(STUDY, idempotency_key="once") == study
        with pytest.raises(Refused, match="Idempotency-Key"):
            client.submit_study({**STUDY, "seeds": [1]}, idempotency_key="once")
        assert (study.state, study.counts, len(study.members)) == (S.QUEUED, {"QUEUED": 4}, 4)
        assert [item.id for item in client.studies()] == [study.id]
        jobs = list(client.jobs(labels={"study": study.id}))
        assert {job.id for job in jobs} == {member.job for member in study.members}
        assert api.objects.find(study_key(PROJECT, study.id)) is not None
        assert client.study_report(study.id).unfinished == tuple(member.key for member in study.members)


def test_a_study_ends_as_one(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study(STUDY)
        first = api.store.job(PROJECT, study.members[0].job)
        api.to(api.start(first), S.RUNNING, S.SUCCEEDED)
        assert client.study(study.id).state is S.RUNNING
        assert client.cancel_study(study.id).state is S.CANCELLING
        for member in study.members[1:]:
            api.to(api.store.job(PROJECT, member.job), S.CANCELLED)
        found = client.study(study.id)
        assert (found.state, found.counts) == (S.CANCELLED, {"SUCCEEDED": 1, "CANCELLED": 3})
        client.delete(study.members[1].job)
        assert client.study(study.id).members[1].message == "deleted"
        with pytest.raises(NotFound):
            client.study("study-aaaaaaaaaaaa")


def test_a_study_whose_members_build_upon_each_other(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study({"study": "identity", "setting": "digits", "seeds": [0]})
        by_key = {member.key: member.job for member in study.members}
        grown = api.store.job(PROJECT, by_key["resnet-14-grown/seed-0"])
        assert [source.job for source in grown.spec.sources] == [by_key["resnet-8/seed-0"]]


def test_a_study_that_can_not_run_leaves_nothing(api: Api) -> None:
    with api.client() as client:
        with pytest.raises(Refused, match="in the study's job plain-20/seed-0: no dataset of that name"):
            client.submit_study({"study": "degradation", "setting": "small", "seeds": [0]})
        with pytest.raises(Refused, match="/study: "):
            client.submit_study({"study": "dreams"})
        assert not client.studies()
        assert not list(client.jobs())


def test_the_report_is_made_of_what_lies_in_storage(api: Api, http: httpx.Client) -> None:
    with api.client() as client:
        study = client.submit_study(STUDY)
        job = api.to(api.start(api.store.job(PROJECT, study.members[0].job)), S.RUNNING)
        api.append(job, Stream.METRICS, 1, [point(10), evaluation(10, 0.75)])
        member = client.study_report(study.id).members[0]
        assert [step for step, _ in member.test_curve] == [10]
        page = client.study_page(study.id)
        assert page.startswith("<!doctype html>")
        assert "plain-8" in page
