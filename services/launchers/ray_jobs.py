"""Attempts on a Ray cluster that is already running, by Ray's Jobs REST API. Ray itself is not imported."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from services.launchers.base import (
    Launcher,
    LauncherUnavailable,
    LaunchRefused,
    LaunchRequest,
    Node,
    Observation,
    Phase,
)

_PHASES: Mapping[str, Phase] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
_MESSAGE_LIMIT = 2000  # characters; Ray puts up to 20,000 of the driver's log into a job's message
_NODES_LIMIT = 10_000  # the most that Ray's state API lists; its default is 100


class RayJobs(Launcher):
    """One Ray cluster by the address of its dashboard.

    A submission carries nothing secret and no runtime environment, since Ray shows both to whoever may read its
    dashboard: the nodes have the trainer installed and find their keys by themselves.

    Args:
        dashboard: the base URL, such as http://127.0.0.1:8265.
        trainer_command: how a node starts the driver; the prefix's URI and the attempt's number are appended.
        token_path: a file that holds Ray's token, read again for each request so that it may be rotated.
        timeout_s: seconds to wait for an answer. A submission that takes longer is found by its name.
    """

    def __init__(
        self, dashboard: str, *, trainer_command: str, token_path: str | Path | None = None, timeout_s: float = 5.0
    ) -> None:
        self._dashboard = dashboard.rstrip("/")
        self._trainer_command = trainer_command
        self._token_path = Path(token_path) if token_path is not None else None
        # Loopback or one hop away in a cluster: a connection that takes longer than 3 s is none.
        self._client = httpx.Client(base_url=self._dashboard, timeout=httpx.Timeout(timeout_s, connect=3.0))

    def close(self) -> None:
        """Drop the connections that are kept open."""
        self._client.close()

    def nodes(self, pool: str = "") -> list[Node]:
        """The nodes that are alive.

        Totals are current. What is free is the autoscaler's report, which Ray renews every 5 seconds by default
        (AUTOSCALER_UPDATE_INTERVAL_S) and which counts what placement groups hold as used. A node that the report
        does not know yet, or a Ray whose autoscaler writes no report (its version 2), counts as free.
        """
        listing = self._json("GET", "/api/v0/nodes", params={"detail": "1", "limit": str(_NODES_LIMIT)})
        status = self._json("GET", "/api/cluster_status")
        try:
            alive = [item for item in listing["data"]["result"]["result"] if item["state"] == "ALIVE"]
            report = (status["data"].get("clusterStatus") or {}).get("loadMetricsReport") or {}
            usage = report.get("usageByNode") or {}
            return [_node(item["resources_total"], usage.get(item["node_id"], {})) for item in alive]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LauncherUnavailable(
                f"Ray at {self._dashboard} describes its nodes in a way that is not known here ({error!r}); "
                "Ray 2.60 is known"
            ) from error

    def submit(self, request: LaunchRequest) -> None:
        arguments = shlex.join([request.prefix_uri, str(request.attempt)])
        body = {
            "entrypoint": f"{self._trainer_command} {arguments}",
            "submission_id": request.name,
            "metadata": {"job": request.name.rpartition("-")[0], "attempt": str(request.attempt)},
            "entrypoint_num_cpus": request.cpus,
            "entrypoint_num_gpus": request.gpus,
            "runtime_env": {},
        }
        try:
            answer = self._send("POST", "/api/jobs/", json=body)
        except LauncherUnavailable:
            # The answer may be lost though the submission arrived.
            if self.observe(request.name).phase != "absent":
                return
            raise
        if answer.status_code == 200:
            return
        # A name that was submitted before is refused with 500, as much else is: only asking for it tells.
        if self.observe(request.name).phase != "absent":
            return
        if answer.status_code == 400:
            raise LaunchRefused(f"Ray refused the submission: {_last_line(answer.text)}")
        raise LauncherUnavailable(self._describe(answer))

    def observe(self, name: str) -> Observation:
        answer = self._send("GET", _path(name))
        # Ray's own words are asked for: a 404 of a proxy, or of something else at this address, proves nothing.
        if answer.status_code == 404 and "does not exist" in answer.text:
            return Observation("absent")
        body = self._parse(answer)
        status, message = body.get("status"), body.get("message")
        phase = _PHASES.get(str(status))
        if phase is None:
            raise LauncherUnavailable(f"Ray at {self._dashboard} gave {name} the unknown status {status!r}")
        return Observation(phase, _shorten(str(message or "")))

    def stop(self, name: str) -> None:
        """Ask Ray to end the attempt: SIGTERM to the driver and its children, and SIGKILL 3 seconds later."""
        answer = self._send("POST", f"{_path(name)}/stop")
        if answer.status_code == 404 and "does not exist" in answer.text:
            return
        self._parse(answer)

    def _headers(self) -> dict[str, str]:
        if self._token_path is None:
            return {}
        try:
            return {"Authorization": f"Bearer {self._token_path.read_text().strip()}"}
        except OSError as error:
            raise LauncherUnavailable(f"Ray's token can't be read from {self._token_path}: {error.strerror}") from error

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = self._headers()
        try:
            answer = self._client.request(method, path, headers=headers, **options)
        except httpx.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise LauncherUnavailable(f"Ray at {self._dashboard} does not answer: {detail}") from error
        if answer.status_code in (401, 403):
            source = f"the one in {self._token_path}" if self._token_path else "none, as ray_token_path is not set"
            raise LauncherUnavailable(
                f"Ray at {self._dashboard} did not accept the token ({answer.status_code}); given was {source}"
            )
        return answer

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self._parse(self._send(method, path, **options))

    def _parse(self, answer: httpx.Response) -> dict[str, Any]:
        """The JSON object of a successful answer; anything else means that no Ray answered properly."""
        if answer.status_code != 200:
            raise LauncherUnavailable(self._describe(answer))
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise LauncherUnavailable(f"what answers at {self._dashboard} is no Ray dashboard: {answer.text[:80]!r}")
        return body

    def _describe(self, answer: httpx.Response) -> str:
        return f"Ray at {self._dashboard} answered {answer.status_code}: {_last_line(answer.text)}"


def _path(name: str) -> str:
    return f"/api/jobs/{quote(name, safe='')}"


def _node(total: Mapping[str, float], usage: Mapping[str, tuple[float, float]]) -> Node:
    """A node from its totals and from {resource: (used, total)}."""
    cpus, gpus = float(total.get("CPU", 0)), float(total.get("GPU", 0))
    return Node(
        cpus=cpus,
        gpus=gpus,
        free_cpus=max(0.0, cpus - float(usage.get("CPU", (0, 0))[0])),
        free_gpus=max(0.0, gpus - float(usage.get("GPU", (0, 0))[0])),
    )


def _last_line(text: str) -> str:
    """What went wrong, of a traceback that Ray answers with: its last line."""
    lines = text.strip().splitlines()
    return lines[-1][:_MESSAGE_LIMIT] if lines else "(nothing)"


def _shorten(message: str) -> str:
    """The first line, where Ray says what happened, and what fits of the end, where a traceback names its cause."""
    message = message.strip()
    if len(message) <= _MESSAGE_LIMIT:
        return message
    first, _, rest = message.partition("\n")
    first = first[: _MESSAGE_LIMIT // 2]
    return f"{first}\n...\n{rest[-(_MESSAGE_LIMIT - len(first) - 5) :]}"
