"""What every launcher can do: start, observe and stop an attempt under a name that never changes."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from resforge.jobs import Reason
from resforge.spec import CommonSpec


@dataclass(frozen=True)
class Gang:
    """The workers that must start together, and what each of them needs."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int


@dataclass(frozen=True)
class LaunchRequest:
    """An attempt to start. Nothing secret is in it: Ray shows what it is given.

    `name` is the attempt's external name, the same on every try. `prefix_uri` (s3://bucket/project/job) and `attempt`
    are the driver's two arguments. `cpus` and `gpus` are for the driver's own work: none where it has workers, who
    ask for theirs. A launcher that makes the cluster makes it for `gang`, which is None where the driver is alone, in
    the pool that the job names.
    """

    name: str
    prefix_uri: str
    attempt: int
    cpus: float = 0.0
    gpus: int = 0
    gang: Gang | None = None
    pool: str | None = None
    project: str = ""

    @property
    def job(self) -> str:
        """The job's id."""
        return self.name.rpartition("-")[0]


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
    """What the launcher knows of a name. `absent` is its proof that nothing of that name runs.

    Attributes:
        reason: why it has ended, or what keeps it pending, where the launcher can tell. Of an attempt that runs: what
            it has lost in the last minutes, such as a node.
        queued: it was taken, and is held in a queue of the cluster's.
        since: when a pending attempt was given all that it waited for, where the launcher can tell; now, while it waits
            for nodes.
    """

    phase: Phase
    message: str = ""
    reason: Reason | None = None
    queued: bool = False
    since: datetime | None = None


class LauncherError(Exception):
    """The launcher: {detail}"""


class LauncherUnavailable(LauncherError):
    """The launcher does not answer. This proves nothing about what it started."""


class LaunchRefused(LauncherError):
    """The launcher answered that it will not start this. Trying again will not help."""


class PoolUnknown(LauncherError):
    """There is no such pool, or no more."""


class Launcher(Protocol):
    """Every method raises LauncherUnavailable when the launcher does not answer."""

    def pool_of(self, name: str | None) -> str:
        """The pool in which a job runs that names this one, or none; always the same where there are no pools."""
        return ""

    def pools(self) -> list[str]:
        """The names of all pools, as `nodes` takes them."""
        return [""]

    def nodes(self, pool: str = "") -> list[Node] | None:
        """The machines of a pool that are there now; None if gangs are queued elsewhere, and any may be submitted.

        Raises:
            PoolUnknown: there is no such pool.
        """
        ...

    def capacity(self) -> list[Node]:
        """The machines of all pools that there are or may be, whoever queues for them."""
        return [node for pool in self.pools() for node in self.nodes(pool) or ()]

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

    def leftovers(self, live: Collection[str]) -> list[str]:
        """The attempts beside these that something is left of, for `stop` to remove."""
        return []


def gang_of(spec: CommonSpec) -> Gang:
    """What a job needs: its workers, or a single process, which is then its driver."""
    scaling = spec.scaling
    return Gang(scaling.workers, scaling.cpus_per_worker, scaling.gpus_per_worker)
