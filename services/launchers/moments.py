"""What is concluded from several watches holds at one moment of all of them.

The copies of RayJobs, pods and workloads are kept by three watches, and each is late by a time of its own. What one
object says by itself was true when it said it. What follows from several, such as that a suspended RayJob's pods are
still ending, is concluded from a moment: objects read from the API server itself, between whose first and last reading
none of them changed.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from services.launchers.base import LauncherUnavailable, Observation
from services.launchers.diagnosis import Loss, diagnose

Object = Mapping[str, Any]

TRIES = 5  # an attempt's objects change a few times a second at most, and are read within milliseconds


@dataclass(frozen=True)
class Moment:
    """The objects of one attempt.

    Attributes:
        rayjob: None if there is none.
        workload: Kueue's, if there is one.
    """

    rayjob: Object | None
    pods: Sequence[Object] = ()
    workload: Object | None = None

    @property
    def versions(self) -> frozenset[tuple[str, str]]:
        """Equal for two moments between which nothing has changed."""
        objects = (*(item for item in (self.rayjob, self.workload) if item is not None), *self.pods)
        return frozenset(map(version, objects))


class Reader(Protocol):
    """Reads from the API server itself. Every method raises LauncherUnavailable if it does not answer."""

    def rayjob(self, name: str) -> Object | None:
        """The RayJob of that name; None if there is none."""
        ...

    def workload(self, rayjob: Object) -> Object | None:
        """Kueue's workload of a RayJob; None if there is none."""
        ...

    def pods(self, name: str) -> list[Object]:
        """All pods of an attempt, by its name."""
        ...


class Moments:
    """What is known of each attempt, from copies where these suffice and else from a moment.

    A moment is kept until a copy changes, so an attempt of which nothing is new costs no request. After the first, each
    change is concluded from another: a copy may be older than the moment, and no observation goes back in time.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: dict[str, tuple[object, Moment]] = {}
        self._lock = threading.Lock()

    def observe(
        self,
        name: str,
        copied: Moment,
        losses: Iterable[Loss],
        now: datetime,
        note: Callable[[Object], str],
    ) -> Observation:
        """What is known of the attempt.

        Args:
            copied: what the copies have of it, each of a time of its own.
            losses: what it has lost so far, oldest first.
            note: what the events say of a RayJob that should have pods and has none.

        Raises:
            LauncherUnavailable: it takes a moment, and none can be read.
        """
        losses = tuple(losses)
        told = copied.versions, losses
        with self._lock:
            kept = self._kept.get(name)
        if copied.rayjob is not None and kept is None:
            alone = diagnose(copied.rayjob, None, None, (), now)
            joint = _diagnose(copied, losses, now, note)
            if _claim(alone) == _claim(joint) and not alone.queued:  # for why it is queued a workload says
                return joint
        # An absence is a proof, so it is looked for each time.
        if kept is not None and kept[0] == told and None not in (copied.rayjob, kept[1].rayjob):
            return _diagnose(kept[1], losses, now, note)
        moment = self._read(name)
        with self._lock:
            self._kept[name] = told, moment
        return _diagnose(moment, losses, now, note)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Drop what is kept of other attempts."""
        with self._lock:
            for gone in self._kept.keys() - set(names):
                del self._kept[gone]

    def _read(self, name: str) -> Moment:
        def others() -> tuple[Object | None, Object | None]:
            rayjob = self._reader.rayjob(name)
            return rayjob, None if rayjob is None else self._reader.workload(rayjob)

        before = others()
        for _ in range(TRIES):
            pods = self._reader.pods(name)
            after = others()
            if all(map(_same, before, after)):
                return Moment(after[0], pods, after[1])
            before = after
        raise LauncherUnavailable(f"{name} changes faster than it can be read")


def version(item: Object) -> tuple[str, str]:
    """Which object it is, and which state of it."""
    metadata = item["metadata"]
    return str(metadata.get("uid")), str(metadata.get("resourceVersion"))


def _same(one: Object | None, other: Object | None) -> bool:
    if one is None or other is None:
        return one is other
    return version(one) == version(other)


def _diagnose(moment: Moment, losses: Sequence[Loss], now: datetime, note: Callable[[Object], str]) -> Observation:
    said = note(moment.rayjob) if moment.rayjob is not None and not moment.pods else ""
    return diagnose(moment.rayjob, moment.pods, moment.workload, losses, now, said)


def _claim(seen: Observation) -> tuple[object, ...]:
    return seen.phase, seen.reason, seen.queued, seen.message
