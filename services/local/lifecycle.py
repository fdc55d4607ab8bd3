"""Bringing a stack up, telling how it is, and taking it down."""

import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from services.local import ports, processes, stack
from services.local.home import Home, HomeError, Identity, one_line, private_folder, read_json, write_private
from services.local.supervisor import Part, Supervisor

log = logging.getLogger("resforge.local")

_DOWN_WITHIN_S = 45.0


@dataclass(frozen=True)
class Options:
    """What a person may choose of a stack."""

    port: int | None = None
    cpus: int | None = None
    s3_endpoint: str | None = None
    bucket: str | None = None


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle(identity: Identity, options: Options) -> Identity:
    """The identity with its object storage decided: at the first start by the options, later as it was.

    Raises:
        HomeError: the options name other object storage than the home has its jobs in.
    """
    asked = options.s3_endpoint is not None or options.bucket is not None
    if identity.bucket is None:
        bucket = options.bucket or "resforge"
        return replace(identity, bucket=bucket, s3_endpoint=options.s3_endpoint, external_s3=asked)
    differs = (options.s3_endpoint, options.bucket or identity.bucket) != (identity.s3_endpoint, identity.bucket)
    if asked and (differs or not identity.external_s3):
        where = (identity.s3_endpoint or "AWS") if identity.external_s3 else "its own S3 server"
        raise HomeError(
            f"the jobs of this home lie on {where} in bucket {identity.bucket}; for another one give another --home"
        )
    return identity


def configure(home: Home, options: Options, base_env: Mapping[str, str]) -> stack.Config:
    """Decide everything that is still open, and keep it for the next start. The home must be locked.

    Raises:
        HomeError: the home can't be used so.
        PortTaken: the port that was asked for is in use.
    """
    identity = settle(home.load_identity(), options)
    wanted = {} if options.port is None else {"api": options.port}
    chosen = ports.pick(stack.PORTS, identity.ports, wanted)
    identity = replace(identity, ports=chosen)
    home.save_identity(identity)
    home.secret(home.ray_token)
    keys = None
    endpoint = identity.s3_endpoint
    if not identity.external_s3:
        endpoint = f"http://{ports.HOST}:{chosen['s3']}"
        keys = home.s3_keys() or (secrets.token_hex(10).upper(), secrets.token_hex(20))
        home.keep_s3_keys(keys)
    assert identity.bucket is not None
    scripts = Path(sysconfig.get_path("scripts"))
    _require(scripts, ["ray"] if identity.external_s3 else ["ray", "rclone"])
    return stack.Config(
        home=home,
        stack_id=identity.id,
        ports=chosen,
        # One core less than two would leave no room for the driver beside a worker.
        cpus=options.cpus or max(2, usable_cpus()),
        bucket=identity.bucket,
        endpoint=endpoint,
        external_s3=identity.external_s3,
        ray_folder=home.ray_folder(identity.id),
        python=sys.executable,
        scripts=scripts,
        base_env=base_env,
        s3_keys=keys,
    )


def _require(scripts: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (scripts / name).exists()]
    if missing:
        raise HomeError(f"{' and '.join(missing)} not found in {scripts}; pip install 'resforge[local]' brings them")


# Up ------------------------------------------------------------------------------------------------------------------


def up(home: Home, options: Options, base_env: Mapping[str, str], *, follow_stdin: bool, quiet_once_up: bool) -> None:
    """Run a stack until a signal (or with `follow_stdin`, the end of standard input) tells it to stop.

    With `quiet_once_up` standard output and error are let go once everything is ready.

    Raises:
        HomeError, PortTaken: it can't run so.
        StartFailed: the database or object storage could not be made ready.
    """
    os.umask(0o077)
    home.open()
    with home.locked():
        home.connection.unlink(missing_ok=True)
        left = processes.end_members(home.load_identity().id, home.work)
        config = configure(home, options, base_env)
        rotate_logs(home.logs)
        log_to(home.logs / "supervisor.log")
        if left:
            log.warning("ended %d processes that an earlier run had left", left)
        log.info("starting the stack at %s", home.path)
        retire_ray(home, config.ray_folder)
        with one_line(config.ray_folder):
            private_folder(config.ray_folder.parent)
        try:
            asyncio.run(_run(config, follow_stdin=follow_stdin, quiet_once_up=quiet_once_up))
        finally:
            home.connection.unlink(missing_ok=True)
            retire_ray(home, config.ray_folder)
        log.info("ended")


async def _run(config: stack.Config, *, follow_stdin: bool, quiet_once_up: bool) -> None:
    home = config.home
    began = time.monotonic()
    since = datetime.now(UTC)
    stop = asyncio.Event()
    up_at: list[datetime] = []

    def changed(parts: Sequence[Part]) -> None:
        overall = "stopping" if stop.is_set() else "up" if up_at else "starting"
        try:
            write_private(home.status, json.dumps(describe(parts, overall, since), indent=1))
        except HomeError as error:  # a full disk must not end what still works
            log.error("%s", error)

    def ready() -> None:
        keys = home.s3_keys()
        assert keys is not None  # `prepare` has written or checked them
        api_key = home.api_key.read_text(encoding="ascii").strip()
        document = stack.connection(config, api_key=api_key, keys=keys, pid=os.getpid())
        up_at.append(datetime.now(UTC))
        changed(supervisor.parts)
        write_private(home.connection, json.dumps(document, indent=1))
        log.info(
            "up after %.1f s: the API at %s; addresses and keys in %s",
            time.monotonic() - began,
            config.url("api"),
            home.connection,
        )
        if quiet_once_up:
            let_go_of_output()

    supervisor = Supervisor(
        stack.programs(config),
        logs=home.logs,
        work=home.work,
        strays=partial(processes.strays, config.stack_id, home.work),
        changed=changed,
    )

    def on_signal(name: str) -> None:
        if stop.is_set():
            supervisor.hurry()
        else:
            log.info("%s: ending the stack; once more to wait for nothing", name)
            stop.set()

    def on_stdin() -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number.name)
    if follow_stdin:
        loop.add_reader(0, on_stdin)
    await supervisor.run(stop, ready)


def describe(parts: Sequence[Part], overall: str, since: datetime) -> dict[str, Any]:
    """What status.json holds."""
    return {
        "state": overall,
        "pid": os.getpid(),
        "since": since.isoformat(),
        "parts": [
            {
                "name": part.program.name,
                "state": part.state,
                "pid": part.pid,
                "restarts": max(0, part.starts - 1),
                "address": part.program.address,
                "message": part.message,
                "log": str(part.log_path),
            }
            for part in parts
        ],
    }


def rotate_logs(folder: Path) -> None:
    """Keep the logs of the run before as NAME.log.1, and begin new ones."""
    with one_line(folder):
        for path in folder.glob("*.log"):
            path.replace(path.with_name(path.name + ".1"))


def log_to(path: Path) -> None:
    """Write the supervisor's log to a file too, with times."""
    with one_line(path):
        handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def retire_ray(home: Home, folder: Path) -> None:
    """Remove Ray's folder, but keep the logs of its newest session under the home."""
    with one_line(folder):
        sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir())
        if sessions and (sessions[-1] / "logs").is_dir():
            kept = home.logs / "ray"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(sessions[-1] / "logs", kept)
        # Outside of the home it has a parent of its own.
        shutil.rmtree(folder if folder.is_relative_to(home.path) else folder.parent, ignore_errors=True)


def let_go_of_output() -> None:
    """Point standard output and error at nothing, so that who reads them sees their end."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def detach(home: Home, arguments: Sequence[str]) -> int:
    """Start `up` in a session of its own, pass its output on until it is up, and return its exit code, or 0."""
    command = [sys.executable, "-m", "services.local", "up", *arguments, "--quiet-once-up"]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert child.stdout is not None
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # end what was begun, as Ctrl-C does
    try:
        for line in child.stdout:  # ends when the stack is up or the child has ended
            sys.stdout.write(line.decode("utf-8", "replace"))
            sys.stdout.flush()
        up_now = (read_json(home.connection) or {}).get("pid") == child.pid
        return 0 if up_now else child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise


# Status and down -----------------------------------------------------------------------------------------------------


def status(home: Home) -> dict[str, Any]:
    """How the stack is, as status.json says; its state is `down` where no supervisor holds the home."""
    pid = home.holder()
    kept = read_json(home.status) or {}
    if pid is None or kept.get("pid") != pid:
        return {"state": "down" if pid is None else "starting", "home": str(home.path), "pid": pid, "parts": []}
    return {"home": str(home.path), **kept}


def down(home: Home) -> str:
    """End the stack and whatever an earlier run has left, and say what was done.

    Raises:
        TimeoutError: processes of the stack do not end.
    """
    pid = home.holder()
    if pid is not None:
        _end_supervisor(home, pid)
    identity = home.load_identity()
    left = processes.end_members(identity.id, home.work)
    if left:  # the supervisor was gone, or had to be killed
        retire_ray(home, home.ray_folder(identity.id))
    home.connection.unlink(missing_ok=True)
    if pid is not None:
        return f"the stack at {home.path} has ended"
    if left:
        return f"ended {left} processes that an earlier run had left at {home.path}"
    return f"no stack runs on {home.path}"


def _end_supervisor(home: Home, pid: int) -> None:
    """Ask the supervisor to end the stack; kill it if it does not."""
    try:
        supervisor = psutil.Process(pid)
        supervisor.terminate()
        until = time.monotonic() + _DOWN_WITHIN_S
        while home.holder() == pid and time.monotonic() < until:
            time.sleep(0.05)
        if home.holder() == pid:
            supervisor.kill()
            supervisor.wait(10)
    except psutil.NoSuchProcess:
        return
