"""What every launcher can do: start, observe and stop an attempt under a name that never changes."""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class LaunchRequest:
    """An attempt to start. Nothing secret is in it: Ray shows what it is given.

    `name` is the attempt's external name, the same on every try. `prefix_uri` (s3://bucket/project/job) and `attempt`
    are the driver's two arguments. `cpus` and `gpus` are for the driver's own work: none where it has workers, who
    ask for theirs.
    """

    name: str
    prefix_uri: str
    attempt: int
    cpus: float = 0.0
    gpus: int = 0


@dataclass(frozen=True)
class Gang:
    """The workers that must start together, and what each of them needs."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int


@dataclass(frozen=True)
class Node:
    """One machine: what it has for work in all, and what of it nobody uses."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


Phase = Literal["absent", "pending", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class Observation:
    """What the launcher knows of a name. `absent` is its proof that nothing of that name runs."""

    phase: Phase
    message: str = ""


class LauncherError(Exception):
    """The launcher: {detail}"""


class LauncherUnavailable(LauncherError):
    """The launcher does not answer. This proves nothing about what it started."""


class LaunchRefused(LauncherError):
    """The launcher answered that it will not start this. Trying again will not help."""


class Launcher(Protocol):
    """Every method raises LauncherUnavailable when the launcher does not answer."""

    def nodes(self) -> list[Node]:
        """The machines that are there now."""
        ...

    def submit(self, request: LaunchRequest) -> None:
        """Start the attempt; harmless when it was started already.

        Raises:
            LaunchRefused: it will never start.
        """
        ...

    def observe(self, name: str) -> Observation:
        """What is known of the attempt."""
        ...

    def stop(self, name: str) -> None:
        """End the attempt if it runs; harmless when it does not."""
        ...
