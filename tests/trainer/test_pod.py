"""What the processes of a pod that is to end tell each other, with the real command that Kubernetes runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.local.waiting import until
from trainer.pod import Pod
from trainer.settings import TrainerSettings

HOLDS = "import sys; from pathlib import Path; from trainer.pod import Pod; Pod(Path(sys.argv[1])).hold(); "


@contextmanager
def hook(folder: Path | None, seconds: str = "30") -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **({"RESFORGE_POD": str(folder)} if folder else {})}
    command = [sys.executable, "-m", "trainer.pod", seconds]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def worker(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process at work in the pod, until its standard input ends."""
    program = HOLDS + "print('at work', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


def test_the_pods_end_waits_for_the_end_of_every_process(tmp_path: Path) -> None:
    pod = Pod(tmp_path / "pod")
    with worker(tmp_path / "pod") as first, worker(tmp_path / "pod") as second, hook(tmp_path / "pod") as ending:
        assert until(lambda: pod.ends, within_s=20, what="the word that the pod ends")
        first.communicate()
        assert first.returncode == 0
        assert ending.poll() is None
        second.kill()  # one that dies holds nobody up either
        assert ending.wait(20) == 0


def test_an_idle_pod_ends_at_once_and_a_busy_one_when_the_time_is_up(tmp_path: Path) -> None:
    with hook(tmp_path / "idle") as ending:
        assert ending.wait(20) == 0
    with worker(tmp_path / "busy") as busy, hook(tmp_path / "busy", "1") as ending:
        assert ending.wait(20) == 1
        assert busy.poll() is None


def test_outside_of_pods_nothing_is_told(tmp_path: Path) -> None:
    assert TrainerSettings.from_environment({}).pod is None
    assert TrainerSettings.from_environment({"RESFORGE_POD": str(tmp_path)}).pod == tmp_path
    Pod().hold()
    assert not Pod().ends
    with pytest.raises(ValueError, match="RESFORGE_POD names no folder"):
        Pod().end(1)
    with hook(tmp_path, "0") as ending:
        assert ending.wait(20) == 2
        assert ending.stderr is not None
        assert "seconds: 0 is no time to wait" in ending.stderr.read()
