"""`resforge study ...` against a real API over a real database and a real S3 server."""

import io
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from resforge.cli import studies
from resforge.jobs import JobState
from resforge.metrics import Progress
from resforge.resources import StudyInfo
from resforge.storage import Result, Stream
from resforge.studies import StudyReport
from services.store.records import Change
from tests.resforge.cli_runner import PROGRAM, Cli, Done
from tests.services.api.harness import AT, PROJECT, Api, evaluation, point, wait_for

S = JobState
WORDS = ("study", "run", "degradation", "--setting", "digits", "--seeds", 1)
ERRORS = {"plain-8": 0.2, "plain-14": 0.4, "resnet-8": 0.2, "resnet-14": 0.1}


@pytest.fixture
def submitted(cli: Cli) -> StudyInfo:
    return StudyInfo.model_validate(cli(*WORDS, "--no-watch", "--json").json)


def run_jobs(api: Api, study: StudyInfo, end: JobState = S.SUCCEEDED) -> None:
    """Take all jobs to their end as controller and trainer would."""
    for member in study.members:
        job = api.to(api.start(api.store.job(PROJECT, member.job)), S.RUNNING)
        at = Progress.model_validate(
            {"at": AT, "attempt": 1, "step": 30, "total_steps": 69, "epoch": 1, "total_epochs": 3}
        )
        job = api.change(job, lambda _, at=at: Change(job={"progress": at}))
        right = 1 - ERRORS[member.series]
        of_training = evaluation(69, right).model_copy(update={"split": "train"})
        api.append(job, Stream.METRICS, 1, [point(69), of_training, evaluation(69, right)])
        if end is S.SUCCEEDED:
            result = Result(at=AT, outcome="succeeded")
            api.objects.put(api.prefix(job).attempt(1).result, result.to_bytes())
        api.to(job, end)


def newest(api: Api) -> StudyInfo:
    return next(iter(api.client().studies(page_size=1)))


def watched(cli: Cli, api: Api, *words: object, end: JobState = S.SUCCEEDED) -> Done:
    """Call `resforge study run` while its jobs are taken to their end."""
    before = newest(api).id if list(api.client().studies()) else ""

    def controller() -> None:
        wait_for(lambda: bool(list(api.client().studies())) and newest(api).id != before, "the study")
        run_jobs(api, newest(api), end)

    acting = threading.Thread(target=controller)
    acting.start()
    done = cli(*WORDS, *words)
    acting.join()
    return done


def test_what_there_is_needs_no_service(offline: Cli) -> None:
    told = offline("study", "kinds", "--json").json
    assert set(told["studies"]) >= {"degradation", "identity", "preactivation"}
    assert set(told["settings"]) >= {"digits", "imagenet"}
    shown = offline("study", "kinds").out
    assert "fig. 6" in shown
    assert "digits, small" in shown


@pytest.mark.parametrize(
    "command", ["kinds", "run", "watch", "list", "show", "report", "cancel", "delete", None], ids=str
)
def test_every_command_helps(offline: Cli, command: str | None) -> None:
    done = offline("study", *([command] if command else []), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"resforge study{f' {command}' if command else ''} [OPTIONS]" in " ".join(done.out.split())


def test_a_study_with_all_that_can_be_asked(cli: Cli, api: Api) -> None:
    done = cli(
        *WORDS, "--depth", 8, "--depth", 20, "--workers", 2, "--readings", "--name", "try-1", "--no-watch", "--json",
        "--set", "training.epochs=2", "--set", "optim.lr=0.01",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    spec = api.client().study(done.json["id"]).spec
    assert (spec.study, spec.setting, spec.seeds, spec.depths) == ("degradation", "digits", (0,), (8, 20))
    assert (spec.workers, spec.readings, spec.name) == (2, True, "try-1")
    assert spec.overrides == {"training": {"epochs": 2}, "optim": {"lr": 0.01}}
    series = {member.series for member in api.client().study(done.json["id"]).members}
    assert series == {"plain-8", "plain-20", "resnet-8", "resnet-20"}
    # He et al.'s figure for 20 layers is of CIFAR-10.
    shown = " ".join(cli("study", "report", done.json["id"]).out.split())
    assert "8.75 He et al. 2015, table 6 (CIFAR-10 test error, not comparable)" in shown


def test_a_transfer_between_named_data_sets(cli: Cli, api: Api) -> None:
    words = ("study", "run", "transfer", "--setting", "digits", "--seeds", 1, "--no-watch")
    done = cli(*words, "--source", "synthetic", "--set", "training.global_batch=32")
    # Only the service knows that synthetic images have colours and the digits have none.
    assert done.code == 2
    assert "channel(s)" in done.err


def test_the_same_key_gives_the_same_study(cli: Cli) -> None:
    words = (*WORDS, "--no-watch", "--json", "--idempotency-key", "s-1")
    assert cli(*words).json["id"] == cli(*words).json["id"]
    assert cli(*words, "--set", "optim.lr=0.5").code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dreams",), "/study: "),
        (("degradation", "--setting", "moon"), "/setting: "),
        (("degradation", "--depth", 20), "/depths: the study degradation compares two depths or more"),
        (("degradation", "--seeds", 33), "32"),
        (("depth", "--target", "digits"), "/target: the study depth has one data set"),
        (("depth", "--set", "model.depth=20"), "/overrides/model/depth: the study depth sets this field itself"),
        (("depth", "--set", "training"), "expected FIELD=VALUE"),
        (("depth", "-o", "page.pdf"), "page.pdf: expected a name that ends in .html"),
        (("depth", "-o", "page.html", "--no-watch"), "--output waits for the report"),
    ],
)
def test_what_is_no_study_is_refused_before_anything_is_posted(
    offline: Cli, words: tuple[object, ...], message: str
) -> None:
    done = offline("study", "run", *words)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_running_shows_progress_and_then_the_report(cli: Cli, api: Api, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    done = watched(cli, api, "-o", page)
    study = newest(api)
    assert (done.code, study.state) == (0, "SUCCEEDED")
    assert f"study {study.id}: 4 jobs" in done.err
    assert "4 SUCCEEDED" in done.err
    assert "100%" in done.err
    for words in ("plain-14", "40.00", "holds: plain-14 has a higher training error than plain-8, in every seed"):
        assert words in done.out
    assert f"page: {page}" in done.out
    assert page.read_text().startswith("<!doctype html>")


def test_a_program_gets_the_report_alone(cli: Cli, api: Api) -> None:
    done = watched(cli, api, "--json")
    assert done.code == 0
    report = StudyReport.model_validate(done.json)
    assert report.id == newest(api).id
    assert [finding.holds for finding in report.findings] == [True, True, True]


def test_a_study_that_fails_shows_its_report_and_is_1(cli: Cli, api: Api) -> None:
    done = watched(cli, api, end=S.FAILED)
    assert done.code == 1
    assert "not known yet: plain-14" in done.out
    assert "not finished: plain-8/seed-0, plain-14/seed-0, resnet-8/seed-0, resnet-14/seed-0" in done.out


def test_watching_goes_on_with_a_study(cli: Cli, api: Api, submitted: StudyInfo) -> None:
    run_jobs(api, submitted)
    done = cli("study", "watch", submitted.id)
    assert done.code == 0
    assert f"study {submitted.id} SUCCEEDED: 4 SUCCEEDED" in done.err
    assert "resnet-14" in done.out


def test_lines_tell_how_far_running_jobs_have_come(
    api: Api, submitted: StudyInfo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studies, "_LINE_EVERY_S", 0.0)
    shown = follow(api, submitted, lambda client: studies._follow_lines(client, submitted.id))
    assert shown.state == "SUCCEEDED"
    said = capsys.readouterr().err
    assert "plain-8/seed-0 30/69" in said
    assert "  0% QUEUED: 4 QUEUED" in said


def test_a_terminal_gets_a_bar_for_the_study_and_for_each_job_that_runs(api: Api, submitted: StudyInfo) -> None:
    screen = io.StringIO()
    out = Console(file=screen, force_terminal=True, width=120)
    shown = follow(api, submitted, lambda client: studies._follow_bars(client, submitted.id, out))
    assert shown.state == "SUCCEEDED"
    assert "plain-8/seed-0" in screen.getvalue()
    assert "30/69" in screen.getvalue()
    assert "100%  SUCCEEDED: 4 SUCCEEDED" in screen.getvalue()


def follow(api: Api, study: StudyInfo, how: Any) -> StudyInfo:
    """Follow a study of which each look finds one job further."""

    class Client:
        def watch_study(self, study_id: str) -> Any:
            yield api.client().study(study_id)
            for member in study.members:
                job = api.to(api.start(api.store.job(PROJECT, member.job)), S.RUNNING)
                at = {"at": AT, "attempt": 1, "step": 30, "total_steps": 69, "epoch": 1, "total_epochs": 3}
                job = api.change(job, lambda _, at=at: Change(job={"progress": Progress.model_validate(at)}))
                yield api.client().study(study_id)
                api.to(job, S.SUCCEEDED)
                yield api.client().study(study_id)

    found: StudyInfo = how(Client())
    return found


def test_ctrl_c_leaves_the_study_alone_and_says_so(api: Api) -> None:
    environment = {**os.environ, "RESFORGE_URL": api.url, "RESFORGE_API_KEY": api.key}
    watching = subprocess.Popen(
        [*PROGRAM, *map(str, WORDS)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert watching.stderr is not None
    study = watching.stderr.readline().split()[1].rstrip(":")
    assert "QUEUED" in watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130
    for words in (f"study {study} goes on", f"resforge study watch {study}", f"resforge study cancel {study}"):
        assert words in said
    assert "Traceback" not in said
    assert api.client().study(study).state == "QUEUED"


def test_listing_and_showing(cli: Cli, submitted: StudyInfo) -> None:
    other = cli(*WORDS, "--no-watch", "--json", "--name", "newest").json["id"]
    assert [item["id"] for item in cli("study", "list", "--limit", 2, "--json").json] == [other, submitted.id]
    everything = [item["id"] for item in cli("study", "list", "--all", "--json").json]
    assert everything[:2] == [other, submitted.id]
    assert len(set(everything)) == len(everything)
    table = cli("study", "list", "--limit", 1).out
    for words in (other, "newest", "degradation", "digits", "QUEUED", "0%", "4 QUEUED"):
        assert words in table
    assert submitted.id not in table
    shown = cli("study", "show", submitted.id).out
    assert "degradation (digits) is QUEUED, 0% done" in shown
    assert "plain-8/seed-0" in shown
    assert submitted.members[0].job in shown
    assert StudyInfo.model_validate(cli("study", "show", submitted.id, "--json").json) == submitted


def test_a_report_anew_for_people_and_for_programs(cli: Cli, api: Api, submitted: StudyInfo, tmp_path: Path) -> None:
    unfinished = cli("study", "report", submitted.id)
    assert unfinished.code == 0
    assert "not known yet: plain-14 has a higher training error than plain-8, in every seed" in unfinished.out
    run_jobs(api, submitted)
    done = cli("study", "report", submitted.id, "--json", "-o", tmp_path / "page.html")
    assert StudyReport.model_validate(done.json).unfinished == ()
    assert "plain-14" in (tmp_path / "page.html").read_text()
    assert cli("study", "report", submitted.id, "-o", tmp_path / "page.txt").code == 2
    assert not (tmp_path / "page.txt").exists()
    shown = cli("study", "report", submitted.id).out
    assert "does not hold" not in shown
    assert shown.count("holds: ") == 3


def test_cancelling_and_deleting(cli: Cli, api: Api, submitted: StudyInfo) -> None:
    refused = cli("study", "delete", submitted.id)
    assert refused.code == 5
    assert "4 jobs" in refused.err
    assert f"study {submitted.id} is CANCELLING: 4 QUEUED" in cli("study", "cancel", submitted.id).out
    for member in submitted.members:
        api.to(api.store.job(PROJECT, member.job), S.CANCELLED)
    assert cli("study", "cancel", submitted.id, "--json").json["state"] == "CANCELLED"
    api.objects.put(f"{PROJECT}/{submitted.members[0].job}/spec.json", b"{}")
    done = cli("study", "delete", submitted.id, "--json")
    assert json.loads(done.out) == {"deleted": submitted.id, "objects_removed": 2}
    assert cli("study", "show", submitted.id).code == 3
    assert cli("job", submitted.members[0].job).code == 3


@pytest.mark.parametrize("command", ["show", "watch", "report", "cancel", "delete"])
def test_a_study_that_is_not_there_is_3(cli: Cli, command: str) -> None:
    done = cli("study", command, "study-aaaaaaaaaaaa")
    assert done.code == 3
    assert done.err.startswith("resforge: ")
    assert len(done.err.splitlines()) == 1
