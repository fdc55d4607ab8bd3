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
    print("code", warm.run(Path(sys.argv[1]), 3.0, "tests.trainer.warm_probe", sys.argv[2:], life), flush=True)
except warm.Cold as cold:
    print("cold:", cold, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


def ask(folder: Path, *argv: str, cwd: Path | None = None, **env: str) -> tuple[dict[str, object], str]:
    """What the probe saw of its process, and what the asker printed last."""
    here = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), *argv], cwd=cwd, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": here, **env},
    )  # fmt: skip
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
    for data in (b"", b"no JSON"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(path))
            connection.send(data)
            assert connection.recv(64) == b""
    assert ask(folder)[0]["parent"] == parent


def test_it_ends_when_nobody_asks(folder: Path) -> None:
    ask(folder)
    until(lambda: not any(entry.is_socket() for entry in folder.iterdir()), within_s=30, what="its end")
    assert ask(folder)[1] == "code 0"


def test_where_it_can_not_serve_nothing_is_run(tmp_path: Path) -> None:
    seen, last = ask(tmp_path / ("long" * 40))  # longer than the address of a socket may be
    assert seen == {}
    assert last.startswith("cold:")
