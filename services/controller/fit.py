"""Whether a gang fits: pure arithmetic over nodes, what runs on them and who waits.

Two accounts of what is taken exist, and neither is enough. Our own, the gangs of live attempts, knows nothing of what
others run on the cluster, nor on which nodes Ray put our workers. Ray's free figures know both, but lag: a gang shows
only once its driver has asked for its workers, many seconds after we submitted it, and one that ended shows for some
seconds more. So what counts as taken is the greater of the two:

- Live gangs, oldest first, are taken to be what Ray shows as used, as far as that reaches. They are in Ray's figures,
  on the right nodes, and are not counted again.
- What is left over of them Ray does not show yet; it is placed into what Ray calls free.
- Use beyond our own is others', or an ended attempt's whose workers are still going: it stays used.

This never promises the same CPU twice to jobs of ours. It can promise one that somebody else uses while a gang of ours
is still on its way; then Ray holds that gang back whole (its placement groups are all or nothing) until there is room.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resforge.spec import CommonSpec
from services.launchers.base import Gang, Node, gang_of

__all__ = ["FitAnswer", "Waiting", "admit", "describe", "driver_needs", "gang_of"]

_EPSILON = 1e-6  # fractions of a CPU add up with rounding errors


@dataclass(frozen=True)
class FitAnswer:
    """`fits`: it may start now. `waits`: there is no room now. `never`: not even if all nodes were idle."""

    verdict: Literal["fits", "waits", "never"]
    message: str = ""


@dataclass(frozen=True)
class Waiting:
    """A job that waits to start an attempt."""

    job: str
    gang: Gang


@dataclass(frozen=True)
class _Room:
    cpus: float
    gpus: float

    def workers(self, gang: Gang) -> int:
        """How many of the gang's workers go in here."""
        by_cpus = int((self.cpus + _EPSILON) / gang.cpus_per_worker)
        if gang.gpus_per_worker == 0:
            return by_cpus
        return min(by_cpus, int((self.gpus + _EPSILON) / gang.gpus_per_worker))

    def less(self, gang: Gang, workers: int) -> "_Room":
        return _Room(self.cpus - workers * gang.cpus_per_worker, self.gpus - workers * gang.gpus_per_worker)


def driver_needs(spec: CommonSpec) -> tuple[float, int]:
    """CPUs and GPUs of the driver itself: those of the one process that it looks after; none where it has a gang."""
    alone = spec.scaling.workers == 1
    return (spec.scaling.cpus_per_worker, spec.scaling.gpus_per_worker) if alone else (0.0, 0)


def admit(nodes: Sequence[Node], live: Sequence[Gang], waiting: Sequence[Waiting]) -> dict[str, FitAnswer]:
    """Answer for every job that waits, in strict order of arrival.

    A job for which there is no room now holds back all behind it, so a big one is never starved by small ones. One
    that could not start on idle nodes either is passed over.

    Args:
        nodes: the machines, with the launcher's figures.
        live: gangs of attempts that were created and have not ended, oldest first.
        waiting: who waits, first come first.
    """
    idle = [_Room(node.cpus, node.gpus) for node in nodes]
    rooms = _rooms(nodes, live)
    answers: dict[str, FitAnswer] = {}
    ahead: Waiting | None = None
    for item in waiting:
        possible = _count(idle, item.gang)
        if possible < item.gang.workers:
            answers[item.job] = FitAnswer("never", _never(item.gang, possible, nodes))
        elif ahead is not None:
            answers[item.job] = FitAnswer(
                "waits", f"Waits behind job {ahead.job}, which came first and needs {describe(ahead.gang)}."
            )
        elif (now := _count(rooms, item.gang)) < item.gang.workers:
            answers[item.job] = FitAnswer("waits", _waits(item.gang, now, rooms, nodes))
            ahead = item
        else:
            answers[item.job] = FitAnswer("fits")
            rooms = _place(rooms, item.gang)
    return answers


def describe(gang: Gang) -> str:
    """Such as `2 workers with 4 CPUs and 1 GPU each`."""
    each = _amount(gang.cpus_per_worker, "CPU")
    if gang.gpus_per_worker:
        each += f" and {_amount(gang.gpus_per_worker, 'GPU')}"
    return f"{_amount(gang.workers, 'worker')} with {each}{' each' if gang.workers > 1 else ''}"


def _rooms(nodes: Sequence[Node], live: Sequence[Gang]) -> list[_Room]:
    """What is free on each node, less the live gangs that the figures do not show yet."""
    cpus = sum(node.cpus - node.free_cpus for node in nodes)
    gpus = sum(node.gpus - node.free_gpus for node in nodes)
    rooms = [_Room(node.free_cpus, node.free_gpus) for node in nodes]
    for gang in live:
        of_cpus, of_gpus = gang.workers * gang.cpus_per_worker, gang.workers * gang.gpus_per_worker
        if of_cpus <= cpus + _EPSILON and of_gpus <= gpus + _EPSILON:
            cpus, gpus = cpus - of_cpus, gpus - of_gpus
        else:
            rooms = _reserve(rooms, gang)
    return rooms


def _place(rooms: Sequence[_Room], gang: Gang) -> list[_Room]:
    """The rooms once as much of the gang as fits is in them, most of it together, as Ray's PACK does."""
    left, after = gang.workers, list(rooms)
    for index in sorted(range(len(rooms)), key=lambda i: -rooms[i].workers(gang)):
        here = max(0, min(left, rooms[index].workers(gang)))
        after[index] = rooms[index].less(gang, here)
        left -= here
    return after


def _reserve(rooms: Sequence[_Room], gang: Gang) -> list[_Room]:
    """Place a live gang. Workers for which no node has room in one piece take what is left in pieces."""
    left = gang.workers - min(gang.workers, _count(rooms, gang))
    cpus, gpus = left * gang.cpus_per_worker, float(left * gang.gpus_per_worker)
    after = []
    for room in _place(rooms, gang):
        of_cpus, of_gpus = min(cpus, max(0.0, room.cpus)), min(gpus, max(0.0, room.gpus))
        cpus, gpus = cpus - of_cpus, gpus - of_gpus
        after.append(_Room(room.cpus - of_cpus, room.gpus - of_gpus))
    return after


def _count(rooms: Sequence[_Room], gang: Gang) -> int:
    return sum(max(0, room.workers(gang)) for room in rooms)


def _waits(gang: Gang, possible: int, rooms: Sequence[_Room], nodes: Sequence[Node]) -> str:
    free = f"{_number(sum(room.cpus for room in rooms))} of {_amount(sum(node.cpus for node in nodes), 'CPU')}"
    if gang.gpus_per_worker:
        gpus = _amount(sum(node.gpus for node in nodes), "GPU")
        free += f" and {_number(sum(room.gpus for room in rooms))} of {gpus}"
    return f"Needs {describe(gang)}; now there is room for {possible}, with {free} free."


def _never(gang: Gang, possible: int, nodes: Sequence[Node]) -> str:
    if not nodes:
        return f"Needs {describe(gang)}; the cluster has no nodes."
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    there = f"{_amount(len(nodes), 'node')} with {_amount(cpus, 'CPU')} and {_amount(gpus, 'GPU')} in all"
    return f"Needs {describe(gang)}; the cluster has {there}, and would hold {possible} even if it were idle."


def _number(value: float) -> str:
    return f"{max(0.0, value):.2f}".rstrip("0").rstrip(".")


def _amount(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}{'' if value == 1 else 's'}"
