"""The whole embedded stack: real Ray, S3, API and controller, killed and started again.

One stack serves all tests of this module, in the order in which they stand; the last ones end it.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from resforge.jobs import JobState
from services.local.home import Home
from tests.embedded import CLI, EmbeddedStack, listening, members, off_loopback
from tests.s3 import S3Server, start_s3
from tests.services.local.waiting import until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    # Deep, so that Ray's sockets don't fit below it.
    home = tmp_path_factory.mktemp("a-folder-that-lies-deep") / "below" / "many" / "others" / "home"
    home.mkdir(parents=True)
    found = EmbeddedStack(home)
    try:
        found.start()
        yield found
    finally:
        if found.process is not None:
            found.stop()
        left = members(home)
        for process in left:
            process.kill()
        assert left == []


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3(tmp_path_factory.mktemp("s3"), bucket="elsewhere")
    yield server
    server.stop()


def test_it_comes_up_with_every_part_ready(stack: EmbeddedStack) -> None:
    status = stack.status()
    assert status["state"] == "up"
    assert {part["name"]: part["state"] for part in status["parts"]} == {
        "s3": "ready",
        "prepare": "done",
        "ray": "ready",
        "api": "ready",
        "controller": "ready",
    }
    assert set(stack.connection) >= {
        "url", "api_key", "s3_endpoint", "s3_bucket", "s3_access_key", "s3_secret_key", "ray_dashboard", "ray_metrics",
        "controller_metrics", "pid",
    }  # fmt: skip
    with stack.client() as client:
        assert {item.name for item in client.datasets()} >= {"digits", "synthetic"}


def test_nothing_listens_off_loopback(stack: EmbeddedStack) -> None:
    found = listening(stack)
    assert {port for _, _, port in found} >= {
        int(stack.connection[name].rpartition(":")[2]) for name in ("url", "s3_endpoint", "ray_dashboard")
    }
    assert "raylet" in {name for name, _, _ in found}
    assert off_loopback(found) == []


def test_only_its_owner_can_read_it(stack: EmbeddedStack) -> None:
    assert stat.S_IMODE(stack.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(stack.home.connection.stat().st_mode) == 0o600
    open_files = [path for path in stack.path.rglob("*") if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    assert open_files == []
    ray = stack.home.ray_folder(stack.home.load_identity().id)
    assert not ray.is_relative_to(stack.path)
    assert stat.S_IMODE(ray.parent.stat().st_mode) == 0o700


def test_ray_refuses_who_has_no_token(stack: EmbeddedStack) -> None:
    jobs = f"{stack.connection['ray_dashboard']}/api/jobs/"
    assert httpx.get(jobs, trust_env=False).status_code == 401
    token = stack.home.ray_token.read_text()
    shown = httpx.get(jobs, headers={"Authorization": f"Bearer {token}"}, trust_env=False).json()
    # The start's own probes stay in the list; the first may fail at an agent that comes up late.
    assert {job["submission_id"].rpartition("-")[0] for job in shown} == {"resforge-probe"}
    assert "SUCCEEDED" in {job["status"] for job in shown}


def test_no_secret_shows_in_a_process_list(stack: EmbeddedStack) -> None:
    secrets = {stack.connection[name] for name in ("api_key", "s3_secret_key")} | {stack.home.ray_token.read_text()}
    for process in stack.members():
        words = " ".join(process.cmdline())
        assert not any(secret in words for secret in secrets)


def test_a_second_start_says_that_it_runs_and_where(stack: EmbeddedStack) -> None:
    done = subprocess.run([*CLI, "up", "--home", str(stack.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert stack.connection["url"] in done.stderr
    assert str(stack.connection["pid"]) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["s3", "api", "controller", "ray"])
def test_a_part_that_is_killed_starts_again(stack: EmbeddedStack, name: str) -> None:
    before = stack.part(name)
    others = {part["name"]: part["pid"] for part in stack.status()["parts"] if part["name"] != name}
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: stack.part(name)["restarts"] == before["restarts"] + 1, what=f"restart of {name}")
    after = until(lambda: (found := stack.part(name))["state"] == "ready" and found, within_s=120, what=f"{name} ready")
    assert after["pid"] != before["pid"]
    assert {part["name"]: part["pid"] for part in stack.status()["parts"] if part["name"] != name} == others
    # Nothing of the one before is left, agents of Ray among them.
    assert len([item for item in stack.members() if item.name() == "raylet"]) == 1
    with stack.client() as client:
        client.datasets()


def test_another_stack_on_an_s3_that_is_there_already(stack: EmbeddedStack, s3: S3Server, tmp_path: Path) -> None:
    before = stack.status()
    other = EmbeddedStack(tmp_path / "other", ("--s3-endpoint", s3.endpoint, "--bucket", s3.bucket), s3.environment)
    try:
        other.start()
        assert "s3" not in {part["name"] for part in other.status()["parts"]}
        assert other.connection["s3_endpoint"] == s3.endpoint
        assert other.connection["s3_access_key"] == s3.access_key
        assert other.connection["url"] != stack.connection["url"]
        with other.client() as client:
            job = client.submit({"recipe": "digits/resnet-20", "scaling": {"workers": 64}, "labels": {"in": "other"}})
            assert [item.id for item in client.jobs()] == [job.id]
        with stack.client() as client:
            assert list(client.jobs(labels={"in": "other"})) == []
        refused = subprocess.run(
            [*CLI, "up", "--home", str(tmp_path / "other"), "--port", "1"], capture_output=True, text=True, check=False
        )
        assert refused.returncode == 5
    finally:
        other.stop()
    assert members(other.path) == []
    assert stack.status() == before


@pytest.mark.timeout(600)
def test_a_crash_loses_nothing(stack: EmbeddedStack) -> None:
    """kill -9 of the supervisor while a job trains: the next start cleans up, and the job goes on to its end."""
    before = stack.connection
    with stack.client() as client:
        small = {"model": {"depth": 8}, "scaling": {"workers": 1}, "training": {"epochs": 20}}
        job = client.submit({"recipe": "digits/resnet-20", **small})
        until(lambda: client.checkpoints(job.id), within_s=240, what="a checkpoint")
    stack.kill()
    stack.start()
    assert stack.connection["api_key"] == before["api_key"]
    assert stack.connection["url"] == before["url"]
    with stack.client() as client:
        done = client.wait(job.id, 300)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)
        first, second = client.attempts(job.id)
        assert (first.state, second.resume_from) == ("LOST", (1,))
        steps = [point.step for point in client.metrics(job.id) if point.attempt == 2]
        assert min(steps) > 5  # resumed, not begun again


def test_down_leaves_nothing(stack: EmbeddedStack) -> None:
    assert stack.process is not None
    identity = stack.home.load_identity()
    done = subprocess.run([*CLI, "down", "--home", str(stack.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"the stack at {stack.path} has ended\n")
    assert stack.process.wait(10) == 0
    assert stack.members() == []
    assert not stack.home.connection.exists()
    assert not stack.home.ray_folder(identity.id).parent.exists()
    assert stack.status()["state"] == "down"
    assert (stack.home.logs / "ray").is_dir()  # kept for whoever looks for what went wrong


def test_in_the_foreground_ctrl_c_ends_it_all(stack: EmbeddedStack) -> None:
    until(lambda: stack.home.holder() is None)
    running = subprocess.Popen([*CLI, "up", "--home", str(stack.path)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("api ready"):
            break
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert said.splitlines()[-1] == "ended"
    assert stack.members() == []


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, "http://127.0.0.1:9, bucket b: "),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "HOME": "/nonexistent"}, "no S3 keys were found"),
    ],
)
def test_an_s3_that_can_not_be_used_is_one_line(tmp_path: Path, env: dict[str, str], message: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {"AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [*CLI, "up", "--detach", "--home", str(tmp_path / "h"), "--s3-endpoint", "http://127.0.0.1:9", "--bucket", "b"],
        env={**clean, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    [reason] = [line for line in done.stdout.splitlines() if line.startswith("resforge: ")]
    assert message in reason
    assert members(tmp_path / "h") == []
    home = Home(tmp_path / "h")
    assert not home.ray_folder(home.load_identity().id).parent.exists()


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "services.local", "up", "--home", str(tmp_path / "h"), "--port", str(port)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"resforge: port {port} on 127.0.0.1 is in use; name another, or none to have one picked\n"
