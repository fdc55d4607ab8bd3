"""What a stack consists of: each program, its arguments and its environment. Pure functions."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.local.home import Home
from services.local.ports import HOST
from services.local.processes import MARK

# What the user's own environment must not change in the stack.
_FOREIGN = ("RESFORGE_", "RAY_", "RCLONE_", "AWS_")
_PROXIES = ("NO_PROXY", "no_proxy")

# Ray's smallest is 75 MiB. Ours holds nothing big in it, and containers often have little shared memory.
_OBJECT_STORE_BYTES = 100_000_000

_LOOPBACK = "lo" if sys.platform.startswith("linux") else "lo0"

PREFIX = "resforge: "  # begins the one line that says what went wrong

PORTS = (
    "api",
    "s3",
    "controller_metrics",
    "ray_gcs",
    "ray_dashboard",
    "ray_agent",
    "ray_metrics",
    "ray_client",
    "ray_autoscaler_metrics",
    "ray_dashboard_metrics",
)


@dataclass(frozen=True)
class HttpProbe:
    """Ready when the URL answers 200; without `ok_only`, when it answers at all.

    With `part`, ready when the answer's JSON says so of that part.
    """

    url: str
    ok_only: bool = True
    part: str | None = None


@dataclass(frozen=True)
class RayProbe:
    """Ready when a trivial job submitted to Ray has succeeded."""

    dashboard: str
    token_path: Path


@dataclass(frozen=True)
class Program:
    """One process that the supervisor keeps alive, or with `once`, one that must run through before others start.

    `after` names the programs that must be ready first. `grace_s` is how long it may take to end by itself.
    One that is not ready within `ready_within_s` is started anew. `ends_its_own` says that on SIGTERM it ends the
    processes that it started.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    probe: HttpProbe | RayProbe | None = None
    after: tuple[str, ...] = ()
    once: bool = False
    grace_s: float = 5.0
    ready_within_s: float | None = 120.0
    ends_its_own: bool = False
    address: str | None = None  # for people to open


@dataclass(frozen=True)
class Config:
    """Everything that decides how a stack looks. `endpoint` is the S3 server's URL; None for AWS."""

    home: Home
    stack_id: str
    ports: Mapping[str, int]
    cpus: int
    bucket: str
    endpoint: str | None
    external_s3: bool
    ray_folder: Path
    python: str  # the interpreter that runs the services and the trainer
    scripts: Path  # the folder with the commands of its environment
    base_env: Mapping[str, str] = field(repr=False)  # the environment that the supervisor was started in
    s3_keys: tuple[str, str] | None = field(default=None, repr=False)  # of the embedded server

    def url(self, port: str) -> str:
        return f"http://{HOST}:{self.ports[port]}"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.home.database}"


def common_environment(config: Config) -> dict[str, str]:
    """What every process of the stack sees: the user's environment without what steers our parts, and the mark."""
    env = {k: v for k, v in config.base_env.items() if not k.startswith(_FOREIGN)}
    env["PATH"] = f"{config.scripts}:{env.get('PATH', '/usr/bin:/bin')}"
    for name in _PROXIES:  # a proxy can't reach this machine's loopback
        env[name] = ",".join(filter(None, (env.get(name), HOST, "localhost")))
    env[MARK] = config.stack_id
    env["PYTHONUNBUFFERED"] = "1"
    # boto3 finds the keys here, and nothing that the user has elsewhere. No key is in an environment itself.
    env["AWS_SHARED_CREDENTIALS_FILE"] = str(config.home.s3_credentials)
    env["AWS_CONFIG_FILE"] = str(config.home.path / "no-aws-config")
    env["AWS_EC2_METADATA_DISABLED"] = "true"
    env["RESFORGE_S3_BUCKET"] = config.bucket
    if config.endpoint:
        env["RESFORGE_S3_ENDPOINT"] = config.endpoint
    return env


def _services_environment(config: Config) -> dict[str, str]:
    return common_environment(config) | {
        "RESFORGE_DATABASE_URL": config.database_url,
        "RESFORGE_HOST": HOST,
        "RESFORGE_PORT": str(config.ports["api"]),
        "RESFORGE_METRICS_PORT": str(config.ports["controller_metrics"]),
        "RESFORGE_RAY_DASHBOARD": config.url("ray_dashboard"),
        "RESFORGE_RAY_TOKEN_PATH": str(config.home.ray_token),
        "RESFORGE_DATA_ROOTS": "/",  # what the user may read anyway
        "RESFORGE_TRAINER_COMMAND": f"{shlex.quote(config.python)} -m trainer run",
    }


def s3_server(config: Config) -> Program:
    """`rclone serve s3` over a folder. Its key pair comes by the environment, since command lines are public."""
    if config.s3_keys is None:
        raise ValueError("the embedded S3 server needs a key pair")
    access, secret = config.s3_keys
    url = config.url("s3")
    return Program(
        name="s3",
        argv=(
            str(config.scripts / "rclone"),
            "serve",
            "s3",
            str(config.home.objects),
            "--addr",
            f"{HOST}:{config.ports['s3']}",
            "--config",
            str(config.home.path / "no-rclone-config"),
            "--log-level",
            "NOTICE",
        ),
        env=common_environment(config) | {"RCLONE_AUTH_KEY": f'"{access},{secret}"'},
        probe=HttpProbe(url, ok_only=False),  # without a signature it answers 403
        address=url,
    )


def ray_head(config: Config) -> Program:
    """A Ray of one node that listens on loopback only, on ports of its own."""
    ports = config.ports
    options = {
        "--node-ip-address": HOST,
        "--port": ports["ray_gcs"],
        "--dashboard-host": HOST,
        "--dashboard-port": ports["ray_dashboard"],
        "--dashboard-agent-listen-port": ports["ray_agent"],
        "--metrics-export-port": ports["ray_metrics"],
        "--ray-client-server-port": ports["ray_client"],
        # Zero: the kernel picks. Ray's own range is fixed, and two stacks would meet in it.
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--temp-dir": config.ray_folder,
        "--num-cpus": config.cpus,
        "--object-store-memory": _OBJECT_STORE_BYTES,
    }
    env = common_environment(config) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(config.home.ray_token),
        # Without this Ray swaps 127.0.0.1 for the host's address and listens there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Fixed numbers else, which a second Ray finds taken.
        "AUTOSCALER_METRIC_PORT": str(ports["ray_autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(ports["ray_dashboard_metrics"]),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",  # how old what is known of free processors may be
        "OMP_NUM_THREADS": "1",
        # Where the workers of a gang reach each other; else the address that the host's name stands for.
        "GLOO_SOCKET_IFNAME": _LOOPBACK,
        "NCCL_SOCKET_IFNAME": _LOOPBACK,
        "RESFORGE_SCRATCH": str(config.home.path / "scratch"),
        "RESFORGE_POD": str(config.home.path / "pod"),  # where a node's trainings can be told to make way, as in a pod
        "RESFORGE_WARM_S": config.base_env.get("RESFORGE_WARM_S", "120"),  # small jobs follow each other here
    }
    url = config.url("ray_dashboard")
    return Program(
        name="ray",
        argv=(
            str(config.scripts / "ray"),
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            *(str(word) for option in options.items() for word in option),
        ),
        env=env,
        probe=RayProbe(url, config.home.ray_token),
        # With a job at work it takes 30 s to end in order, for nothing: what must last is in object storage.
        grace_s=3.0,
        ends_its_own=True,
        address=url,
    )


def prepare(config: Config) -> Program:
    """Migrates the database and makes the first project, its key, the datasets and the bucket."""
    env = common_environment(config)
    if config.external_s3:
        # The keys are the user's, by boto3's chain, and are kept for the others from here on.
        env = {k: v for k, v in env.items() if not k.startswith("AWS_")}
        env |= {k: v for k, v in config.base_env.items() if k.startswith("AWS_")}
    argv = [config.python, "-m", "services.local", "prepare", "--home", str(config.home.path)]
    argv += ["--database-url", config.database_url, "--bucket", config.bucket]
    argv += ["--s3-endpoint", config.endpoint] if config.endpoint else []
    argv += ["--external-s3"] if config.external_s3 else []
    return Program(name="prepare", argv=tuple(argv), env=env, once=True)


def services(config: Config) -> tuple[Program, ...]:
    """The API and the controller."""
    env = _services_environment(config)
    url = config.url("api")
    command = (config.python, "-m", "services")
    return (
        Program("api", (*command, "api"), env, HttpProbe(f"{url}/healthz"), ("prepare",), address=url),
        Program(
            "controller",
            (*command, "controller"),
            env,
            HttpProbe(f"{url}/readyz", part="controller"),
            ("prepare",),
            ready_within_s=None,  # the API tells, and may be what is not there
        ),
    )


def programs(config: Config) -> tuple[Program, ...]:
    """The whole stack, in the order in which it starts."""
    own_s3 = () if config.external_s3 else (s3_server(config),)
    return (*own_s3, prepare(config), ray_head(config), *services(config))


def connection(config: Config, *, api_key: str, keys: tuple[str, str], pid: int) -> dict[str, str | int | None]:
    """What connection.json tells the command line and scripts."""
    return {
        "url": config.url("api"),
        "api_key": api_key,
        "s3_endpoint": config.endpoint,
        "s3_bucket": config.bucket,
        "s3_access_key": keys[0],
        "s3_secret_key": keys[1],
        "ray_dashboard": config.url("ray_dashboard"),
        "ray_metrics": config.url("ray_metrics"),
        "controller_metrics": config.url("controller_metrics"),
        "pid": pid,
    }
