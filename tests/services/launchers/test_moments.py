"""What three watches come to, whose news may come in any order and as late as they like."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resforge.jobs import Reason
from services.launchers.base import LauncherUnavailable, Observation
from services.launchers.diagnosis import Loss, diagnose, loss_of, vanished
from services.launchers.moments import Moment, Moments
from services.launchers.rayjob import rayjob
from tests.kube import cluster, server
from tests.kube.cluster import Cluster
from tests.kube.server import KubeApi, Object, kube_api
from tests.services.launchers.kube_stage import GANG, PLAIN, QUEUED, house, request

Change = tuple[str, str, Object]
WATCHES = ("rayjobs", "pods", "workloads")
NUMBERS = count()


@pytest.fixture(scope="module")
def api() -> Iterator[KubeApi]:
    with kube_api() as api:
        yield api


@dataclass(frozen=True)
class State:
    """What there is at one moment, and what was lost until then."""

    objects: dict[str, dict[str, Object]]
    losses: tuple[Loss, ...] = ()

    def after(self, change: Change, now: datetime) -> "State":
        kind, plural, item = change
        there = dict(self.objects[plural])
        uid = item["metadata"]["uid"]
        losses = self.losses
        if kind == "DELETED":
            del there[uid]
            if plural == "pods" and (loss := vanished(item, now)) is not None:
                losses = (*losses, loss)
        else:
            there[uid] = item
        return State({**self.objects, plural: there}, losses)

    def only(self, plural: str) -> Object | None:
        return next(iter(self.objects[plural].values()), None)

    @property
    def moment(self) -> Moment:
        return Moment(self.only("rayjobs"), list(self.objects["pods"].values()), self.only("workloads"))

    def diagnoses(self, now: datetime) -> list[Observation]:
        """What holds of the objects at this moment, by how much was told of what was lost before; all of it last."""
        moment, told = self.moment, range(len(self.losses) + 1)
        return [diagnose(moment.rayjob, moment.pods, moment.workload, self.losses[:known], now) for known in told]

    def lost(self, now: datetime) -> tuple[Loss, ...]:
        """What was lost until then, and what has notice of its end."""
        return (*self.losses, *(loss for pod in self.moment.pods if (loss := loss_of(pod, now))))


NOTHING = State({plural: {} for plural in WATCHES})


@dataclass(frozen=True)
class History:
    """What happened to an attempt: every state that there was, and what is true of it."""

    states: tuple[State, ...] = field(repr=False)
    true: tuple[list[Observation], ...] = field(repr=False)
    now: datetime

    @classmethod
    def of(cls, changes: Sequence[Change], now: datetime) -> "History":
        states = [NOTHING]
        for change in changes:
            states.append(states[-1].after(change, now))
        return cls(tuple(states), tuple(state.diagnoses(now) for state in states), now)


@dataclass
class World:
    """A history, how far it has come, and how far each watch has told of it."""

    history: History
    hurry: Callable[[], int]  # how many changes happen before the API server's next answer
    reached: int = 0
    told: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WATCHES, 0))

    @property
    def states(self) -> tuple[State, ...]:
        return self.history.states

    @property
    def end(self) -> int:
        return len(self.states) - 1

    def go_on(self, changes: int) -> None:
        self.reached = min(self.reached + changes, self.end)

    def tell(self, plural: str, changes: int) -> None:
        self.told[plural] = min(self.told[plural] + changes, self.reached)

    def copied(self) -> Moment:
        found = {plural: self.states[self.told[plural]].moment for plural in WATCHES}
        return Moment(found["rayjobs"].rayjob, found["pods"].pods, found["workloads"].workload)

    def losses(self) -> tuple[Loss, ...]:
        return self.states[self.told["pods"]].losses

    # As the API server answers.

    def _answer(self) -> Moment:
        self.go_on(self.hurry())
        return self.states[self.reached].moment

    def rayjob(self, name: str) -> Object | None:
        return self._answer().rayjob

    def workload(self, rayjob: Object) -> Object | None:
        return self._answer().workload

    def pods(self, name: str) -> list[Object]:
        return list(self._answer().pods)


def history(api: KubeApi, actions: Sequence[str], *, queued: bool, grace_s: float) -> list[Change]:
    """What happens to an attempt in a cluster where these things happen, one after the other."""
    name = f"job-{next(NUMBERS):012}-1"
    there = Cluster(api, grace_s=grace_s)
    if queued:
        there.stays[name] = "kueue"
    pool = QUEUED if queued else PLAIN
    api.create("rayjobs", rayjob(request(name, gang=replace(GANG, workers=2)), pool, house()))
    for action in actions:
        pods = {pod: api.peek("pods", pod) for pod in there.pods(name)}
        ending = [pod for pod, item in pods.items() if item and "deletionTimestamp" in item["metadata"]]
        head, workers = (
            [pod for pod in there.pods(name, role) if pod not in ending] for role in ("head", "worker")
        )  # fmt: skip
        status = (api.peek("rayjobs", name) or {}).get("status") or {}
        runs = status.get("jobDeploymentStatus") == "Running"
        match action:
            case "step":
                there.settle(2)
            case "run":
                there.settle()
            case "admit" if queued and api.exists("rayjobs", name):
                there.admit(name)
            case "preempt" if queued and api.exists("rayjobs", name):
                there.preempt(name)
            case "lose head" if head:
                there.disrupt(head[0], "DeletionByTaintManager", "deleting due to NoExecute taint")
            case "lose worker" if workers:
                there.disrupt(workers[0], "EvictionByEvictionAPI", "Eviction API: evicting")
            case "kill worker" if workers:
                there.kill_for_memory(workers[0])
            case "remove pods":
                for pod in ending:
                    api.remove("pods", pod)
            case "no room":
                there.stays[name] = "unscheduled"
            case "room":
                there.stays.pop(name, None)
            case "succeed" if runs:
                there.finish(name)
            case "fail" if runs:
                there.finish(name, "FAILED", "a worker died")
            case "give up" if runs:
                there.fail(name, "DeadlineExceeded")
            case "expire" if status.get("jobDeploymentStatus") in ("Complete", "Failed"):
                there.expire(name)
            case "delete" if api.exists("rayjobs", name):
                api.delete("rayjobs", name)
    found = api.history_of(name)
    for plural in (*WATCHES, "events"):
        for left in [item for item in api.names(plural) if name in item]:
            api.remove(plural, left)
    return found


ACTIONS = [
    "step", "step", "run", "admit", "admit", "preempt", "lose head", "lose worker", "kill worker", "remove pods",
    "no room", "room", "succeed", "fail", "give up", "expire", "delete",
]  # fmt: skip


def holds(seen: Observation, history: History, at: int) -> bool:
    """Whether an observation says nothing that was not so then. Where it gives no reason it claims none."""
    lost = history.states[at].lost(history.now)
    for true in history.true[at]:
        if (seen.phase, seen.queued) != (true.phase, true.queued):
            continue
        if seen.reason is None or (seen.reason, seen.message) == (true.reason, true.message):
            return True
        # Of several losses one is named. That a head is gone is so whatever has taken it.
        if seen.phase == "failed" and seen.reason is Reason.HEAD_LOST and any(loss.head for loss in lost):
            return True
        if seen.phase in ("running", "failed") and any(
            loss.reason is seen.reason and seen.message.startswith(loss.message) for loss in lost
        ):
            return True
    return False


def scripts() -> Iterator[tuple[list[str], bool, float]]:
    """What is let happen: in a pool with a queue or without, to pods that have grace or none."""
    chosen = random.Random(13)
    yield ["no room", "run", "room", "run", "lose head"], False, 0.0
    for number in range(48):
        queued, grace_s = bool(number % 2), 60.0 * (number // 2 % 2)
        start = ["run", *(["admit", "run"] if queued and number % 3 else [])]
        yield [*start, *chosen.choices(ACTIONS, k=chosen.randint(3, 20))], queued, grace_s


@pytest.fixture(scope="module")
def histories(api: KubeApi) -> list[History]:
    """Whatever happens takes seconds, as it does in clusters: their times are whole seconds."""
    began, seconds = datetime.now(UTC), count()

    def now(later_s: float = 0.0) -> str:
        return (began + timedelta(seconds=next(seconds) + later_s)).strftime("%Y-%m-%dT%H:%M:%SZ")

    with pytest.MonkeyPatch.context() as patch:
        for module in (server, cluster):
            patch.setattr(module, "now", now)
        return [
            History.of(history(api, actions, queued=queued, grace_s=grace_s), began)
            for actions, queued, grace_s in scripts()
        ]


def test_the_histories_hold_what_matters(histories: list[History]) -> None:
    seen = {(true[-1].phase, true[-1].reason, true[-1].queued) for history in histories for true in history.true}
    assert {phase for phase, _, _ in seen} == {"absent", "pending", "running", "succeeded", "failed"}
    assert ("running", Reason.PREEMPTED, False) in seen  # pods that end while their RayJob is suspended
    assert ("pending", Reason.NO_CAPACITY, True) in seen
    assert {Reason.NODE_LOST, Reason.OUT_OF_MEMORY, Reason.UNSCHEDULABLE} <= {reason for _, reason, _ in seen}


STEP = st.tuples(st.integers(1, 12), *[st.sampled_from([0, 1, 2, 4, 1000])] * len(WATCHES))


@settings(max_examples=1500, deadline=None)
@given(
    number=st.integers(0, len(list(scripts())) - 1),
    steps=st.lists(STEP, max_size=60),
    order=st.permutations(WATCHES),
    hurries=st.lists(st.sampled_from([0, 0, 0, 0, 1, 12]), min_size=5, max_size=30),
)
def test_no_observation_says_what_was_never_true(
    histories: list[History], number: int, steps: list[tuple[int, ...]], order: list[str], hurries: list[int]
) -> None:
    """Between two looks some changes happen, and each watch tells of some."""
    history, hurry = histories[number], cycle(hurries)
    world = World(history, hurry=lambda: next(hurry))
    moments = Moments(world)
    last = 0

    def look() -> Observation | None:
        nonlocal last
        try:
            seen = moments.observe("it", world.copied(), world.losses(), history.now, lambda item: "")
        except LauncherUnavailable:
            return None  # nothing is concluded
        at = next((k for k in range(last, world.reached + 1) if holds(seen, history, k)), None)
        so = {str(history.true[k][-1]): k for k in range(last, world.reached + 1)}
        assert at is not None, f"{seen} was never so; since the last look it was {so}"
        last = at
        return seen

    look()
    for changes, *told in steps:
        world.go_on(changes)
        for plural, news in zip(WATCHES, told, strict=True):
            world.tell(plural, news)
        look()
    world.go_on(world.end)
    for plural in order:
        world.tell(plural, world.end)
        look()
    assert look() == history.true[-1][-1], "where everything has been told, everything is concluded"


def objects(**changes: Any) -> tuple[Object, Object, Object]:
    """A RayJob that Kueue holds, its workload, and a pod."""
    job = {
        "metadata": {"name": "j-1", "uid": "a", "resourceVersion": "1"},
        "spec": {"suspend": True},
        "status": {"jobDeploymentStatus": "Suspended"},
        **changes,
    }
    workload = {"metadata": {"name": "w", "uid": "b", "resourceVersion": "1"}, "status": {}}
    pod = {"metadata": {"name": "p", "uid": "c", "resourceVersion": "1"}, "status": {"phase": "Running"}}
    return job, workload, pod


class Answers:
    """An API server that counts what it is asked."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.asked = 0

    def rayjob(self, name: str) -> Object | None:
        self.asked += 1
        return self.moment.rayjob

    def workload(self, rayjob: Object) -> Object | None:
        self.asked += 1
        return self.moment.workload

    def pods(self, name: str) -> list[Object]:
        self.asked += 1
        return list(self.moment.pods)


def test_a_job_that_was_let_go_is_not_said_to_be_preempted_since_its_pods_are_told_first() -> None:
    held, workload, pod = objects()
    runs = {**held, "spec": {"suspend": False}, "status": {"jobDeploymentStatus": "Initializing"}}
    runs["metadata"] = {**held["metadata"], "resourceVersion": "2"}
    answers = Answers(Moment(runs, [pod], workload))
    seen = Moments(answers).observe("j-1", Moment(held, [pod], workload), (), datetime.now(UTC), lambda item: "")
    assert (seen.phase, seen.reason) == ("pending", None)


def test_what_does_not_change_is_asked_for_once() -> None:
    held, workload, _ = objects()
    answers = Answers(Moment(held, (), workload))
    moments = Moments(answers)
    copied = Moment(held, (), workload)
    for _ in range(10):
        assert moments.observe("j-1", copied, (), datetime.now(UTC), lambda item: "").queued
    assert answers.asked == 5
    moments.forget_all_but([])
    moments.observe("j-1", copied, (), datetime.now(UTC), lambda item: "")
    assert answers.asked == 10


def test_what_one_object_says_alone_costs_no_request() -> None:
    runs, _, pod = objects(spec={}, status={"jobDeploymentStatus": "Running"})
    answers = Answers(Moment(runs, [pod]))
    assert (
        Moments(answers).observe("j-1", Moment(runs, [pod]), (), datetime.now(UTC), lambda item: "").phase == "running"
    )
    assert answers.asked == 0


def test_an_absence_is_asked_for_each_time_and_pods_that_no_watch_has_told_of_count() -> None:
    _, _, pod = objects()
    answers = Answers(Moment(None))
    moments = Moments(answers)
    for asked in (3, 6):
        assert moments.observe("j-1", Moment(None), (), datetime.now(UTC), lambda item: "").phase == "absent"
        assert answers.asked == asked
    answers.moment = Moment(None, [pod])
    assert moments.observe("j-1", Moment(None), (), datetime.now(UTC), lambda item: "").phase == "running"
