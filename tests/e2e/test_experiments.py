"""Every reading, protocol and study through the API, on one stack and one shared checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from resforge.client import Client
from resforge.errors import NotFound
from resforge.jobs import Job
from resforge.resources import JobReport, StudyInfo
from resforge.s3 import ObjectStore
from resforge.spec.readings import READINGS
from resforge.studies import STUDIES, gather, load
from tests.embedded import EmbeddedStack
from tests.resforge.cli_runner import Cli
from tests.system_packages import FASHION_MNIST

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

SMALL = {
    "lesions": {"most": 2, "draws": 1, "swaps": 1},
    "landscape": {"points": 5},
    "smoothing": {"batch": 32, "batches": 2, "steps": 3},
    "gradients": {"batch": 64},
    "paths": {"batch": 16, "draws": 2},
    "ode": {"levels": 1},
}


@pytest.fixture(scope="module")
def trained(stack: EmbeddedStack) -> Iterator[Job]:
    with stack.client() as client:
        job = client.submit(
            {"recipe": "digits/resnet-20", "model": {"depth": 14, "width": 8}, "training": {"epochs": 6},
             "data": {"validation": 100}}
        )  # fmt: skip
        yield client.wait(job.id, 240)


@pytest.fixture(scope="module")
def looked(stack: EmbeddedStack, trained: Job) -> dict[str, str]:
    """The ids of all evaluations and readings, which run beside each other."""
    checkpoint = {"job": trained.id}
    documents: dict[str, dict[str, object]] = {
        name: {
            "kind": "analyse", "checkpoint": checkpoint, "reading": {"name": name, **SMALL.get(name, {})},
            "data": {"limit": 120}, "scaling": {"workers": 2 if name == "landscape" else 1},
        }
        for name in READINGS
    }  # fmt: skip
    for name, fields in {
        "centre": {},
        "ten-crop": {"protocol": {"views": "ten-crop"}},
        "multi-scale": {"protocol": {"views": "multi-scale"}, "data": {"limit": 60}},
        "ensemble": {"checkpoints": [checkpoint, {**checkpoint, "which": "latest"}]},
        "recomputed": {"protocol": {"recompute_batch_norm": 512}},
        "validation": {"data": {"split": "validation"}},
    }.items():
        documents[name] = {"kind": "evaluate", "checkpoints": [checkpoint], **fields}
    with stack.client() as client:
        return {name: client.submit(document).id for name, document in documents.items()}


def report(client: Client, job_id: str) -> JobReport:
    job = client.wait(job_id, 300)
    assert (job.state, job.attempts) == ("SUCCEEDED", 1), (job.reason, job.message)
    return client.report(job_id)


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_leaves_figures_and_a_picture(
    name: str, client: Client, trained: Job, looked: dict[str, str], tmp_path: Path
) -> None:
    found = report(client, looked[name]).report
    assert (found.name, found.kind, found.images) == (name, "analyse", 120)
    assert found.checkpoints[0].job == trained.id
    assert set(found.values) == set(found.units)
    client.download_report(looked[name], tmp_path)
    for part in found.pictures:
        assert (tmp_path / part.name).read_bytes().startswith(b"\x89PNG")
    assert client.job(looked[name]).result is None


def test_evaluations_agree_with_what_the_training_reported(
    client: Client, trained: Job, looked: dict[str, str]
) -> None:
    assert trained.result is not None
    held_back = report(client, looked["validation"]).report
    assert held_back.images == 100
    assert held_back.values["top1_error"] == pytest.approx(1 - trained.result.top1)
    assert trained.result.split == "validation"
    centre = report(client, looked["centre"]).report
    assert (centre.images, centre.dataset, centre.split) == (360, "digits", "test")
    result = client.job(looked["centre"]).result
    assert result is not None
    assert result.top1 == pytest.approx(1 - centre.values["top1_error"])
    assert result.top1 > 0.8


@pytest.mark.parametrize("name", ["ten-crop", "multi-scale", "ensemble", "recomputed"])
def test_every_protocol_gives_a_result(name: str, client: Client, looked: dict[str, str]) -> None:
    found = report(client, looked[name]).report
    assert 0 <= found.values["top1_error"] < 0.9
    assert len(found.checkpoints) == (2 if name == "ensemble" else 1)
    assert found.pictures


def test_a_reading_that_can_not_be_taken_says_why(client: Client, trained: Job) -> None:
    job = client.submit(
        {"kind": "analyse", "checkpoint": {"job": trained.id}, "reading": {"name": "lesions", "blocks": ["conv1"]}}
    )
    ended = client.wait(job.id, 120)
    assert (ended.state, ended.reason, ended.attempts) == ("FAILED", "Unreadable", 1)
    assert "no block that can be deleted; accepted are layer1.0" in ended.message


@pytest.fixture(scope="module")
def studies(stack: EmbeddedStack) -> dict[str, StudyInfo]:
    """All studies on the digits, of one seed and one epoch, submitted at once; one of them with readings."""
    with stack.client() as client:
        there = {item.name for item in client.datasets()}
        return {
            study: client.submit_study(
                {"study": study, "setting": "digits", "seeds": [0], "overrides": {"training": {"epochs": 1}},
                 "readings": study == "identity"}
            )
            for study in STUDIES
            if study != "transfer" or "fashion-mnist" in there
        }  # fmt: skip


# A transfer on digits comes from Fashion-MNIST.
WITH_DATA = [pytest.param(study, marks=FASHION_MNIST.mark) if study == "transfer" else study for study in STUDIES]


@pytest.mark.parametrize("study", WITH_DATA)
def test_a_study_ends_with_a_report(
    study: str, client: Client, studies: dict[str, StudyInfo], stack: EmbeddedStack, objects: ObjectStore,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended = client.wait_study(studies[study].id, 800)
    assert ended.state == "SUCCEEDED", [(member.key, member.message) for member in ended.members]
    page = tmp_path / "report.html"
    done = Cli(monkeypatch, capsys)("--home", stack.path, "study", "report", ended.id, "-o", page, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["unfinished"] == []
    for series in found["series"]:
        running = ["running_train_error"] if series["role"] == "training" else []  # a start trains nothing
        for figure in ("train_error", "test_error", *running):
            assert 0 <= series[figure]["mean"] <= 100
    assert found["findings"]
    assert all(finding["holds"] is not None for finding in found["findings"])
    assert "<svg" in page.read_text()
    # Object storage alone gives it again.
    alone = gather(objects, load(objects, ended.project, ended.id))
    assert alone.model_dump(mode="json", exclude={"made_at"}) == {k: v for k, v in found.items() if k != "made_at"}


def test_a_grown_network_begins_exactly_where_the_shallow_one_ended(
    client: Client, studies: dict[str, StudyInfo]
) -> None:
    client.wait_study(studies["identity"].id, 800)
    report = client.study_report(studies["identity"].id)
    starts = [finding for finding in report.findings if finding.statement.startswith("before its first step")]
    assert [(finding.holds, finding.numbers["largest_difference_in_nats_by_seed"]) for finding in starts] == [
        (True, {"0": 0.0})
    ] * 2
    travelled = [member for member in report.members if member.role == "reading"]
    assert [member.report.name for member in travelled if member.report] == ["travel", "travel"]
    assert client.study_page(report.id).count("data:image/png") >= 2


def test_a_study_is_cancelled_and_deleted_as_one(client: Client, objects: ObjectStore) -> None:
    study = client.submit_study({"study": "degradation", "setting": "digits", "seeds": [0, 1]})
    client.cancel_study(study.id)
    ended = client.wait_study(study.id, 240)
    assert ended.state == "CANCELLED"
    assert client.study_report(study.id).unfinished
    client.delete_study(study.id)
    assert not any(list(objects.list_objects(f"{study.project}/{member.job}/")) for member in study.members)
    with pytest.raises(NotFound):
        client.study(study.id)
