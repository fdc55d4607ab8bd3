"""A real Ray cluster of one node for tests: loopback only, with ports, a folder and a token of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

# A variable of our own that every descendant inherits, by which all of them are found again.
_MARK = "RESFORGE_TEST_RAY"


@dataclass(frozen=True)
class RayCluster:
    """Where a test's Ray answers and where its token lies. `folder` holds its sessions and logs."""

    dashboard: str
    token_path: Path
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token_path.read_text()}"}


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listened on a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


@contextmanager
def ray_cluster(
    *, cpus: int = 2, env: Mapping[str, str] | None = None, ready_timeout_s: float = 120
) -> Iterator[RayCluster]:
    """Start a head node, yield when it has run a trivial job, and end it with all its descendants.

    Args:
        cpus: logical CPUs that the node offers; none of them is bound to a core.
        env: variables for Ray and for whatever it starts, over this process's own.
        ready_timeout_s: seconds to wait for the trivial job.
    """
    # Short, since Ray puts sockets below it, whose paths may have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))
    token_path = folder / "token"
    token_path.touch(mode=0o600)
    token_path.write_text(secrets.token_hex(32))
    port, dashboard_port, agent_port, metrics_port, client_port, *fixed = free_ports(7)
    mark = uuid.uuid4().hex
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={agent_port}", f"--metrics-export-port={metrics_port}",
        f"--ray-client-server-port={client_port}", f"--temp-dir={folder / 'ray'}",
        "--min-worker-port=0", "--max-worker-port=0",  # the kernel picks; Ray's own range is the same for every Ray
        f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={100 << 20}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        # Without this, Ray takes the host's address instead of loopback and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Fixed numbers else, which a second Ray on the machine would find taken.
        "AUTOSCALER_METRIC_PORT": str(fixed[0]),
        "DASHBOARD_METRIC_PORT": str(fixed[1]),
        # Job drivers start by `python`, which must be the one that runs the tests.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
        _MARK: mark,
    }
    with (folder / "ray-start.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
    cluster = RayCluster(f"http://127.0.0.1:{dashboard_port}", token_path, folder, process)
    try:
        _wait_ready(cluster, ready_timeout_s)
        yield cluster
    finally:
        _end(process, mark)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(cluster: RayCluster, timeout_s: float) -> None:
    """Return when a trivial job has succeeded: a Ray that only answers may still have no agent to run jobs."""
    deadline = time.monotonic() + timeout_s
    last = "no answer yet"
    submitted: str | None = None
    with httpx.Client(base_url=cluster.dashboard, headers=cluster.headers, timeout=10) as client:
        while time.monotonic() < deadline:
            if cluster.process.poll() is not None:
                raise RuntimeError(f"ray start ended early:\n{(cluster.folder / 'ray-start.log').read_text()}")
            try:
                if submitted is None:
                    answer = client.post("/api/jobs/", json={"entrypoint": "true"})
                    if answer.status_code == 200:
                        submitted = answer.json()["submission_id"]
                else:
                    answer = client.get(f"/api/jobs/{submitted}")
                    if answer.status_code == 200 and answer.json()["status"] == "SUCCEEDED":
                        return
                last = answer.text
            except httpx.HTTPError as error:
                last = repr(error)
            time.sleep(0.2)
    raise RuntimeError(f"Ray ran no job within {timeout_s} s; the last answer was: {last}")


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End `ray start` and whatever descends from it.

    Descendants that outlived their parent are no longer its children, so they are told by the mark in their
    environment. The search repeats, since a process may have started another meanwhile.
    """
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    while survivors := [item for item in psutil.process_iter() if _is_marked(item, mark)]:
        for item in survivors:
            try:
                item.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(survivors, timeout=5)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
