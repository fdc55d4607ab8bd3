"""Room for gangs: packing, reservations of what Ray does not show yet, and the order of arrival."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.fit import NAMED, Waiting, admit, describe
from services.launchers.base import Gang, Node


def node(cpus: float, gpus: float = 0, used: float = 0, used_gpus: float = 0) -> Node:
    return Node(cpus=cpus, gpus=gpus, free_cpus=cpus - used, free_gpus=gpus - used_gpus)


def gang(workers: int, cpus: float = 1, gpus: int = 0) -> Gang:
    return Gang(workers, cpus, gpus)


def verdicts(nodes: list[Node], live: list[Gang], *waiting: Gang) -> list[str]:
    answers = admit(nodes, live, [Waiting(f"job{index}", item) for index, item in enumerate(waiting)])
    return [answers[f"job{index}"].verdict for index in range(len(waiting))]


@pytest.mark.parametrize(
    ("nodes", "asked", "verdict"),
    [
        ([node(2)], gang(2), "fits"),
        ([node(2)], gang(3), "never"),
        ([node(2, used=1)], gang(2), "waits"),
        ([node(1), node(1)], gang(2), "fits"),
        ([node(3), node(3)], gang(3, cpus=2), "never"),  # six CPUs, but only one worker of two on each
        ([node(3), node(3)], gang(2, cpus=2), "fits"),
        ([node(8, 1), node(8, 1)], gang(2, gpus=1), "fits"),
        ([node(8, 2), node(8)], gang(3, gpus=1), "never"),
        ([node(8, 2, used_gpus=1)], gang(2, gpus=1), "waits"),
        ([node(1, 4)], gang(2, cpus=1, gpus=1), "never"),  # GPUs enough, CPUs not
        ([node(0.3)], gang(3, cpus=0.1), "fits"),  # 3 * 0.1 > 0.3 in binary
        ([], gang(1), "never"),
    ],
)
def test_one_gang(nodes: list[Node], asked: Gang, verdict: str) -> None:
    assert verdicts(nodes, [], asked) == [verdict]


@pytest.mark.parametrize(
    ("used", "live", "asked", "verdict"),
    [
        (0, [gang(2)], gang(3), "waits"),  # submitted, and Ray shows nothing of it yet
        (0, [gang(2)], gang(2), "fits"),
        (2, [gang(2)], gang(2), "fits"),  # Ray shows it: not counted twice
        (2, [gang(2), gang(1)], gang(1), "fits"),  # the older one is shown, the newer is not
        (2, [gang(2), gang(1)], gang(2), "waits"),
        (3, [gang(2)], gang(1), "fits"),  # one CPU is somebody else's
        (3, [gang(2)], gang(2), "waits"),
        (4, [], gang(1), "waits"),  # an ended attempt that Ray still shows
        (0, [gang(9)], gang(1), "waits"),  # more than there is, since a node was lost
    ],
)
def test_what_is_taken_is_the_greater_of_both_accounts(used: int, live: list[Gang], asked: Gang, verdict: str) -> None:
    assert verdicts([node(4, used=used)], live, asked) == [verdict]


def test_a_gang_of_gpus_that_ray_does_not_show_yet_is_reserved() -> None:
    assert verdicts([node(8, 2, used=3)], [gang(1, gpus=1)], gang(2, gpus=1), gang(1, gpus=1)) == ["waits", "waits"]
    assert verdicts([node(8, 2, used=3)], [gang(1, gpus=1)], gang(1, gpus=1)) == ["fits"]


def test_first_come_first_served() -> None:
    assert verdicts([node(4)], [], gang(2), gang(2), gang(1)) == ["fits", "fits", "waits"]
    # The big one that waits holds back the small one behind it, which would fit.
    assert verdicts([node(4, used=1)], [], gang(4), gang(1)) == ["waits", "waits"]
    # One that can never start does not.
    assert verdicts([node(4)], [], gang(5), gang(4)) == ["never", "fits"]


def test_the_answers_say_what_is_needed_and_what_is_there() -> None:
    nodes = [node(4, 1, used=3.5)]
    answers = admit(nodes, [], [Waiting("a", gang(2, 1, 0)), Waiting("b", gang(1)), Waiting("c", gang(2, 0.5, 1))])
    assert answers["a"].message == "Needs 2 workers with 1 CPU each; now there is room for 0, with 0.5 of 4 CPUs free."
    assert answers["b"].message == "Waits behind job a, which came first and needs 2 workers with 1 CPU each."
    assert answers["c"].message == (
        "Needs 2 workers with 0.5 CPUs and 1 GPU each; "
        "the cluster has 1 node with 4 CPUs and 1 GPU in all, and would hold 1 even if it were idle."
    )
    assert "no nodes" in admit([], [], [Waiting("a", gang(1))])["a"].message
    assert describe(gang(1, 2.5, 1)) == "1 worker with 2.5 CPUs and 1 GPU"


def test_far_behind_the_words_stay_the_same_when_the_queue_moves() -> None:
    def told(ahead: str) -> list[str]:
        jobs = [Waiting(ahead, gang(2)), *(Waiting(f"job{index}", gang(1)) for index in range(NAMED + 5))]
        return [answer.message for answer in admit([node(2, used=1)], [], jobs).values()]

    before, after = told("a"), told("b")
    changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert changed == list(range(1, NAMED + 1))
    assert before[-1] == f"Waits behind more than {NAMED} jobs, which came first."


def test_a_thousand_gangs_on_a_thousand_nodes_are_placed_like_a_few() -> None:
    def fitting(size: int) -> int:
        waiting = [Waiting(f"job{index}", gang(3)) for index in range(size)]
        answers = admit([node(4)] * size, [gang(2)] * size, waiting)
        return [answer.verdict for answer in answers.values()].count("fits")

    # Each live gang of two takes half a node, and three of what is left make room for two gangs of three.
    assert (fitting(3), fitting(999)) == (2, 666)


GANGS = st.builds(Gang, st.integers(1, 4), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 1))
NODES = st.lists(
    st.builds(
        lambda cpus, gpus, used, used_gpus: node(cpus, gpus, min(cpus, used), min(gpus, used_gpus)),
        st.integers(0, 8), st.integers(0, 4), st.integers(0, 8), st.integers(0, 4),
    ),
    max_size=4,
)  # fmt: skip


@given(NODES, st.lists(GANGS, max_size=4), st.lists(GANGS, max_size=4))
def test_nothing_is_promised_twice(nodes: list[Node], before: list[Gang], waiting: list[Gang]) -> None:
    live = admitted(idle(nodes), [], before)
    started = admitted(nodes, live, waiting)
    cpus, gpus = taken(started)
    assert cpus <= sum(item.free_cpus for item in nodes)
    assert gpus <= sum(item.free_gpus for item in nodes)
    live_cpus, live_gpus = taken(live)
    assert live_cpus + cpus <= sum(item.cpus for item in nodes)
    assert live_gpus + gpus <= sum(item.gpus for item in nodes)


@given(NODES, st.lists(GANGS, max_size=6))
def test_nothing_starts_behind_one_that_waits(nodes: list[Node], waiting: list[Gang]) -> None:
    answers = verdicts(nodes, [], *waiting)
    assert "waits" not in answers or "fits" not in answers[answers.index("waits") :]


def idle(nodes: list[Node]) -> list[Node]:
    return [Node(item.cpus, item.gpus, item.cpus, item.gpus) for item in nodes]


def admitted(nodes: list[Node], live: list[Gang], waiting: list[Gang]) -> list[Gang]:
    answers = verdicts(nodes, live, *waiting)
    return [item for item, verdict in zip(waiting, answers, strict=True) if verdict == "fits"]


def taken(gangs: list[Gang]) -> tuple[float, float]:
    """CPUs and GPUs of all of them."""
    return sum(g.workers * g.cpus_per_worker for g in gangs), sum(g.workers * g.gpus_per_worker for g in gangs)


@given(NODES, GANGS)
def test_on_idle_nodes_a_gang_fits_or_never_will(nodes: list[Node], asked: Gang) -> None:
    assert verdicts(idle(nodes), [], asked)[0] in ("fits", "never")
