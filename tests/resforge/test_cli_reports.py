"""`resforge evaluate`, `analyse` and `report` against a real API over a real database and a real S3 server."""

import hashlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resforge.jobs import Job, JobState
from resforge.reports import Report
from resforge.resources import JobReport
from resforge.storage import REPORT, Part
from tests.resforge.cli_runner import Cli, Done
from tests.services.api.harness import PROJECT, Api, wait_for

S = JobState
PNG = b"\x89PNG picture"


def publish(api: Api, job: Job) -> Report:
    part = Part(name="lesions.png", size=len(PNG), sha256=hashlib.sha256(PNG).hexdigest())
    report = Report(
        kind="analyse", name="lesions", title="Lesions of resnet-20", job=job.id, attempt=1, checkpoints=(),
        dataset="digits", split="test", images=360, source="Veit et al. 2016, section 4",
        values={"top1_error": 0.125, "by_block": {"layer1.1": 0.5, "layer1.2": 0.25}, "none": None},
        units={"top1_error": "fraction", "by_block": "fraction, by block", "none": "a unit"}, pictures=(part,),
        seconds=1.5, device="cpu", made_at=datetime.now(UTC),
    )  # fmt: skip
    folder = api.prefix(job).attempt(1).report
    api.objects.put(folder + part.name, PNG)
    api.objects.put(folder + REPORT, report.to_bytes())
    return report


def ended(api: Api, call: Callable[[], Done], end: JobState = S.SUCCEEDED) -> tuple[Done, Job]:
    """What the command left whose job is taken to its end meanwhile, and the job."""
    known = {job.id for job in api.client().jobs()}
    new: list[Job] = []

    def controller() -> None:
        wait_for(lambda: any(job.id not in known for job in api.client().jobs()), "the job")
        [job] = [job for job in api.client().jobs() if job.id not in known]
        job = api.to(api.start(api.store.job(PROJECT, job.id)), S.RUNNING)
        publish(api, job)
        new.append(api.to(job, end))

    acting = threading.Thread(target=controller)
    acting.start()
    done = call()
    acting.join()
    return done, new[0]


def test_an_evaluation_of_an_ensemble_under_a_protocol(cli: Cli, api: Api) -> None:
    one, other = api.ended(), api.ended()
    done = cli(
        "evaluate", f"{one.id}:latest", other.id, "--views", "multi-scale", "--limit", 100, "--split", "train",
        "--set", "protocol.scales=[8, 16]", "--no-watch", "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    spec = Job.model_validate(done.json).spec
    assert spec.kind == "evaluate"
    assert [str(item) for item in spec.checkpoints] == [f"{one.id}:latest", f"{other.id}:best"]
    assert (spec.protocol.views, spec.protocol.scales) == ("multi-scale", (8, 16))
    assert (spec.data.dataset, spec.data.split, spec.data.limit) == (None, "train", 100)


def test_an_evaluation_by_a_recipe(cli: Cli, api: Api) -> None:
    source = api.ended()
    words = ("--recipe", "imagenet/resnet-50/ten-crop", "--set", "scaling.gpus_per_worker=0", "--no-watch", "--json")
    done = cli("evaluate", source.id, *words)
    assert (done.code, done.err) == (0, "")
    spec = Job.model_validate(done.json).spec
    assert spec.kind == "evaluate"
    assert (spec.recipe, spec.protocol.views) == ("imagenet/resnet-50/ten-crop", "ten-crop")
    assert (spec.scaling.gpus_per_worker, spec.scaling.cpus_per_worker) == (0, 8)
    training = cli("evaluate", source.id, "--recipe", "imagenet/resnet-50")
    assert "this is a training, for `resforge submit`; its evaluations are imagenet/resnet-50/ten-crop" in training.err
    assert "did you mean imagenet/resnet-50" in cli("evaluate", source.id, "--recipe", "imagenet/resnet50/10").err


def test_a_reading_of_a_checkpoint_by_its_step(cli: Cli, api: Api) -> None:
    source = api.ended()
    api.checkpoint(source, 10, top1=0.9)
    done = cli(
        "analyse", f"{source.id}:10", "landscape", "--set", "reading.points=5", "--workers", 2, "--no-watch", "--json"
    )
    assert (done.code, done.err) == (0, "")
    spec = Job.model_validate(done.json).spec
    assert spec.kind == "analyse"
    assert (str(spec.checkpoint), spec.reading.name, spec.scaling.workers) == (f"{source.id}:10", "landscape", 2)
    assert spec.reading.model_dump()["points"] == 5
    told = cli("analyse", f"{source.id}:10", "lesions", "--no-watch").out
    assert "`resforge report job-" in told


def test_waiting_shows_what_was_found(cli: Cli, api: Api, tmp_path: Path) -> None:
    source = api.ended()
    done, job = ended(api, lambda: cli("analyse", source.id, "lesions", "-o", tmp_path / "found"))
    assert done.code == 0
    assert f"job {job.id} SUCCEEDED" in done.err
    for words in (
        "Lesions of resnet-20: 360 images of digits (test), 1.5 s", "source: Veit et al. 2016, section 4",
        "top1_error", "0.125", "(2 entries)", str(tmp_path / "found" / "lesions.png"),
    ):  # fmt: skip
        assert words in done.out
    assert (tmp_path / "found" / "lesions.png").read_bytes() == PNG
    assert Report.model_validate_json((tmp_path / "found" / REPORT).read_bytes()).job == job.id


def test_a_program_gets_the_report_alone(cli: Cli, api: Api) -> None:
    source = api.ended()
    done, job = ended(api, lambda: cli("evaluate", source.id, "--json"))
    assert (done.code, done.err) == (0, "")
    assert JobReport.model_validate(done.json).report.job == job.id


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_a_job_that_fails_is_1_and_shows_no_report(cli: Cli, api: Api, words: tuple[str, ...]) -> None:
    source = api.ended()
    done, job = ended(api, lambda: cli("evaluate", source.id, *words), S.FAILED)
    assert done.code == 1
    assert "Lesions" not in done.out
    if words:
        assert Job.model_validate(done.json).id == job.id


def test_a_report_of_an_ended_job(cli: Cli, api: Api, tmp_path: Path) -> None:
    job = api.running()
    nothing = cli("report", job.id)
    assert nothing.code == 3
    report = publish(api, job)
    assert JobReport.model_validate(cli("report", job.id, "--json").json).report == report
    assert f"pictures: lesions.png; `resforge report {job.id} -o FOLDER`" in cli("report", job.id).out
    assert cli("report", job.id, "-o", tmp_path / "a" / "b").code == 0
    assert (tmp_path / "a" / "b" / "lesions.png").read_bytes() == PNG
    api.objects.put(api.prefix(job).attempt(1).report + "lesions.png", b"\x89PNG changed")
    damaged = cli("report", job.id, "-o", tmp_path / "c")
    assert damaged.code == 7
    assert not list((tmp_path / "c").iterdir())


JOB = "job-aaaaaaaaaaaa"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "job-1"), "/checkpoints/0/job: "),
        (("evaluate", f"{JOB}:newest"), "/checkpoints/0/which: expected best, latest, or the number of a step"),
        (("evaluate", JOB, "--views", "sideways"), "/protocol/views: "),
        (("evaluate", JOB, "--split", "left"), "/data/split: "),
        (("evaluate", JOB, "--limit", 0), "--limit"),
        (("evaluate", JOB, "--no-watch", "-o", "here"), "--output waits for the report"),
        (("analyse", JOB, "dreams"), "/reading"),
        (("analyse", JOB, "lesions", "--workers", 2), "only a landscape is spread over several workers"),
        (("analyse", JOB, "lesions", "--set", "reading.moons=2"), "/reading/moons: unknown field"),
        (("analyse", JOB), "reading"),
    ],
)
def test_what_is_no_job_is_refused_before_anything_is_posted(
    offline: Cli, words: tuple[object, ...], message: str
) -> None:
    done = offline(*words)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_what_only_the_service_knows_is_refused_with_its_words(cli: Cli, api: Api) -> None:
    assert "no job" in (done := cli("evaluate", JOB)).err
    assert done.code == 2
    source = api.ended()
    done = cli("evaluate", f"{source.id}:7")
    assert done.code == 2
    assert f"job {source.id} has no checkpoint of step 7; it has none" in done.err


@pytest.mark.parametrize("command", ["evaluate", "analyse", "report"])
def test_every_command_helps(offline: Cli, command: str) -> None:
    done = offline(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out
