"""The launcher on a real Ray."""

import http.server
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

from services.launchers.base import LauncherUnavailable, LaunchRequest, Node, Observation
from services.launchers.ray_jobs import RayJobs
from tests.ray_cluster import RayCluster, free_ports

pytestmark = pytest.mark.stack

T = TypeVar("T")
Make = Callable[[str], RayJobs]
ENDED = ("succeeded", "failed", "stopped")


def request() -> LaunchRequest:
    return LaunchRequest(f"job-{uuid.uuid4().hex[:8]}-1", "s3://bucket/project/job", 1)


def wait_for(look: Callable[[], T], accept: Callable[[T], bool], timeout_s: float = 60) -> T:
    deadline = time.monotonic() + timeout_s
    while not accept(seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; last seen: {seen}")
        time.sleep(0.1)
    return seen


def wait_until(launcher: RayJobs, name: str, *phases: str) -> Observation:
    return wait_for(lambda: launcher.observe(name), lambda seen: seen.phase in phases)


def test_the_driver_gets_two_arguments_whatever_is_in_them(ray: RayCluster, launcher: Make, tmp_path: Path) -> None:
    out = tmp_path / "arguments"
    made = launcher(f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text('|'.join(sys.argv[1:]))")
    asked = replace(request(), prefix_uri="s3://bucket/pro ject/it's $HOME; a job", attempt=7)
    made.submit(asked)
    assert wait_until(made, asked.name, *ENDED).phase == "succeeded"
    assert out.read_text() == "s3://bucket/pro ject/it's $HOME; a job|7"


def test_ray_is_shown_nothing_but_the_arguments(ray: RayCluster, launcher: Make) -> None:
    made = launcher("")
    asked = request()
    made.submit(asked)
    shown = httpx.get(f"{ray.dashboard}/api/jobs/{asked.name}", headers=ray.headers).json()
    assert not shown["runtime_env"].get("env_vars")
    assert shown["metadata"] == {"job": asked.name.removesuffix("-1"), "attempt": "1"}
    assert ray.token_path.read_text() not in str(shown)
    wait_until(made, asked.name, *ENDED)


def test_submitting_twice_runs_once(launcher: Make, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    made = launcher(f"open({str(out)!r}, 'a').write('run\\n')")
    asked = request()
    made.submit(asked)
    made.submit(asked)
    wait_until(made, asked.name, *ENDED)
    made.submit(asked)  # nor once it has ended
    assert wait_until(made, asked.name, *ENDED).phase == "succeeded"
    assert out.read_text() == "run\n"


def test_a_submission_whose_answer_is_lost_counts_as_made(ray: RayCluster, launcher: Make, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    direct = launcher(f"open({str(out)!r}, 'a').write('run\\n')")
    asked = request()
    with dropping_answers_to_post(ray.dashboard) as address:
        lossy = RayJobs(address, trainer_command=direct._trainer_command, token_path=ray.token_path)
        lossy.submit(asked)
        lossy.close()
    assert wait_until(direct, asked.name, *ENDED).phase == "succeeded"
    assert out.read_text() == "run\n"


def test_a_driver_that_raises_has_failed_and_the_cause_is_told(launcher: Make) -> None:
    made = launcher("print('x' * 30_000); raise RuntimeError('no such planet')")
    asked = request()
    made.submit(asked)
    seen = wait_until(made, asked.name, *ENDED)
    assert seen.phase == "failed"
    assert "exit code 1" in seen.message
    assert seen.message.endswith("RuntimeError: no such planet")
    assert len(seen.message) <= 2000


def test_a_driver_that_is_killed_has_failed(launcher: Make) -> None:
    made = launcher("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    asked = request()
    made.submit(asked)
    assert wait_until(made, asked.name, *ENDED).phase == "failed"


def test_stop_ends_what_runs_and_is_harmless_else(launcher: Make) -> None:
    made = launcher("import time; time.sleep(600)")
    asked = request()
    made.stop(asked.name)
    assert made.observe(asked.name) == Observation("absent")
    made.submit(asked)
    assert wait_until(made, asked.name, "running").phase == "running"
    made.stop(asked.name)
    made.stop(asked.name)
    assert wait_until(made, asked.name, *ENDED).phase == "stopped"
    made.stop(asked.name)
    assert made.observe(asked.name).phase == "stopped"


def test_a_driver_that_ignores_sigterm_is_killed(launcher: Make, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    made = launcher(
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    asked = request()
    made.submit(asked)
    wait_for(pid.exists, bool)
    made.stop(asked.name)
    assert wait_until(made, asked.name, *ENDED).phase == "stopped"
    wait_for(lambda: psutil.pid_exists(int(pid.read_text())), lambda alive: not alive)


def test_nodes_tell_what_a_gang_holds(ray: RayCluster, launcher: Make, tmp_path: Path) -> None:
    release = tmp_path / "release"
    made = launcher(
        "import pathlib, ray, time; from ray.util.placement_group import placement_group\n"
        "ray.init(); group = placement_group([{'CPU': 0.5}, {'CPU': 1}]); ray.get(group.ready())\n"
        f"while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.1)\n"
    )
    whole = [Node(cpus=2, gpus=0, free_cpus=2, free_gpus=0)]
    wait_for(made.nodes, lambda nodes: nodes == whole)
    asked = request()
    made.submit(asked)
    wait_for(made.nodes, lambda nodes: nodes == [Node(cpus=2, gpus=0, free_cpus=0.5, free_gpus=0)])
    release.touch()
    assert wait_until(made, asked.name, *ENDED).phase == "succeeded"
    wait_for(made.nodes, lambda nodes: nodes == whole)


def test_a_wrong_token_is_named(ray: RayCluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    made = RayJobs(ray.dashboard, trainer_command="true", token_path=token)
    everything: list[Callable[[], object]] = [
        made.nodes,
        lambda: made.observe("x-1"),
        lambda: made.submit(request()),
        lambda: made.stop("x-1"),
    ]
    for method in everything:
        with pytest.raises(LauncherUnavailable, match=f"token can't be read from {token}: No such file"):
            method()
    token.write_text("f" * 64)
    for method in everything:
        with pytest.raises(LauncherUnavailable, match=f"did not accept the token .*{token}"):
            method()
    token.write_text(ray.token_path.read_text() + "\n")  # a rotated token is taken up, with its line's end
    assert made.observe("x-1") == Observation("absent")
    made.close()


def test_no_token_is_named(ray: RayCluster) -> None:
    made = RayJobs(ray.dashboard, trainer_command="true")
    with pytest.raises(LauncherUnavailable, match="ray_token_path is not set"):
        made.nodes()
    made.close()


def test_nobody_at_the_address() -> None:
    made = RayJobs(f"http://127.0.0.1:{free_ports(1)[0]}", trainer_command="true")
    for method in (made.nodes, lambda: made.observe("x-1"), lambda: made.submit(request()), lambda: made.stop("x-1")):
        with pytest.raises(LauncherUnavailable, match="does not answer"):
            method()
    made.close()


def test_the_404_of_another_server_proves_nothing() -> None:
    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with serving(Empty) as address:
        made = RayJobs(address, trainer_command="true")
        for method in (made.nodes, lambda: made.observe("x-1"), lambda: made.submit(request())):
            with pytest.raises(LauncherUnavailable, match="404"):
                method()
        with pytest.raises(LauncherUnavailable, match="404"):
            made.stop("x-1")
        made.close()


def test_the_cluster_of_the_tests_listens_on_loopback_only(ray: RayCluster) -> None:
    tree = [psutil.Process(ray.process.pid), *psutil.Process(ray.process.pid).children(recursive=True)]
    addresses = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in tree
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dropping_answers_to_post(target: str) -> Iterator[str]:
    """A proxy that passes everything on to `target` and closes the connection instead of answering a POST."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> httpx.Response:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {"Authorization": self.headers["Authorization"], "Content-Type": "application/json"}
            return httpx.request(self.command, f"{target}{self.path}", content=body, headers=headers, timeout=30)

        def do_POST(self) -> None:
            assert self._pass_on().status_code == 200
            self.close_connection = True

        def do_GET(self) -> None:
            answer = self._pass_on()
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None: ...

    with serving(Proxy) as address:
        yield address
