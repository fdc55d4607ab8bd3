"""What Ray starts instead of a worker is a fork of the warm process that runs the worker's own command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.services.local.waiting import until

pytestmark = pytest.mark.stack
WORKER = """
import json, os, sys, threading
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "pid": os.getpid(), "parent": os.getppid(), "key": os.environ.get("KEY"),
    "torch": "torch" in sys.modules, "ray": "ray" in sys.modules,
}), flush=True)
if sys.argv[1:] == ["wait"]:
    threading.Event().wait()
sys.exit(3)
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def started(scratch: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a worker as Ray would."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    processes: list[subprocess.Popen[str]] = []

    def start(word: str, *, warm_s: int = 60) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        environment = {
            **os.environ, "RESFORGE_WARM_S": str(warm_s), "RESFORGE_SCRATCH": str(scratch), "KEY": word,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        command = [sys.executable, "-m", "trainer.forked", str(script), word]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        return processes[-1], json.loads(processes[-1].stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_worker_is_a_fork_that_ends_as_it_would(started: Any) -> None:
    process, seen = started("one")
    assert (seen["argv"], seen["name"], seen["key"]) == (["one"], "__main__", "one")
    assert (seen["torch"], seen["ray"]) == (True, False)
    assert seen["pid"] != process.pid
    assert process.wait(30) == 3
    assert started("two")[1]["parent"] == seen["parent"]


def test_a_fork_ends_with_the_process_that_ray_knows(started: Any) -> None:
    process, seen = started("wait")
    process.kill()
    until(lambda: not psutil.pid_exists(seen["pid"]), within_s=30, what="its end")


def test_the_end_of_a_fork_is_that_of_the_process_that_ray_knows(started: Any) -> None:
    process, seen = started("wait")
    psutil.Process(seen["pid"]).kill()
    assert process.wait(30) == 128 + 9


def test_without_a_warm_process_it_is_the_worker_itself(started: Any) -> None:
    process, seen = started("one", warm_s=0)
    assert (seen["argv"], seen["name"], seen["torch"]) == (["one"], "__main__", False)
    assert seen["pid"] == process.pid
    assert process.wait(30) == 3
