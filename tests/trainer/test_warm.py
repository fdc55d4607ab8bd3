"""The process that workers are forked from: each fork gets what its driver has, and nothing of another's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.local.waiting import until

pytestmark = pytest.mark.stack
ASK = """
import os, sys
from pathlib import Path
from trainer import warm
life, held = os.pipe()
try:
    folder, idle_s, *words = sys.argv[1:]
    print("code", warm.run(Path(folder), float(idle_s), "tests.trainer.warm_probe", words, life), flush=True)
except warm.Cold as cold:
    print("cold:", cold, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


def ask(
    folder: Path, *argv: str, idle_s: float = 60, cwd: Path | None = None, **env: str
) -> tuple[dict[str, object], str]:
    """What the probe saw of its process, and what the asker printed last."""
    here = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", ASK, str(folder), str(idle_s), *argv]
    environment = {**os.environ, "PYTHONPATH": here, **env}
    done = subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True)
    *seen, last = done.stdout.splitlines()
    return json.loads(seen[0]) if seen else {}, last


def test_a_fork_has_what_its_driver_has(folder: Path, tmp_path: Path) -> None:
    first, _ = ask(folder, "a", "b", KEY="one")
    second, last = ask(folder, "c", cwd=tmp_path, KEY="two", OTHER="more")
    assert last == "code 0"
    assert (first["argv"], first["key"], first["other"]) == (["a", "b"], "one", None)
    assert (second["argv"], second["key"], second["other"]) == (["c"], "two", "more")
    assert (first["cwd"], second["cwd"]) == (os.getcwd(), str(tmp_path))
    assert first["parent"] == second["parent"]
    assert first["random"] != second["random"]
    assert first["heavy"] == second["heavy"] == ["lightning.pytorch", "torch"]
    assert first["threads"] == 1


@pytest.mark.parametrize(("word", "told"), [("exit=7", "code 7"), ("raise", "code 1"), ("kill", "code -9")])
def test_how_a_fork_ends_is_told(folder: Path, word: str, told: str) -> None:
    assert ask(folder, word)[1] == told


def test_a_request_that_is_none_harms_nobody(folder: Path) -> None:
    parent = ask(folder)[0]["parent"]
    [path] = [entry for entry in folder.iterdir() if entry.is_socket()]
    files = Path(f"/proc/{parent}/fd")
    before = len(list(files.iterdir()))
    for data, descriptors in ((b"{}", []), (b"no JSON", [0, 1, 2]), (b"{}", [0, 1])):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(path))
            socket.send_fds(connection, [data], descriptors)
            assert connection.recv(64) == b""
    assert ask(folder)[0]["parent"] == parent
    until(lambda: len(list(files.iterdir())) == before, within_s=10, what="what was opened for them is closed")


def test_it_ends_when_nobody_asks(tmp_path: Path) -> None:
    first, _ = ask(tmp_path, idle_s=1)
    until(lambda: not any(entry.is_socket() for entry in tmp_path.iterdir()), within_s=30, what="its end")
    second, last = ask(tmp_path, idle_s=1)
    assert last == "code 0"
    assert second["parent"] != first["parent"]


def test_a_warm_process_that_can_not_start_is_cold(tmp_path: Path) -> None:
    broken = tmp_path / "lightning_utilities.py"
    broken.write_text("raise SystemExit('broken')")
    assert ask(tmp_path / "folder", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")[1].startswith("cold:")


def test_where_it_can_not_serve_nothing_is_run(tmp_path: Path) -> None:
    seen, last = ask(tmp_path / ("long" * 40))  # longer than the address of a socket may be
    assert seen == {}
    assert last.startswith("cold:")
