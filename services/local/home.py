"""The folder that holds a stack's state: what lies in it, who may read it, and the lock that one supervisor holds."""

import configparser
import fcntl
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A UNIX socket's path has at most 103 bytes on macOS and 107 on Linux. Below its folder Ray puts
# `session_<date>_<time>_<microseconds>_<pid>/sockets/dash_MetricsHead`, up to 69 bytes.
_RAY_FOLDER_BYTES = 34

_PROFILE = "default"  # the one that boto3 takes where none is named


class HomeError(Exception):
    """The stack's home can't be used. The message says why, in one line."""


class AlreadyRunning(HomeError):
    """A supervisor holds this home. `pid` is its process; `url` its API, once that is up."""

    def __init__(self, home: Path, pid: int | None, url: str | None) -> None:
        where = f" at {url}" if url else ""
        super().__init__(f"a stack runs already on {home}{where} (process {pid}); `resforge down` ends it")
        self.pid = pid
        self.url = url


@dataclass(frozen=True)
class Identity:
    """What a home keeps from one start to the next."""

    id: str  # in the environment of every process of the stack
    ports: dict[str, int] = field(default_factory=dict)
    bucket: str | None = None  # None until the first start
    s3_endpoint: str | None = None  # None where the stack runs its own server, or on AWS
    external_s3: bool = False


@dataclass(frozen=True)
class Home:
    """Every path below a stack's folder."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "resforge.db"

    @property
    def objects(self) -> Path:
        """The folder that the embedded S3 server serves: one folder a bucket."""
        return self.path / "objects"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def work(self) -> Path:
        """The working directory of every process of the stack; also a mark by which leftovers are found."""
        return self.path / "work"

    @property
    def identity(self) -> Path:
        return self.path / "stack.json"

    @property
    def connection(self) -> Path:
        return self.path / "connection.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def s3_credentials(self) -> Path:
        return self.path / "s3-credentials"

    @property
    def api_key(self) -> Path:
        return self.path / "api-key"

    @property
    def ray_token(self) -> Path:
        return self.path / "ray-token"

    def ray_folder(self, stack_id: str) -> Path:
        """Where Ray keeps its sessions: under the home, or where that path is too long for its sockets, elsewhere."""
        inside = self.path / "ray"
        if len(os.fsencode(inside)) <= _RAY_FOLDER_BYTES:
            return inside
        name = f"resforge-{stack_id}/ray"
        candidates = [Path(tempfile.gettempdir(), name), Path("/tmp", name)]
        return next((path for path in candidates if len(os.fsencode(path)) <= _RAY_FOLDER_BYTES), candidates[-1])

    def open(self) -> None:
        """Make the folders, readable by their owner alone.

        Raises:
            HomeError: the path can't be written to, is somebody else's, or holds something other than a stack.
        """
        with one_line(self.path):
            # What a first start makes before it has an identity may lie there, if it was cut short.
            own = {self.objects, self.logs, self.work, self.path / "lock"}
            if self.path.is_dir() and not self.identity.exists() and not own.issuperset(self.path.iterdir()):
                raise HomeError(f"{self.path} holds other things than a stack; give --home a new or an empty folder")
            private_folder(self.path)
            for folder in (self.objects, self.logs, self.work):
                private_folder(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for this process alone.

        Raises:
            AlreadyRunning: another process holds it.
        """
        with one_line(self.path), (self.path / "lock").open("a+", encoding="ascii") as file:
            os.chmod(file.name, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(self.path, self.holder(), self._url()) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def holder(self) -> int | None:
        """The process that holds the home, or None where none does."""
        try:
            with (self.path / "lock").open("r", encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except (FileNotFoundError, NotADirectoryError):
            pass
        return None

    def _url(self) -> str | None:
        url = (read_json(self.connection) or {}).get("url")
        return url if isinstance(url, str) else None

    def load_identity(self) -> Identity:
        """What the last start left, or a new identity."""
        kept = read_json(self.identity)
        if kept is None:
            return Identity(id=secrets.token_hex(8))
        try:
            return Identity(**kept)
        except TypeError as error:
            raise HomeError(f"{self.identity} is not what this version of resforge wrote: {error}") from None

    def save_identity(self, identity: Identity) -> None:
        write_private(self.identity, json.dumps(identity.__dict__, indent=1))

    def secret(self, path: Path) -> str:
        """The secret in that file; a new one is made where there is none."""
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        return path.read_text(encoding="ascii").strip()

    def s3_keys(self) -> tuple[str, str] | None:
        """The access key and the secret key that the stack uses; None before there are any."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.s3_credentials)
        if not parser.has_section(_PROFILE):
            return None
        return parser[_PROFILE]["aws_access_key_id"], parser[_PROFILE]["aws_secret_access_key"]

    def keep_s3_keys(self, keys: tuple[str, str], *, token: str | None = None, region: str = "us-east-1") -> None:
        """Write the file in which boto3 finds the keys."""
        lines = [f"[{_PROFILE}]", f"aws_access_key_id = {keys[0]}", f"aws_secret_access_key = {keys[1]}"]
        lines += [f"aws_session_token = {token}"] if token else []
        write_private(self.s3_credentials, "\n".join([*lines, f"region = {region}", ""]))


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses (no right, no space, no folder) into a HomeError that says where."""
    try:
        yield
    except OSError as error:
        raise HomeError(f"can't use {path}: {error.strerror or error}") from error


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, or make sure that an existing one is such.

    Raises:
        HomeError: the folder belongs to another user.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise HomeError(f"{path} is no folder of yours; give --home another")
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(0o700)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    with one_line(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no such file or it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
