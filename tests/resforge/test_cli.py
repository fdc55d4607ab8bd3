"""The command line against a real API over a real database and a real S3 server."""

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from resforge.jobs import Job, JobState
from resforge.metrics import Progress
from resforge.storage import Stream
from services.store.records import Change
from tests.resforge.cli_runner import PROGRAM, Cli
from tests.services.api.harness import AT, Api, evaluation, line, point, wait_for


def progress(api: Api, job: Job, **fields: Any) -> Job:
    document = {"at": AT, "attempt": 1, "step": 40, "total_steps": 264, "epoch": 1, "total_epochs": 12, **fields}
    return api.change(job, lambda _: Change(job={"progress": Progress.model_validate(document)}))


# Submitting


def test_a_recipe_with_fields_laid_over_it(cli: Cli, api: Api) -> None:
    done = cli(
        "submit", "--recipe", "digits/resnet-20", "--set", "optim.lr=1e-2", "--set", "training.steps=50",
        "--set", "optim.schedule.milestones=[0.3, 0.6]", "--workers", 2, "--name", "try-1", "--label", "who=me",
        "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    job = api.client().job(done.json["id"])
    assert job.spec.optim.lr == 0.01
    assert (job.spec.training.steps, job.spec.training.epochs) == (50, None)
    assert job.spec.optim.schedule.milestones == (0.3, 0.6)
    assert job.spec.scaling.workers == 2
    assert (job.name, job.labels, job.spec.recipe) == ("try-1", {"who": "me"}, "digits/resnet-20")


def test_what_follows_is_shown_before_a_job_is_submitted(cli: Cli, api: Api) -> None:
    options = ("submit", "--recipe", "digits/resnet-20", "--workers", 8, "--set", "optim.lr_batch=32")
    before = list(api.client().jobs())
    dry = cli(*options, "--dry-run")
    assert dry.code == 0
    assert "images a worker" in dry.out
    assert "(2 times optim.lr)" in dry.out
    assert "a worker's own 8 images" in dry.err
    assert cli(*options, "--dry-run", "--json").json["images_per_worker"] == 8
    assert list(api.client().jobs()) == before
    done = cli(*options)
    assert done.code == 0
    assert "64 images a step, 8 on each of 8 workers; learning rate 0.2 (2 times optim.lr)" in done.err
    assert "a worker's own 8 images" in done.err


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_and_fields_laid_over_it(cli: Cli, api: Api, tmp_path: Path, suffix: str) -> None:
    document = {"recipe": "digits/plain-20", "optim": {"lr": 0.2, "momentum": 0.8}, "labels": {"a": "1"}}
    path = tmp_path / f"job.{suffix}"
    path.write_text(
        json.dumps(document)
        if suffix == "json"
        else "recipe: digits/plain-20\noptim:\n  lr: 0.2\n  momentum: 0.8\nlabels: {a: '1'}\n"
    )
    done = cli("submit", "-f", path, "--set", "optim.lr=0.3", "--label", "b=2")
    assert done.code == 0
    [job_id] = [word for word in done.out.split() if word.startswith("job-")][:1]
    job = api.client().job(job_id)
    assert (job.spec.optim.lr, job.spec.optim.momentum) == (0.3, 0.8)
    assert job.labels == {"a": "1", "b": "2"}
    assert f"resforge watch {job_id}" in done.out


def test_the_same_key_gives_the_same_job(cli: Cli) -> None:
    words = ("submit", "--recipe", "digits/resnet-20", "--idempotency-key", "k-1", "--json")
    assert cli(*words).json["id"] == cli(*words).json["id"]
    changed = cli(*words, "--set", "optim.lr=0.5")
    assert changed.code == 2
    assert "Idempotency-Key" in changed.err


def test_every_bad_field_is_told_before_anything_is_posted(offline: Cli) -> None:
    done = offline(
        "submit", "--recipe", "digits/resnet-20", "--set", "optim.lr=-1", "--set", "model.depth=21",
        "--set", "moons=2", "--workers", 3,
    )  # fmt: skip
    assert done.code == 2
    assert "/optim/lr: " in done.err
    assert "/model/depth: a cifar network has 6n+2 layers" in done.err
    assert "/moons: unknown field; accepted here: kind, name" in done.err
    assert "given: -1" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --recipe NAME or --file FILE"),
        (("--recipe", "digits/resnet-21"), "did you mean digits/resnet-20"),
        (("--recipe", "nonsense"), "`resforge recipes` lists them all"),
        (("-f", "/nonexistent.yaml"), "/nonexistent.yaml could not be read as a job"),
        (("--recipe", "digits/resnet-20", "--set", "optim.lr"), "--set optim.lr: expected FIELD=VALUE"),
        (("--recipe", "digits/resnet-20", "--set", "name=a", "--set", "name.b=1"), "name is a single value"),
        (("--recipe", "digits/resnet-20", "--set", "optim.lr=[1"), "the value is no YAML"),
        (("--recipe", "digits/resnet-20", "--label", "who"), "--label who: expected KEY=VALUE"),
    ],
)
def test_what_is_no_job_is_refused(offline: Cli, words: tuple[str, ...], message: str) -> None:
    done = offline("submit", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_what_only_the_service_knows_is_refused_with_its_words(cli: Cli) -> None:
    done = cli("submit", "--recipe", "digits/resnet-20", "--set", "data.dataset=moons")
    assert done.code == 2
    assert "/data/dataset" in done.err
    assert "registered are: digits, synthetic" in done.err


# Looking


def test_jobs_by_state_label_and_number(cli: Cli, api: Api) -> None:
    for number in range(3):
        cli("submit", "--recipe", "digits/resnet-20", "--name", f"many-{number}", "--label", "set=many")
    [newest, *_] = cli("jobs", "--label", "set=many", "--json").json
    api.to(api.start(api.client().job(newest["id"])), JobState.RUNNING)
    found = cli("jobs", "--label", "set=many", "--json").json
    assert [item["name"] for item in found] == ["many-2", "many-1", "many-0"]
    assert [item["name"] for item in cli("jobs", "--label", "set=many", "--limit", 2, "--json").json] == [
        "many-2",
        "many-1",
    ]
    assert [item["name"] for item in cli("jobs", "--label", "set=many", "--state", "running", "--json").json] == [
        "many-2"
    ]
    assert len(cli("jobs", "--label", "set=many", "--limit", 1, "--all", "--json").json) == 3
    table = cli("jobs", "--label", "set=many").out
    assert newest["id"] in table
    assert "many-0" in table
    assert "cifar/resnet-20" in table
    assert cli("jobs", "--label", "set=none").out == "no jobs\n"


def test_one_job_for_people_and_for_programs(cli: Cli, api: Api) -> None:
    job = progress(api, api.running(), loss=0.5, top1=0.75, test_top1=0.5, images_per_second=1234.5, eta_s=75)
    assert Job.model_validate(cli("job", job.id, "--json").json) == api.client().job(job.id)
    shown = cli("job", job.id).out
    for words in ("RUNNING", "epoch 2/12", "step 40/264", "train 75.00 %", "test 50.00 %", "1,234 img/s", "ETA 1m15s"):
        assert words in shown


def test_logs_events_metrics_attempts_and_checkpoints(cli: Cli, api: Api) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("[bold]not markup[/bold]"), line("second")])
    api.append(job, Stream.METRICS, 1, [point(5), evaluation(10, 0.9)])
    api.checkpoint(job, 10, top1=0.9)
    api.checkpoint(job, 20, top1=0.8)

    assert [item["line"] for item in cli("logs", job.id, "--json").json_lines] == ["[bold]not markup[/bold]", "second"]
    assert cli("logs", job.id).out.splitlines()[0].endswith("1 driver: [bold]not markup[/bold]")
    assert [item["kind"] for item in cli("metrics", job.id, "--json").json_lines] == ["train", "eval"]
    assert "top-1 90.00 %  (360 images)" in cli("metrics", job.id).out
    assert [item["after"] for item in cli("events", job.id, "--json").json_lines][-1] == "RUNNING"
    assert "STARTING -> RUNNING" in cli("events", job.id).out
    assert [item["number"] for item in cli("attempts", job.id, "--json").json] == [1]
    assert "PENDING" in cli("attempts", job.id).out
    assert [(item["step"], item["best"]) for item in cli("checkpoints", job.id, "--json").json] == [
        (10, True),
        (20, False),
    ]
    assert "best" in cli("checkpoints", job.id).out


@pytest.mark.parametrize("command", ["job", "logs", "events", "metrics", "attempts", "checkpoints", "cancel", "watch"])
def test_a_job_that_is_not_there_is_3(cli: Cli, command: str) -> None:
    done = cli(command, "job-nosuchjob000")
    assert done.code == 3
    assert done.err.startswith("resforge: ")
    assert len(done.err.splitlines()) == 1


def test_what_there_is_to_train(cli: Cli) -> None:
    assert {item["name"] for item in cli("datasets", "--json").json} >= {"digits", "synthetic"}
    assert "8x8x1" in cli("datasets").out
    models = {item["name"]: item for item in cli("models", "--json").json}
    assert models["imagenet/resnet-50"]["parameters"] == 25_557_032
    assert "25,557,032" in cli("models").out


def test_recipes_need_no_service(offline: Cli) -> None:
    assert "digits/resnet-20" in {item["name"] for item in offline("recipes", "--json").json}
    assert "8.75 %" in offline("recipes").out
    assert offline("recipes", "digits/resnet-20", "--json").json["spec"]["model"]["depth"] == 20
    shown = offline("recipes", "cifar10/resnet-20").out
    assert "# published: CIFAR-10 test error: 8.75 %" in shown
    done = offline("recipes", "digits/resnet20")
    assert done.code == 3
    assert "did you mean digits/resnet-20" in done.err


def test_a_recipe_as_it_is_printed_is_a_job(cli: Cli, offline: Cli, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(offline("recipes", "digits/plain-20").out)
    assert cli("submit", "-f", tmp_path / "job.yaml").code == 0


# Watching


@pytest.mark.parametrize(("state", "code"), [(JobState.SUCCEEDED, 0), (JobState.FAILED, 1)])
def test_watching_tells_how_the_job_ended(cli: Cli, api: Api, state: JobState, code: int) -> None:
    job = api.to(progress(api, api.running(), loss=0.5), state)
    done = cli("watch", job.id)
    assert done.code == code
    assert str(state) in done.out
    assert "step 40/264" in done.err
    lines = cli("watch", job.id, "--json")
    assert (lines.code, [item["state"] for item in lines.json_lines]) == (code, [state])


def test_ctrl_c_leaves_the_job_alone_and_says_so(api: Api) -> None:
    job = api.running()
    environment = {**os.environ, "RESFORGE_URL": api.url, "RESFORGE_API_KEY": api.key}
    watching = subprocess.Popen(
        [*PROGRAM, "watch", job.id],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stderr is not None
    assert watching.stderr.readline().startswith("RUNNING")
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert f"job {job.id} goes on" in said
    assert f"resforge cancel {job.id}" in said
    assert "Traceback" not in said
    assert not api.client().job(job.id).cancel_requested


def test_following_logs_ends_with_the_job(cli: Cli, api: Api) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("one")])
    job = api.to(job, JobState.SUCCEEDED)
    assert [item["line"] for item in cli("logs", job.id, "-f", "--json").json_lines] == ["one"]
    assert cli("events", job.id, "-f", "--json").json_lines[-1]["after"] == "SUCCEEDED"


# Ending


def test_cancelling_and_deleting(cli: Cli, api: Api) -> None:
    job_id = cli("submit", "--recipe", "digits/resnet-20", "--json").json["id"]
    refused = cli("delete", job_id)
    assert refused.code == 5
    assert cli("cancel", job_id, "--json").json["cancel_requested"]
    job = api.to(api.client().job(job_id), JobState.CANCELLED)
    assert cli("cancel", job_id).code == 5
    api.objects.put(f"{api.prefix(job).key}spec.json", b"{}")
    assert cli("delete", job_id).out == f"job {job_id} is removed, with 1 objects\n"
    assert cli("job", job_id).code == 3


def test_cancel_waits_for_the_end(cli: Cli, api: Api) -> None:
    job = api.submit()

    def controller() -> None:
        wait_for(lambda: api.client().job(job.id).cancel_requested, "the request")
        api.to(job, JobState.CANCELLED)

    acting = threading.Thread(target=controller)
    acting.start()
    done = cli("cancel", job.id, "--wait")
    acting.join()
    assert (done.code, done.out) == (0, f"job {job.id} is CANCELLED\n")


# What a job leaves


def test_pulling_verifies_and_writes_the_files(cli: Cli, api: Api, tmp_path: Path) -> None:
    job = api.ended()
    api.checkpoint(job, 10, top1=0.9, weights=b"best")
    api.checkpoint(job, 20, top1=0.8, weights=b"latest")
    for which, content in (("best", b"best"), ("latest", b"latest"), ("20", b"latest")):
        done = cli("pull", job.id, which, "-o", tmp_path / which)
        assert (done.code, done.err) == (0, "")
        assert (tmp_path / which / "weights.safetensors").read_bytes() == content
        assert "verified" in done.out
    assert cli("pull", job.id, "-o", tmp_path / "d", "--json").json["step"] == 10
    assert cli("pull", job.id, 15, "-o", tmp_path / "none").code == 3
    assert cli("pull", job.id, "newest").code == 2


def test_changed_bytes_are_noticed(cli: Cli, api: Api, tmp_path: Path) -> None:
    job = api.ended()
    api.checkpoint(job, 10, top1=0.9, weights=b"as written")
    api.objects.put(f"{api.prefix(job).attempt(1).checkpoint(10)}weights.safetensors", b"as changed")
    done = cli("pull", job.id, "-o", tmp_path / "out")
    assert done.code == 7
    assert "weights.safetensors is damaged" in done.err
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_plotting(cli: Cli, api: Api, tmp_path: Path) -> None:
    job = api.ended()
    path = tmp_path / "new" / "curves.png"
    assert cli("plot", job.id, "-o", path).code == 1  # nothing to draw yet
    api.append(job, Stream.METRICS, 1, [point(5), evaluation(10, 0.9)])
    assert cli("plot", job.id, "-o", path).code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert cli("plot", job.id, "-o", tmp_path / "curves.doc").code == 2


# Connecting


def test_no_service_known_is_4(offline: Cli) -> None:
    done = offline("jobs")
    assert done.code == 4
    assert "resforge up" in done.err


def test_a_service_that_does_not_answer_is_4(offline: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESFORGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RESFORGE_API_KEY", "k")
    done = offline("jobs")
    assert done.code == 4
    assert len(done.err.splitlines()) == 1


def test_a_wrong_key_is_6(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESFORGE_API_KEY", "rf_wrong_key")
    assert cli("jobs").code == 6


def test_a_home_named_before_the_command_leads_to_its_service(offline: Cli, api: Api, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "connection.json").write_text(json.dumps({"url": api.url, "api_key": api.key}))
    assert offline("--home", tmp_path / "other", "jobs", "--json").code == 0


def test_status_and_down_where_nothing_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for command, code in (("status", 4), ("down", 0)):
        done = subprocess.run([*PROGRAM, command, "--home", str(home)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, f"no stack runs on {home}\n")
    assert not home.exists()


def test_a_home_that_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["up", "--home", str(tmp_path / "file" / "home")]
    done = subprocess.run(
        [*PROGRAM, *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"resforge: can't use {tmp_path}/file/home: Not a directory\n"
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


# The program itself


def test_help_tells_the_exit_codes(offline: Cli) -> None:
    done = offline("--help")
    assert done.code == 0
    assert "Exit codes: 0 done" in " ".join(done.out.split())
    assert offline("--version").out.startswith("resforge ")
    assert offline("submit", "--no-such-option").code == 2
    assert offline("no-such-command").code == 2


def test_the_command_line_loads_nothing_heavy() -> None:
    script = (
        "import sys; from resforge.cli.app import app\n"
        "heavy = {'torch', 'fastapi', 'sqlalchemy', 'ray', 'httpx', 'pydantic', 'boto3', 'matplotlib', 'services'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_leaves_is_no_error(api: Api) -> None:
    job = api.running()
    api.append(job, Stream.LOGS, 1, [line("x" * 200)] * 2000)
    environment = {**os.environ, "RESFORGE_URL": api.url, "RESFORGE_API_KEY": api.key}
    program = shlex.join([*PROGRAM, "logs", job.id])
    done = subprocess.run(
        ["bash", "-c", f"{program} | head -1"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Traceback" not in done.stderr
