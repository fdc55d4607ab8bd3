"""A launcher without a cluster, for tests: it remembers what it was asked, and fails as it is told to."""

import threading
from collections import Counter
from collections.abc import Callable

from services.launchers.base import (
    Launcher,
    LauncherUnavailable,
    LaunchRefused,
    LaunchRequest,
    Node,
    Observation,
    Phase,
)


class MemoryLauncher(Launcher):
    """Names and their phases in memory. Tests play the cluster by `become` and the faults below.

    Attributes:
        machines: what `nodes` answers.
        unavailable: if set, every call fails with this message, and does nothing.
        refused: if set, submissions are refused for good with this message.
        lost_answers: so many submissions still start the attempt, but their answer is lost.
        slow_start: a submitted attempt stays pending until the test says otherwise.
        ignores_stop: stopping does nothing, as with a node that hangs.
        starts: how often each name was really started. More than once is what must never happen.
        stops: how often a stop was asked of each name.
        on_start: called with each request that is really started.
    """

    def __init__(self, machines: list[Node] | None = None) -> None:
        self.machines = machines if machines is not None else [Node(cpus=2, gpus=0, free_cpus=2, free_gpus=0)]
        self.unavailable: str | None = None
        self.refused: str | None = None
        self.lost_answers = 0
        self.slow_start = False
        self.ignores_stop = False
        self.starts: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.on_start: Callable[[LaunchRequest], None] | None = None
        self._seen: dict[str, Observation] = {}
        self._lock = threading.Lock()

    def nodes(self, pool: str = "") -> list[Node]:
        with self._lock:
            self._check()
            return list(self.machines)

    def submit(self, request: LaunchRequest) -> None:
        with self._lock:
            self._check()
            if request.name in self._seen:
                return
            if self.refused is not None:
                raise LaunchRefused(self.refused)
            self._seen[request.name] = Observation("pending" if self.slow_start else "running")
            self.starts[request.name] += 1
            if self.on_start is not None:
                self.on_start(request)
            if self.lost_answers > 0:
                self.lost_answers -= 1
                raise LauncherUnavailable("the answer was lost")

    def observe(self, name: str) -> Observation:
        with self._lock:
            self._check()
            return self._seen.get(name, Observation("absent"))

    def stop(self, name: str) -> None:
        with self._lock:
            self._check()
            self.stops[name] += 1
            seen = self._seen.get(name)
            if seen is not None and seen.phase in ("pending", "running") and not self.ignores_stop:
                self._seen[name] = Observation("stopped")

    def become(self, name: str, phase: Phase, message: str = "") -> None:
        """Let the cluster bring an attempt to a phase; `absent` forgets it, as a lost head does."""
        with self._lock:
            if phase == "absent":
                self._seen.pop(name, None)
            else:
                self._seen[name] = Observation(phase, message)

    def forget(self) -> None:
        """Lose everything, as a new head does."""
        with self._lock:
            self._seen.clear()

    def _check(self) -> None:
        if self.unavailable is not None:
            raise LauncherUnavailable(self.unavailable)
