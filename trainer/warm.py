"""A start without the imports: one process a node has imported what workers need, and forks one for each job.

The import of Torch and Lightning takes several seconds of a core, which a job of seconds would pay each time. The warm
process does nothing but import and fork, so jobs share no state: each worker is a fresh copy, with the environment, the
folder and the output of whoever asked for it. It ends by itself once nobody has asked for a while, and stands
under a name of its own for each version of the code. Linux only, and not for GPUs: CUDA does not survive a fork.
"""

import argparse
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import logging
import math
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.lean import import_lightning
from trainer.threads import environment

logger = logging.getLogger(__name__)

STARTS_WITHIN_S = 20.0  # up to where it listens; those who ask before it has imported all are served in turn
REQUEST_WITHIN_S = 5.0  # one that has connected says so late what it wants only if it was stopped
LARGEST_REQUEST = 1 << 20
# What a worker imports in the end, some of it only when it is first needed.
WARM = (
    "trainer.single", "trainer.worker", "trainer.tasks", "trainer.protocols", "trainer.analysis",
    "trainer.ingest.job", "torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg",
)  # fmt: skip


class Cold(Exception):
    """There is no warm process to be had, and why."""


def run(folder: Path, idle_s: float, module: str, argv: Sequence[str], life: int) -> int | None:
    """Run `module.main` in a fork of this node's warm process, which is started if need be, and wait for its end.

    Args:
        folder: where the warm process listens, and writes its log.
        idle_s: how long it stays without work, in seconds; counts where it is started now.
        argv: what `main` gets, followed by the number of `life` over there.
        life: the reading end of a pipe, for the fork to end with.

    Returns:
        The exit code, negative for a signal as `subprocess` has it; None if nobody saw it, since the warm process died.

    Raises:
        Cold: nothing was run.
    """
    if sys.platform != "linux":
        raise Cold("only Linux has warm starts")
    request = {"module": module, "argv": list(argv), "env": dict(os.environ), "cwd": os.getcwd()}
    try:
        for _ in range(3):
            with _connect(folder, idle_s) as connection:
                try:
                    socket.send_fds(connection, [json.dumps(request).encode()], [1, 2, life])
                    begun = connection.recv(64)
                except ConnectionError:
                    continue  # it has ended just as somebody asked
                if begun:
                    code = connection.recv(64)
                    return int(code) if code else None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Cold(str(error)) from error
    raise Cold(f"the warm process does not serve; see {folder / 'warm.log'}")


def end_with(life: int) -> None:
    """Have this process end when the one that holds the other end of a pipe does: a fork must not go on alone."""

    def wait() -> None:
        os.read(life, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="life", daemon=True).start()


def _connect(folder: Path, idle_s: float) -> socket.socket:
    path = folder / _name()
    deadline, started = time.monotonic() + STARTS_WITHIN_S, -math.inf
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(str(path))
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.getuid():  # it would get to see this one's keys
                raise PermissionError(f"{path} belongs to user {user}")
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
        except BaseException:
            connection.close()
            raise
        if time.monotonic() - started > 2:  # again, should the one before have met another that was about to end
            started = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "warm.log").open("a") as log:
                # It detaches itself, so that it is no child of a driver that Ray may end with all its children.
                subprocess.run(
                    [sys.executable, "-m", "trainer.warm", str(path), str(idle_s)],
                    # Threads do not survive a fork, and each sets the number of its own afterwards.
                    env={**os.environ, **environment(1)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
                )  # fmt: skip
        time.sleep(0.02)


def _name() -> str:
    """One for each user, each machine or container that shares the folder, and each state of the code."""
    sources = [path for package in ("trainer", "resforge") for path in _folder(package).rglob("*.py")]
    files = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(sources)]
    versions = [version(name) for name in ("torch", "lightning")]
    state = json.dumps([os.getuid(), socket.gethostname(), sys.executable, sys.path, versions, files])
    return f"warm-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def _folder(package: str) -> Path:
    return Path(importlib.import_module(package).__path__[0])


def main() -> None:
    """The warm process."""
    parser = argparse.ArgumentParser(prog="python -m trainer.warm", description=__doc__)
    parser.add_argument("path", type=Path, help="the socket to listen on")
    parser.add_argument("idle_s", type=float, help="end after so many seconds without work")
    arguments = parser.parse_args()
    if os.fork():
        os._exit(0)
    os.setsid()
    with arguments.path.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else another one serves
        _serve(arguments.path, arguments.idle_s)


def _serve(path: Path, idle_s: float) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        mask = os.umask(0o077)
        listener.bind(str(path))
        os.umask(mask)
        listener.listen(128)
        _warm_up()
        ended, ends = socket.socketpair()
        for end in (ended, ends):
            end.setblocking(False)
        signal.set_wakeup_fd(ends.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        forks: dict[int, socket.socket] = {}
        while (ready := selector.select(None if forks else idle_s)) or forks:
            for key, _ in ready:
                if key.fileobj is listener:
                    _accept(listener, forks)
                else:
                    with contextlib.suppress(BlockingIOError):
                        ended.recv(4096)
                    _tell_ends(forks)
        path.unlink(missing_ok=True)


def _warm_up() -> None:
    """Import what a worker imports."""
    import_lightning()
    for module in WARM:
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise SystemExit(f"what was imported has started {threads - 1} threads, which a fork would lack")
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page


def _accept(listener: socket.socket, forks: dict[int, socket.socket]) -> None:
    descriptors: list[int] = []
    with contextlib.ExitStack() as ours:
        try:
            connection = ours.enter_context(listener.accept()[0])
            connection.settimeout(REQUEST_WITHIN_S)
            data, descriptors, *_ = socket.recv_fds(connection, LARGEST_REQUEST, 3)
            for descriptor in descriptors:
                ours.callback(os.close, descriptor)
            if len(descriptors) != 3:
                raise ValueError("a request has three file descriptors: output, errors, life")
            request = json.loads(data)
            pid = os.fork()
        except (OSError, ValueError):
            logger.exception("a request can't be served")
            return
        if pid == 0:
            # The connection stays open: should the warm process die, its end still is that of the worker.
            _become(request, descriptors, keep=connection.fileno())
        with contextlib.suppress(OSError):
            connection.send(str(pid).encode())
        forks[pid] = connection.dup()


def _become(request: dict[str, Any], descriptors: Sequence[int], *, keep: int) -> None:
    """Be what was asked for, in a fork; does not return."""
    code: object = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        output, errors, life = descriptors
        os.dup2(output, 1)
        os.dup2(errors, 2)
        for open_here in map(int, os.listdir("/proc/self/fd")):
            if open_here > 2 and open_here not in (keep, life):
                with contextlib.suppress(OSError):
                    os.close(open_here)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        import numpy as np

        random.seed()
        np.random.seed()
        importlib.import_module(request["module"]).main([*request["argv"], str(life)])
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        logger.exception("the fork failed")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _tell_ends(forks: dict[int, socket.socket]) -> None:
    while forks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with forks.pop(pid) as connection, contextlib.suppress(OSError):
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    main()
