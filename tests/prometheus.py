"""A real Prometheus for tests, on loopback, which scrapes what it is told every second."""

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.s3 import end_with_parent, free_port
from tests.system_packages import PROMETHEUS

READY_WITHIN_S = 60.0


@dataclass
class PrometheusServer:
    """A server whose data lie under `folder`; `targets` are addresses (host:port) by the scrape job's name."""

    folder: Path
    targets: Mapping[str, str]
    rules: Path
    process: "subprocess.Popen[bytes] | None" = None
    url: str = ""

    def start(self) -> None:
        """Return when it answers queries.

        Raises:
            RuntimeError: it ended instead, or does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        config, log, port = self.folder / "prometheus.yml", self.folder / "log", free_port()
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        scrapes = [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in self.targets.items()]
        config.write_text(yaml.safe_dump({"global": every, "rule_files": [str(self.rules)], "scrape_configs": scrapes}))
        self.url = f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [PROMETHEUS.require(), f"--config.file={config}", f"--storage.tsdb.path={self.folder / 'data'}",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )  # fmt: skip
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Prometheus is not ready: {log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples of an instant query, now or at that time; NaN is none.

        Raises:
            AssertionError: it is no valid query, or can't be evaluated.
        """
        data = self._get("query", query=expr, **({} if at is None else {"time": at}))
        samples = [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]
        return [sample for sample in samples if sample["value"][1] != "NaN"]

    def names(self) -> set[str]:
        """The name of every metric that was ever scraped or recorded."""
        return set(self._get("label/__name__/values"))

    def rule_health(self) -> dict[str, tuple[str, str]]:
        """Of each rule by its name: ok, unknown or err, and the error."""
        rules = [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules}

    def _get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=30).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
