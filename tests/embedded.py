"""The embedded stack for tests: real processes of their own, which end with the test run however that ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from resforge.client import Client
from services.local import processes
from services.local.home import Home

UP_WITHIN_S = 180
CLI = [sys.executable, "-c", "from resforge.cli import main; main()"]


@dataclass
class EmbeddedStack:
    """A stack on a home. `start` and `stop` may follow each other; `options` go to `services.local up`."""

    path: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[str] | None" = None
    said: str = ""

    @property
    def home(self) -> Home:
        return Home(self.path)

    def start(self) -> None:
        """Return when it is up.

        Raises:
            RuntimeError: it ended instead; the message is what it said.
        """
        self.process = subprocess.Popen(
            # It ends when its standard input does: when this process dies, however that happens.
            [sys.executable, "-m", "services.local", "up", "--home", str(self.path), "--follow-stdin",
             "--quiet-once-up", *self.options],
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.said = self.process.stdout.read()  # up to its end, which comes once it is up, or has ended
        self.process.stdout.close()
        if not self.home.connection.exists():
            self.process.wait(UP_WITHIN_S)
            raise RuntimeError(self.said)

    def stop(self) -> None:
        """End it in order; harmless where it has ended."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process = None

    def kill(self) -> None:
        """End the supervisor alone, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def connection(self) -> dict[str, Any]:
        return dict(json.loads(self.home.connection.read_text()))

    def client(self) -> Client:
        return Client(self.connection["url"], self.connection["api_key"])

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "services.local", "status", "--home", str(self.path)]
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout))

    def part(self, name: str) -> dict[str, Any]:
        return next(part for part in self.status()["parts"] if part["name"] == name)

    def members(self) -> list[psutil.Process]:
        """Every process of the stack, the supervisor not among them."""
        return members(self.path)


def members(path: Path) -> list[psutil.Process]:
    """Every process of the stack on that home, its supervisor not among them."""
    home = Home(path)
    return processes.members(home.load_identity().id, home.work)


def listening(stack: EmbeddedStack) -> list[tuple[str, str, int]]:
    """Process, address and port of every socket of the stack that takes what comes."""
    assert stack.process is not None
    found = []
    for process in [psutil.Process(stack.process.pid), *stack.members()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                # A UDP socket without a peer receives from anybody.
                if connection.status == psutil.CONN_LISTEN or (
                    connection.type == socket.SOCK_DGRAM and not connection.raddr
                ):
                    found.append((process.name(), connection.laddr.ip, connection.laddr.port))
    return found


def off_loopback(found: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    # Ray's C++ parts bind IPv4's loopback as an IPv6 socket.
    return [item for item in found if item[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
