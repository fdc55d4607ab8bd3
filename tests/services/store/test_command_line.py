import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from services.__main__ import main
from services.errors import Unauthenticated
from services.store.builtin import BUILTIN
from services.store.store import JobStore
from tests.s3 import free_port

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]

FOLDER = ("--format", "folder", "--channels", "3", "--classes", "2", "--image-size", "64")


def services(*arguments: str, **environment: str) -> Result:
    """Run `python -m services` with nothing of RESFORGE_* set but what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RESFORGE_")}
    command = [sys.executable, "-m", "services", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, timeout=120)


def runner(url: str) -> Run:
    return lambda *arguments: services(*arguments, RESFORGE_DATABASE_URL=url, RESFORGE_S3_BUCKET="unused")


@pytest.fixture
def run_here(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same command line within this process, which is quicker, on a migrated SQLite file."""
    monkeypatch.setenv("RESFORGE_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("RESFORGE_S3_BUCKET", "unused")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["services", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return Result(arguments, end.value.code or 0, captured.out, captured.err)  # type: ignore[arg-type]

    return run


def ok(result: Result) -> str:
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, code: int) -> str:
    """The one line that tells why."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.stack  # many processes: too slow for the quick part
def test_from_an_empty_database_to_a_key_that_opens(
    empty_database_url: str, connected: Callable[[str], Engine]
) -> None:
    run = runner(empty_database_url)
    assert "python -m services migrate" in refused(run("project", "create", "vision"), 1)
    assert ok(run("migrate")) == ""
    assert ok(run("project", "create", "vision")) == "vision\n"
    key = ok(run("keys", "create", "vision", "--note", "for the night shift")).removesuffix("\n")
    store = JobStore(connected(empty_database_url))
    assert store.authenticate(key) == "vision"
    assert "vision already" in refused(run("project", "create", "vision"), 1)
    made = json.loads(ok(run("keys", "create", "vision", "--json")))
    assert made.keys() == {"id", "project", "key"}
    assert store.authenticate(made["key"]) == made["project"] == "vision"
    ok(run("keys", "revoke", made["id"]))
    with pytest.raises(Unauthenticated):
        store.authenticate(made["key"])
    assert store.authenticate(key) == "vision"


def test_data_sets_are_added_replaced_and_listed(run_here: Run) -> None:
    run = run_here
    ok(run("datasets", "add", "cats", *FOLDER, "--location", "s3://data/cats", "--train-images", "10"))
    ok(run("datasets", "add", "cats", *FOLDER, "--location", "/data/cats", "--description", "moved"))
    listed = json.loads(ok(run("datasets", "list", "--json")))
    assert [item["name"] for item in listed] == ["cats", *(item.name for item in BUILTIN)]
    assert listed[0] == {
        "name": "cats",
        "format": "folder",
        "location": "/data/cats",
        "channels": 3,
        "classes": 2,
        "image_size": 64,
        "train_images": None,
        "test_images": None,
        "description": "moved",
        "project": None,
        "job": None,
    }
    table = ok(run("datasets", "list"))
    assert "/data/cats" in table
    assert "64x64x3" in table


@contextmanager
def started(command: str, url: str, folder: Path, **environment: str) -> "Iterator[subprocess.Popen[bytes]]":
    """One of the two services, ended by SIGTERM, which it has to obey. Its log is in the folder."""
    variables = {"RESFORGE_DATABASE_URL": url, "RESFORGE_S3_BUCKET": "unused", **environment}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services", command], env=os.environ | variables, stdout=log, stderr=log
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        # uvicorn ends in order and then by the very signal, as a shell expects.
        assert process.wait(60) in (0, -signal.SIGTERM), (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], object], process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)


@pytest.mark.stack
def test_the_api_answers_until_it_is_told_to_stop(sqlite_url: str, tmp_path: Path) -> None:
    port = free_port()

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    with started("api", sqlite_url, tmp_path, RESFORGE_PORT=str(port)) as process:
        until(answers, process, tmp_path)
    assert not answers()


@pytest.mark.stack
def test_the_controller_ticks_until_it_is_told_to_stop(
    sqlite_url: str, tmp_path: Path, connected: Callable[[str], Engine]
) -> None:
    store = JobStore(connected(sqlite_url))
    with started("controller", sqlite_url, tmp_path) as process:
        until(store.last_tick, process, tmp_path)
    # It gave its lease back, so the next one need not wait until it expires.
    with started("controller", sqlite_url, tmp_path, RESFORGE_LEASE_S="3600") as process:
        before = store.last_tick()
        until(lambda: store.last_tick() != before, process, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("project", "create", "No Spaces"), 2, "lower-case letters, digits and inner hyphens"),
        (("project", "create", "../up"), 2, "'../up' is no project name"),
        (("project", "create", "a\n"), 2, "is no project name"),
        (("keys", "create", "nowhere"), 1, "no project nowhere"),
        (("keys", "revoke", "abc"), 1, "no API key with the id abc"),
        (("datasets", "add", "Up Per", *FOLDER, "--location", "/a"), 2, "NAME: 'Up Per'"),
        (("datasets", "add", "cats", *FOLDER), 2, "needs an absolute path or s3://bucket/prefix; none is given"),
        (("datasets", "add", "cats", *FOLDER, "--location", "cats"), 2, "'cats' is neither"),
        (("datasets", "add", "cats", *FOLDER, "--location", "s3://"), 2, "'s3://' is neither"),
        (
            ("datasets", "add", "d", "--location", "/a", "--format", "digits", *FOLDER[2:]),
            2,
            "--location: the format digits comes with the trainer",
        ),
        (
            ("datasets", "add", "cats", "--format", "jpeg", "--channels", "7", *FOLDER[4:]),
            2,
            "--format: Input should be 'digits', 'synthetic', 'idx', 'cifar10', 'folder' or 'shards'; --channels: ",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(run_here: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    assert message in refused(run_here(*arguments), code)


def test_settings_that_are_absent_are_named() -> None:
    line = refused(services("migrate"), 2)
    assert "RESFORGE_DATABASE_URL" in line
    assert "RESFORGE_S3_BUCKET" in line


@pytest.mark.parametrize("command", ["api", "controller"])
def test_a_log_level_that_does_not_exist_is_named(run_here: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("RESFORGE_LOG_LEVEL", "loud")
    assert "RESFORGE_LOG_LEVEL: 'loud' is no level; accepted are CRITICAL" in refused(run_here(command), 2)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user:hidden@host/database", "mysql is not a database that the store knows"),
        ("sqlite:////nowhere/at/all.db", "/nowhere/at/all.db: unable to open database file"),
    ],
)
def test_a_database_that_can_not_be_used_is_named(url: str, message: str) -> None:
    line = refused(runner(url)("migrate"), 1)
    assert message in line
    assert "hidden" not in line


def test_every_command_explains_itself(run_here: Run) -> None:
    commands = (
        "",
        "migrate",
        "api",
        "controller",
        "project create",
        "keys create",
        "keys revoke",
        "datasets add",
        "datasets list",
    )
    for command in commands:
        assert f"Usage: python -m services {command}".rstrip() in ok(run_here(*command.split(), "--help"))
