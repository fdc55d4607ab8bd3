"""`resforge demo` as a person runs it, and as a person interrupts it."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.embedded import CLI, members
from tests.services.local.waiting import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all, so that each run meets what the one before has left."""
    return tmp_path_factory.mktemp("demo") / ".demo"


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (r"starting the stack", signal.SIGINT),
        (r"prepare ready", signal.SIGTERM),
        (r"RUNNING +epoch", signal.SIGINT),
    ],
)
def test_a_demo_that_is_interrupted_leaves_no_process(home: Path, moment: str, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [*CLI, "demo", "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    said = next((line for line in demo.stdout if re.match(moment, line)), None)
    assert said is not None, f"it ended before it said {moment}"
    demo.send_signal(number)
    rest = demo.stdout.read()
    demo.stdout.close()
    assert demo.wait(60) == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in rest
    assert members(home) == []


def test_a_demo_that_is_killed_takes_its_stack_along(home: Path) -> None:
    demo = subprocess.Popen([*CLI, "demo", "--home", str(home)], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert any(line.startswith("api ready") for line in demo.stdout)
    demo.kill()
    demo.wait()
    demo.stdout.close()
    until(lambda: members(home) == [], within_s=60, what="the end of the stack")


def test_the_demo_trains_and_evaluates_to_the_same_accuracy(home: Path) -> None:
    done = subprocess.run([*CLI, "demo", "--home", str(home)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [accuracy] = re.findall(r"Test accuracy +([\d.]+) %: \d+ of 360 held-out digits", done.stdout)
    assert float(accuracy) > 96
    [results] = (home / "results").iterdir()
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (results / "checkpoint").iterdir()} >= {"manifest.json", "weights.safetensors"}
    assert members(home) == []
