"""The supervisor over small real processes: restarts, order, and an end that leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.local import processes
from services.local.supervisor import last_line
from tests.services.local.waiting import gone, until

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
)
# Starts a process in a session of its own, says which, and goes on or ends.
SPAWN = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print(child.pid, flush=True); time.sleep(float(sys.argv[1]))"
)
# A process that is nobody's child, as the one is that workers are forked from, beside one that lives on.
DETACH = (
    "import subprocess, sys, time\n"
    "spawn = 'import subprocess, sys; '\n"
    "spawn += 'child = subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True); '\n"
    "spawn += 'print(child.pid, flush=True)'\n"
    "subprocess.run([sys.executable, '-S', '-c', spawn, '-S', '-c', 'import time; time.sleep(600)'], check=True)\n"
    "time.sleep(600)"
)


class Run:
    """A supervisor at work in a process of its own."""

    def __init__(self, folder: Path, programs: list[dict[str, Any]]) -> None:
        self.id = uuid.uuid4().hex
        self.folder = folder
        (folder / "programs.json").write_text(json.dumps({"id": self.id, "programs": programs}))
        script = str(Path(__file__).with_name("supervise.py"))
        self.process = subprocess.Popen([sys.executable, script, str(folder)], stdout=subprocess.PIPE, text=True)

    def part(self, name: str) -> tuple[str, int, int, str]:
        """State, process id, starts, message."""
        try:
            found = json.loads((self.folder / "status.json").read_text())[name]
        except (FileNotFoundError, KeyError):
            return ("", 0, 0, "")
        return found[0], found[1], found[2], found[3]

    def ready(self) -> None:
        until((self.folder / "ready").exists, what="all ready")

    def printed(self, name: str) -> str:
        return until(lambda: last_line(self.folder / f"{name}.log"), what=f"output of {name}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def members(self) -> list[psutil.Process]:
        return processes.members(self.id, self.folder)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    started: list[Run] = []

    def start(*programs: dict[str, Any]) -> Run:
        started.append(Run(tmp_path, list(programs)))
        return started[-1]

    yield start
    for run in started:
        run.kill()
        processes.end_members(run.id, run.folder)


def program(name: str, argv: list[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "argv": argv, **more}


def test_one_that_dies_starts_again_and_the_status_says_so(runs: Any) -> None:
    run = runs(program("a", SLEEP), program("b", SLEEP))
    run.ready()
    first, other = run.part("a")[1], run.part("b")[1]
    os.kill(first, signal.SIGKILL)
    until(lambda: run.part("a")[:1] == ("ready",) and run.part("a")[2] == 2)
    assert run.part("a")[1] != first
    assert run.part("b")[1:3] == (other, 1)


def test_one_that_always_dies_is_tried_again_and_its_last_words_are_told(runs: Any) -> None:
    run = runs(program("a", [sys.executable, "-S", "-c", "import sys; sys.exit('no such thing')"]))
    until(lambda: run.part("a")[2] >= 3)
    message = until(lambda: run.part("a")[3])
    assert "a ended with code 1 and starts again in" in message
    assert "no such thing" in message
    assert run.process.poll() is None


def test_what_waits_starts_only_after_what_must_run_through(runs: Any, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    run = runs(program("first", [sys.executable, "-S", "-c", waits], once=True), program("b", SLEEP, after=["first"]))
    until(lambda: run.part("first")[0] == "starting")
    assert run.part("b") == ("waiting", None, 0, "")
    gate.touch()
    run.ready()
    assert run.part("first")[0] == "done"
    assert run.part("b")[0] == "ready"


def test_the_end_comes_with_one_that_must_run_through_and_fails(runs: Any) -> None:
    run = runs(
        program("first", [sys.executable, "-S", "-c", "raise SystemExit('no disk')"], once=True), program("b", SLEEP)
    )
    printed, _ = run.process.communicate(timeout=30)
    assert run.process.returncode == 1
    assert printed == "failed: no disk\n"
    assert run.members() == []


def test_sigterm_ends_also_who_ignores_it_and_what_they_started(runs: Any) -> None:
    run = runs(
        program("stubborn", [sys.executable, "-S", "-c", STUBBORN], grace_s=0.5),
        program("parent", [sys.executable, "-S", "-c", SPAWN, "600"]),
        program("orphaner", [sys.executable, "-S", "-c", SPAWN, "0.2"]),
    )
    run.printed("stubborn")
    grandchild, orphan = int(run.printed("parent")), int(run.printed("orphaner"))
    assert psutil.pid_exists(grandchild)
    run.process.terminate()
    run.process.communicate(timeout=30)
    assert run.process.returncode == 0
    assert run.members() == []
    assert gone(grandchild)
    assert gone(orphan)


def test_what_one_part_left_running_ends_with_that_part_alone(runs: Any) -> None:
    run = runs(program("a", SLEEP), program("detacher", [sys.executable, "-S", "-c", DETACH]))
    orphan = int(run.printed("detacher"))
    for name, orphan_ends in (("a", False), ("detacher", True)):
        _, pid, _, _ = run.part(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda name=name: run.part(name)[0] == "ready" and run.part(name)[2] == 2)  # type: ignore[misc]
        assert gone(orphan) == orphan_ends


def test_a_second_signal_waits_for_nobody(runs: Any) -> None:
    run = runs(program("stubborn", [sys.executable, "-S", "-c", STUBBORN], grace_s=600))
    run.printed("stubborn")
    run.process.terminate()
    until(lambda: run.process.terminate() or run.process.poll() is not None)
    run.process.communicate(timeout=30)
    assert run.members() == []


def test_what_a_dead_one_has_left_is_ended_before_it_starts_again(runs: Any) -> None:
    run = runs(program("a", [sys.executable, "-S", "-c", SPAWN, "0.3"]), program("b", SLEEP))
    first = int(run.printed("a"))
    other = until(lambda: run.part("b")[1])
    until(lambda: run.part("a")[2] >= 2)
    until(lambda: gone(first))
    assert run.part("b")[1:3] == (other, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's death")
def test_children_end_with_a_supervisor_that_was_killed(runs: Any) -> None:
    run = runs(program("a", SLEEP), program("stubborn", [sys.executable, "-S", "-c", STUBBORN]))
    run.ready()
    run.printed("stubborn")
    run.kill()
    until(lambda: run.members() == [])


def test_leftovers_are_found_by_their_mark_and_ended(runs: Any, tmp_path: Path) -> None:
    run = runs(program("parent", [sys.executable, "-S", "-c", SPAWN, "600"]))
    grandchild = int(run.printed("parent"))
    run.kill()
    until(lambda: [item.pid for item in run.members()] == [grandchild])
    assert processes.end_members(run.id, tmp_path) == 1
    assert gone(grandchild)
    assert processes.end_members(run.id, tmp_path) == 0


def test_a_process_without_an_environment_is_known_by_where_it_stands(tmp_path: Path) -> None:
    """As some of Ray's are, which write their title over their environment."""
    bare = subprocess.Popen(SLEEP, env={}, cwd=tmp_path)
    shell = subprocess.Popen(SLEEP, env={"PATH": "/bin"}, cwd=tmp_path)
    try:
        found = until(lambda: processes.members("no-such-id", tmp_path))
        assert [item.pid for item in found] == [bare.pid]
    finally:
        for child in (bare, shell):
            child.kill()
            child.wait()


def test_the_last_line_is_the_last_with_anything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_line(path) == ""
    path.write_bytes(b"x" * 9000 + b"\nthe end \xff\n\n  \n")
    assert last_line(path) == "the end \ufffd"
    path.write_text("long " * 100)
    assert last_line(path).endswith("...")
    assert len(last_line(path)) == 300
