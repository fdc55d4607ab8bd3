"""Evaluations, readings and studies over HTTP: what is taken, what is refused, and their reports."""

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import pytest

from resforge.errors import Conflict, CorruptDownload, NotFound, Refused
from resforge.jobs import Job, JobState
from resforge.reports import Report
from resforge.resources import StudyInfo
from resforge.storage import REPORT, Part, Result, Stream, study_key
from resforge.studies import gather, load
from services.store import connect
from services.store.records import Change
from services.store.store import JobStore
from tests.s3 import S3Server
from tests.services.api.harness import AT, PROJECT, Api, evaluation, point, serve

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
    assert "no checkpoint of step 5; it has none" in refusals(http, evaluate(source, 5))["/checkpoints/0/which"]
    failed = api.to(api.running(), S.FAILED)
    assert "is FAILED" in refusals(http, evaluate(failed))["/checkpoints/0/job"]
    api.checkpoint(failed, 5, top1=0.5)
    api.checkpoint(failed, 15, top1=0.5)
    told = refusals(http, evaluate(failed, 6))["/checkpoints/0/which"]
    assert told.endswith("no checkpoint of step 6; its newest are those of 5, 15")
    assert http.post("/v1/jobs", json=evaluate(failed, 5)).status_code == 202


def test_what_can_not_be_shown(api: Api, http: httpx.Client) -> None:
    source = api.submit()
    answer = http.post("/v1/jobs", json=evaluate(source, data={"dataset": "synthetic"})).json()
    # The channels and the sizes differ, and both are told at the checkpoint.
    assert [item["pointer"] for item in answer["errors"]] == ["/checkpoints/0/job"] * 2
    channels, size = (item["message"] for item in answer["errors"])
    assert "1 channel(s) and 10 classes" in channels
    assert "8 pixels" in size
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
    gated = {**grown, "model": {"depth": 32, "shortcut": "exclusive-gating"}}
    assert "no identity blocks can be appended to cifar/resnet-32-exclusive" in refusals(http, gated)["/init/take"]
    other = {**same, "data": {"dataset": "synthetic", "augment": {"pad": 0}}}
    assert "1 channel(s)" in refusals(http, other)["/init/checkpoint/job"]


def test_an_ensemble_is_not_shown_what_a_member_was_trained_on(api: Api, http: httpx.Client) -> None:
    base = {"recipe": "digits/resnet-20", "data": {"validation": 100}}
    one, same = (http.post("/v1/jobs", json=base).json()["id"] for _ in range(2))
    other = http.post("/v1/jobs", json={**base, "training": {"seed": 5}}).json()["id"]

    def ensemble(*ids: str, split: str = "validation") -> dict[str, Any]:
        return {"kind": "evaluate", "checkpoints": [{"job": id} for id in ids], "data": {"split": split}}

    assert http.post("/v1/jobs", json=ensemble(one, same)).status_code == 202
    assert http.post("/v1/jobs", json=ensemble(one, other, split="test")).status_code == 202
    assert "held different images back" in refusals(http, ensemble(one, other))["/data/split"]


def test_augmentation_must_fit_the_images(http: httpx.Client) -> None:
    digits = {"recipe": "digits/resnet-20"}
    told = refusals(http, {**digits, "data": {"augment": {"colour": 0.1}}})
    assert "those of digits have 1 channel(s)" in told["/data/augment/colour"]
    for name, value in (("scale", [9, 12]), ("area", [0.5, 1])):
        told = refusals(http, {**digits, "data": {"augment": {"pad": 0, name: value}}})
        assert "digits holds images of one size" in told[f"/data/augment/{name}"]
    told = refusals(http, {**digits, "training": {"progressive_from": 16}})
    assert "which has 8 pixels" in told["/training/progressive_from"]
    assert http.post("/v1/jobs", json={**digits, "training": {"progressive_from": 8}}).status_code == 202


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


# Studies

STUDY = {"study": "degradation", "setting": "digits", "seeds": [0]}


def finish(api: Api, study: StudyInfo, state: Literal[JobState.SUCCEEDED, JobState.CANCELLED]) -> None:
    for member in study.members:
        job = api.store.job(PROJECT, member.job)
        if state is S.SUCCEEDED:
            job = api.to(api.start(job), S.RUNNING)
            right = evaluation(10, 0.75)
            of_training = right.model_copy(update={"split": "train"})
            api.append(job, Stream.METRICS, 1, [point(10), of_training, right])
            result = Result(at=AT, outcome="succeeded")
            api.objects.put(api.prefix(job).attempt(1).result, result.to_bytes())
        api.to(job, state)


def test_a_study_becomes_its_jobs_at_once(fresh_api: Api) -> None:
    api = fresh_api
    with api.client() as client:
        study = client.submit_study(STUDY, idempotency_key="once")
        assert client.submit_study(STUDY, idempotency_key="once") == study
        with pytest.raises(Refused, match="Idempotency-Key"):
            client.submit_study({**STUDY, "seeds": [1]}, idempotency_key="once")
        assert (study.state, study.counts, len(study.members)) == (S.QUEUED, {"QUEUED": 4}, 4)
        assert (study.done, study.deleted, study.started_at, study.finished_at) == (0, 0, None, None)
        assert [item.id for item in client.studies()] == [study.id]
        jobs = list(client.jobs(labels={"study": study.id}))
        assert {job.id for job in jobs} == {member.job for member in study.members}
        # The documents of those that came with the key again are gone.
        assert api.objects.find(study_key(PROJECT, study.id)) is not None
        assert len(list(api.objects.list_objects(f"{PROJECT}/studies/"))) == 1
        assert client.study_report(study.id).unfinished == tuple(member.key for member in study.members)


def test_a_study_ends_as_one(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study(STUDY)
        first = api.start(api.store.job(PROJECT, study.members[0].job))
        first = api.change(first, lambda _: Change(job={"state": S.RUNNING, "started_at": AT}))
        api.change(first, lambda _: Change(job={"state": S.SUCCEEDED, "finished_at": AT}))
        running = client.study(study.id)
        assert (running.state, running.done, running.started_at, running.finished_at) == (S.RUNNING, 0.25, AT, None)
        assert client.cancel_study(study.id).state is S.CANCELLING
        for member in study.members[1:]:
            api.to(api.store.job(PROJECT, member.job), S.CANCELLED)
        found = client.study(study.id)
        assert (found.state, found.counts) == (S.CANCELLED, {"SUCCEEDED": 1, "CANCELLED": 3})
        assert found.finished_at == AT
        assert client.wait_study(study.id, 5) == found
        assert list(client.watch_study(study.id)) == [found]
        client.delete(study.members[1].job)
        without = client.study(study.id)
        assert (without.members[1].message, without.members[1].state, without.deleted) == ("deleted", None, 1)
        assert client.study_report(study.id).members[1].outcome == "deleted"
        with pytest.raises(NotFound):
            client.study("study-aaaaaaaaaaaa")


def test_an_ended_study_is_deleted_with_all_that_it_has_left(api: Api) -> None:
    with api.client() as client:
        study, other = client.submit_study(STUDY), client.submit_study(STUDY)
        with pytest.raises(Conflict, match=r"4 jobs of study .* have not ended; cancel it first"):
            client.delete_study(study.id)
        finish(api, study, S.SUCCEEDED)
        prefixes = [f"{PROJECT}/{member.job}/" for member in study.members]
        left = sum(len(list(api.objects.list_objects(prefix))) for prefix in prefixes)
        assert left == 8
        removed = client.delete_study(study.id)
        assert (removed.deleted, removed.objects_removed) == (study.id, left + 1)
        assert not any(list(api.objects.list_objects(prefix)) for prefix in prefixes)
        assert api.objects.find(study_key(PROJECT, study.id)) is None
        for call in (client.study, client.delete_study, client.cancel_study, client.study_report, client.study_page):
            with pytest.raises(NotFound):
                call(study.id)
        with pytest.raises(NotFound):
            client.job(study.members[0].job)
        assert len(client.study(other.id).members) == 4


def test_studies_a_page_at_a_time(fresh_api: Api) -> None:
    with fresh_api.client() as client, fresh_api.http() as http:
        given = [client.submit_study(STUDY).id for _ in range(5)]
        newest_first = given[::-1]
        for size in (1, 2, 5, 200):
            assert [item.id for item in client.studies(page_size=size)] == newest_first
        page = http.get("/v1/studies", params={"limit": 2}).json()
        assert [item["id"] for item in page["items"]] == newest_first[:2]
        rest = http.get("/v1/studies", params={"cursor": page["next_cursor"]}).json()
        assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == (newest_first[2:], None)
        for params, status in (({"cursor": "nonsense"}, 422), ({"limit": 0}, 422), ({"limit": 201}, 422)):
            assert http.get("/v1/studies", params=params).status_code == status
        assert http.get("/v1/studies", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_study_whose_members_build_upon_each_other(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study({"study": "identity", "setting": "digits", "seeds": [0]})
        by_key = {member.key: member for member in study.members}
        assert by_key["resnet-14-start/seed-0"].role == "start"
        for name in ("14-start", "14-grown", "8-continued"):
            job = api.store.job(PROJECT, by_key[f"resnet-{name}/seed-0"].job)
            assert [source.job for source in job.spec.sources] == [by_key["resnet-8/seed-0"].job]


def test_readings_wait_for_their_trainings(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study({**STUDY, "readings": True})
        by_key = {member.key: member for member in study.members}
        assert len(study.members) == 12
        reading = api.store.job(PROJECT, by_key["plain-8/seed-0/gradients"].job)
        assert reading.spec.kind == "analyse"
        assert [source.job for source in reading.spec.sources] == [by_key["plain-8/seed-0"].job]


@pytest.mark.parametrize(
    ("changes", "pointer", "said"),
    [
        ({"setting": "small"}, "/setting", "in the study's job plain-20/seed-0: no dataset of that name"),
        ({"study": "dreams"}, "/study", "degradation"),
        ({"depths": [8, 9]}, "/depths", "in the study's job plain-9/seed-0: a cifar network has 6n+2 layers"),
        ({"seeds": [2**32]}, "/seeds", f"in the study's job plain-8/seed-{2**32}"),
        ({"workers": 3}, "", "does not divide over 3 workers"),
        ({"overrides": {"optim": {"lr": -1}}}, "/overrides/optim/lr", "in the study's job plain-8/seed-0"),
        ({"overrides": {"moons": 2}}, "/overrides/moons", "unknown field"),
        ({"overrides": {"model": {"shortcut": "B"}}}, "/overrides/model/shortcut", "sets this field itself"),
        ({"overrides": {"data": {"dataset": "@plain-8/seed-0"}}}, "/overrides/data/dataset", "in the study's job"),
        ({"overrides": {"retry": {"job": "@nobody"}}}, "/overrides/retry/job", "unknown field"),
        ({"study": "transfer", "source": "moon"}, "/source", "no dataset of that name"),
        ({"study": "transfer", "target": "fashion-mnist"}, "/source", "both are fashion-mnist"),
    ],
    ids=str,
)
def test_a_study_that_can_not_run_leaves_nothing(
    api: Api, http: httpx.Client, changes: dict[str, Any], pointer: str, said: str
) -> None:
    def there() -> tuple[set[str], set[str], int]:
        with api.client() as client:
            documents = len(list(api.objects.list_objects(f"{PROJECT}/studies/")))
            return {item.id for item in client.studies()}, {job.id for job in client.jobs()}, documents

    before = there()
    answer = http.post("/v1/studies", json={**STUDY, **changes})
    assert answer.status_code == 422, answer.text
    told = [(item["pointer"], item["message"]) for item in answer.json()["errors"]]
    assert any(where == pointer and said in message for where, message in told), told
    assert len(set(told)) == len(told)
    assert there() == before


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
    answer = http.get(f"/v1/studies/{study.id}/report.html")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_report_needs_no_database(api: Api) -> None:
    with api.client() as client:
        study = client.submit_study(STUDY)
        finish(api, study, S.SUCCEEDED)
        told = client.study_report(study.id)
        assert told.unfinished == ()
        alone = gather(api.objects, load(api.objects, PROJECT, study.id))
        assert alone.model_copy(update={"made_at": told.made_at}) == told
        # A bucket that lost the study's document gets it again with the next report.
        api.objects.delete(study_key(PROJECT, study.id))
        client.study_report(study.id)
        assert load(api.objects, PROJECT, study.id).id == study.id


def test_a_study_outlives_the_api_that_took_it(sqlite_url: str, s3: S3Server) -> None:
    engine = connect(sqlite_url)
    store = JobStore(engine)
    store.create_project(PROJECT)
    with serve(store, s3) as api, api.client() as client:
        study = client.submit_study(STUDY, idempotency_key="once")
    engine.dispose()
    engine = connect(sqlite_url)
    try:
        with serve(JobStore(engine), s3) as api, api.client() as client:
            assert client.study(study.id) == study
            assert client.submit_study(STUDY, idempotency_key="once") == study
            finish(api, study, S.SUCCEEDED)
            assert client.wait_study(study.id, 5).state is S.SUCCEEDED
            assert client.study_report(study.id).unfinished == ()
    finally:
        engine.dispose()
