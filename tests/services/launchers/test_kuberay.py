"""The KubeRay launcher over the wire: the whole life of an attempt, and everything that may go wrong on the way."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from resforge.jobs import Reason
from services.launchers import cluster_view, kube
from services.launchers.base import LauncherUnavailable, LaunchRefused, Node, Observation, PoolUnknown
from services.launchers.kuberay import KubeRay
from tests.kube.schemas import needs_crds
from tests.kube.server import OPERATOR, Refused
from tests.services.launchers.kube_stage import NAME, PLAIN, POOLS, KubeStage, house, kube_stage, request, wait_for

OTHER = "job-zzzzzzzz2222-3"


@pytest.fixture
def stage() -> Iterator[KubeStage]:
    with kube_stage() as made:
        yield made
        assert made.api.refusals == [], "the Role does not allow what the launcher asked for"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_view, "PATIENCE_S", 0.3)
    monkeypatch.setattr(cluster_view, "BACKOFF_S", (0.05, 0.2))


def test_the_life_of_an_attempt(stage: KubeStage) -> None:
    launcher, cluster = stage.launcher, stage.cluster
    assert launcher.observe(NAME) == Observation("absent")
    launcher.submit(request())
    seen = stage.phase("running")
    assert seen.reason is None
    assert [len(cluster.pods(NAME, role)) for role in ("head", "worker")] == [1, 2]
    cluster.finish(NAME)
    assert stage.phase("succeeded", "failed").phase == "succeeded"
    assert launcher.leftovers({NAME}) == []
    wait_for(lambda: launcher.leftovers(set()), lambda names: names == [NAME])
    launcher.stop(NAME)
    assert stage.phase("absent") == Observation("absent")
    assert launcher.leftovers(set()) == []
    assert stage.api.names("pods") == []


def test_an_attempt_is_submitted_once(stage: KubeStage) -> None:
    for _ in range(3):
        stage.launcher.submit(request())
    stage.until(lambda seen: seen.phase == "running" and stage.cluster.drivers)
    stage.launcher.submit(request())
    stage.cluster.settle()
    assert stage.api.names("rayjobs") == [NAME]
    assert stage.cluster.drivers == [NAME]


def test_pending_until_all_pods_run(stage: KubeStage) -> None:
    stage.cluster.stays[NAME] = "unscheduled"
    stage.launcher.submit(request())
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.phase, seen.reason, seen.queued) == ("pending", Reason.UNSCHEDULABLE, False)
    assert "3 of 3 pods can't be scheduled" in seen.message
    assert "Insufficient nvidia.com/gpu" in seen.message
    del stage.cluster.stays[NAME]
    stage.until(lambda seen: seen.reason is None, timeout_s=5)
    stage.phase("running")


def test_an_image_that_cannot_be_pulled(stage: KubeStage) -> None:
    stage.cluster.stays[NAME], stage.cluster.message = "image", "manifest unknown"
    stage.launcher.submit(request())
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.reason, seen.queued) == (Reason.IMAGE_PULL_FAILED, False)
    assert seen.message.endswith("registry.example/trainer:1: ImagePullBackOff: manifest unknown")


def test_pods_that_are_not_made_are_told_by_their_events(stage: KubeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.launchers.kuberay.PODLESS_S", -1.0)
    stage.cluster.stays[NAME] = "pods"
    stage.cluster.warn("RayCluster", f"{NAME}-abcde", "FailedToCreateHeadPod", "exceeded quota: gpus")
    stage.cluster.warn("RayCluster", "another", "FailedToCreateHeadPod", "not ours")
    stage.launcher.submit(request())
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.reason, seen.message) == (Reason.UNSCHEDULABLE, "FailedToCreateHeadPod: exceeded quota: gpus")


def test_kueue_holds_a_gang_back_and_lets_it_go(stage: KubeStage) -> None:
    stage.cluster.stays[NAME], stage.cluster.message = (
        "kueue",
        "insufficient unused quota for nvidia.com/gpu, 4 more needed",
    )
    stage.launcher.submit(request(pool="queued"))
    seen = stage.until(lambda seen: "unused quota" in seen.message)
    assert (seen.phase, seen.reason, seen.queued) == ("pending", Reason.NO_CAPACITY, True)
    assert stage.cluster.pods(NAME) == []
    stage.cluster.admit(NAME)
    assert stage.phase("running").reason is None


def test_kueue_preempts(stage: KubeStage) -> None:
    stage.launcher.submit(request(pool="queued"))
    stage.until(lambda seen: "waits" in seen.message)
    stage.cluster.admit(NAME)
    stage.phase("running")
    stage.cluster.preempt(NAME)
    seen = stage.until(lambda seen: seen.queued)
    assert seen.phase == "pending"
    assert "higher priority" in seen.message
    stage.launcher.stop(NAME)
    stage.phase("absent")
    assert stage.api.names("workloads") == []


def test_kueues_preemption_leaves_the_pods_their_grace(stage: KubeStage) -> None:
    stage.launcher.submit(request(pool="queued"))
    stage.until(lambda seen: "waits" in seen.message)
    stage.cluster.admit(NAME)
    stage.phase("running")
    stage.cluster.grace_s = 60
    stage.cluster.preempt(NAME)
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.phase, seen.reason, seen.queued) == ("running", Reason.PREEMPTED, False)
    stage.cluster.settle()
    assert stage.launcher.observe(NAME).phase == "running"
    for pod in stage.cluster.pods(NAME):
        stage.api.remove("pods", pod)
    assert stage.until(lambda seen: seen.queued).phase == "pending"


def test_what_needs_no_queue_goes_on_where_kueue_is_not_installed(stage: KubeStage, impatient: None) -> None:
    stage.api.fail(verb="list", resource="workloads", code=404, times=1000)
    stage.start()
    stage.launcher.submit(request(OTHER, pool="queued"))
    with pytest.raises(LauncherUnavailable, match="404"):
        wait_for(lambda: stage.launcher.observe(OTHER), lambda seen: False, timeout_s=10)
    assert stage.launcher.observe(NAME).phase == "running"
    assert stage.launcher.nodes("plain") is not None


def lose_node(stage: KubeStage, pod: str) -> None:
    stage.cluster.disrupt(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")


def lose_to_scheduler(stage: KubeStage, pod: str) -> None:
    stage.cluster.disrupt(
        pod, "PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod"
    )


def lose_memory(stage: KubeStage, pod: str) -> None:
    stage.cluster.kill_for_memory(pod)


def lose_without_a_word(stage: KubeStage, pod: str) -> None:
    stage.api.remove("pods", pod)


@pytest.mark.parametrize(
    ("lose", "reason", "words"),
    [
        (lose_node, Reason.NODE_LOST, "on node node-of-"),
        (lose_to_scheduler, Reason.PREEMPTED, "higher priority"),
        (lose_memory, Reason.OUT_OF_MEMORY, "more memory than its limit"),
        (lose_without_a_word, Reason.HEAD_LOST, "The head pod"),
    ],
)
def test_a_lost_head_ends_the_attempt_and_its_cause_is_told(
    stage: KubeStage,
    lose: Callable[[KubeStage, str], None],
    reason: Reason,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage.start()
    lose(stage, stage.cluster.pods(NAME, "head")[0])
    seen = stage.phase("failed")
    assert seen.reason is reason
    assert words in seen.message


def test_a_head_that_is_given_notice_is_not_lost_before_it_is_gone(
    stage: KubeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start()
    stage.cluster.grace_s = 60  # of which preStop makes use
    head = f"{NAME}-head"
    stage.cluster.disrupt(head, "EvictionByEvictionAPI", "Eviction API: evicting")
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.phase, seen.reason) == ("running", Reason.PREEMPTED)
    later = time.monotonic() + 1.0  # longer than a loss takes to settle
    stage.until(lambda seen: time.monotonic() > later and seen.phase == "running")
    stage.api.remove("pods", head)
    seen = stage.phase("failed")
    assert (seen.reason, "evicting" in seen.message) == (Reason.PREEMPTED, True)


def test_a_silent_attempts_end_is_told_by_what_it_lost(stage: KubeStage) -> None:
    stage.start()
    lose_node(stage, stage.cluster.pods(NAME, "worker")[0])
    stage.until(lambda seen: seen.reason)
    stage.launcher.stop(NAME)
    seen = stage.phase("absent")
    assert (seen.reason, "NoExecute" in seen.message) == (Reason.NODE_LOST, True)


@pytest.mark.parametrize(
    ("lose", "reason"),
    [(lose_node, Reason.NODE_LOST), (lose_to_scheduler, Reason.PREEMPTED), (lose_memory, Reason.OUT_OF_MEMORY)],
)
def test_a_lost_worker_is_told_and_is_why_the_job_fails(
    stage: KubeStage, lose: Callable[[KubeStage, str], None], reason: Reason
) -> None:
    stage.start()
    lose(stage, stage.cluster.pods(NAME, "worker")[0])
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.phase, seen.reason) == ("running", reason)  # Ray Train replaces it
    stage.cluster.finish(NAME, "FAILED", "a worker died")
    seen = stage.phase("failed")
    assert seen.reason is reason
    assert seen.message.endswith("AppFailed: a worker died")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("AppFailed", None),
        ("DeadlineExceeded", Reason.DEADLINE_EXCEEDED),
        ("PreRunningDeadlineExceeded", Reason.DEADLINE_EXCEEDED),
        ("JobStatusCheckTimeoutExceeded", Reason.HEAD_LOST),
    ],
)
def test_what_kuberay_gives_up(stage: KubeStage, given: str, reason: Reason | None) -> None:
    stage.start()
    stage.cluster.fail(NAME, given, "so it said")
    seen = stage.phase("failed")
    assert (seen.reason, seen.message) == (reason, f"{given}: so it said")


def test_stopping_is_asked_once_and_lasts_until_the_pods_are_gone(stage: KubeStage) -> None:
    stage.start()
    stage.cluster.grace_s = 60
    stage.launcher.stop(NAME)
    for _ in range(3):
        stage.cluster.step()
        stage.launcher.stop(NAME)
    seen = stage.until(lambda seen: "pods are ending" in seen.message)
    assert seen.phase == "running"
    for pod in stage.cluster.pods(NAME):
        stage.api.remove("pods", pod)
    assert stage.phase("absent").phase == "absent"
    stage.launcher.stop(NAME)  # harmless
    stage.launcher.stop("job-neverexisted-1")


def test_a_removal_that_fails_is_tried_until_it_is_done(stage: KubeStage) -> None:
    stage.start()
    stage.cluster.finish(NAME)
    stage.phase("succeeded")
    stage.api.fail(verb="delete", code=500, times=3)
    failures = 0
    deadline = time.monotonic() + 20
    while stage.launcher.leftovers(set()):
        assert time.monotonic() < deadline
        try:
            stage.launcher.stop(NAME)
        except LauncherUnavailable:
            failures += 1
        stage.cluster.step()
    assert failures == 3
    assert stage.api.names("rayjobs") == []


def test_a_finalizer_that_stays_is_waited_for(stage: KubeStage) -> None:
    stage.start()
    stage.cluster.operator_works = False
    stage.launcher.stop(NAME)
    stage.until(lambda seen: seen.message == "It is being removed.")
    assert stage.launcher.leftovers(set()) == []
    assert stage.launcher.observe(NAME).phase == "running"
    stage.cluster.operator_works = True
    stage.phase("absent")


def test_a_worker_that_is_lost_is_replaced_and_the_attempt_goes_on(stage: KubeStage) -> None:
    stage.start()
    lost, other = stage.cluster.pods(NAME, "worker")
    stage.cluster.stays[NAME] = "unscheduled"  # nowhere to put its successor
    lose_node(stage, lost)
    seen = stage.until(lambda seen: seen.reason)
    assert (seen.phase, seen.reason) == ("running", Reason.NODE_LOST)
    stage.cluster.settle()
    assert stage.phase("running", "pending").phase == "running"  # Ray Train waits for it, and the driver lives
    del stage.cluster.stays[NAME]
    stage.cluster.settle()
    assert stage.cluster.pods(NAME, "worker") == sorted([other, f"{lost}-r1"])
    assert stage.cluster.drivers == [NAME]
    stage.cluster.finish(NAME)
    assert stage.phase("succeeded").phase == "succeeded"


def test_a_head_that_kuberay_has_replaced_ends_the_attempt(stage: KubeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.start()
    lose_node(stage, f"{NAME}-head")
    stage.cluster.settle()
    assert stage.cluster.pods(NAME, "head") == [f"{NAME}-head-r1"]
    assert stage.cluster.drivers == [NAME, NAME]  # KubeRay submits it anew, where nobody knows of the first
    seen = stage.phase("failed")
    assert seen.reason is Reason.NODE_LOST
    wait_for(lambda: stage.launcher.leftovers(set()), lambda names: names == [NAME])
    stage.launcher.stop(NAME)
    stage.phase("absent")
    assert stage.api.names("pods") == []


def test_the_pods_of_what_has_ended_stay_until_their_time_is_over(stage: KubeStage) -> None:
    stage.start()
    stage.cluster.finish(NAME, "FAILED", "it broke")
    seen = stage.phase("failed")
    stage.cluster.settle()
    assert len(stage.cluster.pods(NAME)) == 3
    lose_node(stage, stage.cluster.pods(NAME, "worker")[0])  # an idle pod's end is no cause of what was before
    stage.cluster.expire(NAME)
    wait_for(lambda: stage.launcher._check()[1].find(NAME), lambda pods: not pods)
    assert stage.launcher.observe(NAME).phase == seen.phase == "failed"
    assert stage.launcher.leftovers(set()) == [NAME]


def test_a_watch_that_leaves_something_out_is_put_right_by_the_next_list(
    stage: KubeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_view, "RESYNC_S", 0.5)
    monkeypatch.setattr(kube, "WATCH_S", 1)
    stage.start()
    lists = stage.api.calls["list", "rayjobs"]
    stage.api.silent.add("rayjobs")
    stage.cluster.finish(NAME)
    assert stage.launcher.observe(NAME).phase == "running"
    assert stage.phase("succeeded").phase == "succeeded"
    assert stage.api.calls["list", "rayjobs"] > lists


@needs_crds
def test_the_cluster_itself_keeps_to_the_schemas(stage: KubeStage) -> None:
    stage.launcher.submit(request(pool="queued"))
    stage.until(lambda seen: "waits" in seen.message)
    wrong: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("rayjobs", NAME, lambda job: job["spec"].update(suspend="yes")),
        ("rayjobs", NAME, lambda job: job["status"].update(failed="one")),
        ("rayjobs", NAME, lambda job: job["status"].update(unheardOf=1)),
        ("workloads", f"rayjob-{NAME}", lambda workload: workload["spec"].update(podSets=[])),
        ("workloads", f"rayjob-{NAME}", lambda workload: workload["status"]["conditions"][0].pop("message")),
    ]
    for plural, name, change in wrong:
        before = stage.api.get(plural, name)
        with pytest.raises(Refused, match="is invalid") as refused:
            stage.api.edit(plural, name, change)
        assert refused.value.code == 422
        assert stage.api.get(plural, name) == before


# Faults of the API server.


@pytest.mark.parametrize("code", [0, 500, 503])
def test_a_submission_whose_answer_is_lost_counts_as_made(stage: KubeStage, code: int) -> None:
    stage.api.fail(verb="create", code=code, after=True)
    stage.launcher.submit(request())
    assert stage.api.names("rayjobs") == [NAME]
    stage.until(lambda seen: seen.phase == "running" and stage.cluster.drivers)
    stage.cluster.settle()
    assert stage.cluster.drivers == [NAME]


@pytest.mark.parametrize("code", [0, 429, 500, 503, 403])
def test_a_submission_that_did_not_arrive_is_not_made(stage: KubeStage, code: int) -> None:
    stage.api.fail(verb="create", code=code)
    with pytest.raises(LauncherUnavailable, match=str(code or "does not answer")):
        stage.launcher.submit(request())
    assert stage.api.names("rayjobs") == []
    stage.launcher.submit(request())
    stage.phase("running")


def test_too_many_requests_are_followed_by_silence(stage: KubeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.observe(NAME)
    stage.api.fail(verb="create", code=429, retry_after=30)
    with pytest.raises(LauncherUnavailable, match="429"):
        stage.launcher.submit(request())
    before = stage.api.calls.total()
    for call in (lambda: stage.launcher.submit(request()), lambda: stage.launcher.stop(NAME)):
        with pytest.raises(LauncherUnavailable, match="left alone for the 30 s"):
            call()
    assert stage.api.calls.total() == before
    stage.launcher._pause = (0.0, "")
    stage.launcher.submit(request())
    stage.phase("running")


def test_capacity_counts_the_nodes_of_all_pools(stage: KubeStage) -> None:
    assert stage.launcher.nodes("queued") is None
    machines = stage.launcher.capacity()
    assert sum(node.gpus for node in machines) == 2 * PLAIN.max_nodes * PLAIN.gpus_per_node


def test_what_the_api_refuses_for_good(stage: KubeStage) -> None:
    with pytest.raises(LaunchRefused, match="DNS-1035"):
        stage.launcher.submit(request("Job-with-capitals-1"))
    assert stage.api.names("rayjobs") == []


def test_a_watch_whose_history_is_gone_begins_anew(stage: KubeStage, impatient: None) -> None:
    stage.start()
    lists = stage.api.calls["list", "rayjobs"]
    stage.api.forget()
    stage.cluster.finish(NAME)
    stage.phase("succeeded")
    wait_for(lambda: stage.api.calls["list", "rayjobs"], lambda calls: calls > lists)


@pytest.mark.parametrize("code", [410, 500, 429, 0])
def test_a_watch_that_is_refused_is_asked_again(stage: KubeStage, impatient: None, code: int) -> None:
    stage.api.fail(verb="watch", resource="rayjobs", code=code, times=2)
    stage.start()
    stage.cluster.finish(NAME)
    stage.phase("succeeded")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_watch_that_is_cut_in_the_middle_of_a_line(stage: KubeStage, impatient: None, after: int) -> None:
    stage.api.fail(verb="watch", resource="rayjobs", events=after)
    stage.api.fail(verb="watch", resource="pods", events=after)
    stage.start()
    stage.cluster.finish(NAME)
    stage.phase("succeeded")


def test_a_head_that_is_lost_while_the_watch_is_cut_off(
    stage: KubeStage, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start()
    stage.api.stop_answering()
    lose_without_a_word(stage, stage.cluster.pods(NAME, "head")[0])
    stage.api.answer_again()

    def look() -> str:
        try:
            return stage.launcher.observe(NAME).phase
        except LauncherUnavailable:
            return "unavailable"

    wait_for(look, lambda phase: phase == "failed")
    assert stage.launcher.observe(NAME).reason is Reason.HEAD_LOST


def test_an_api_that_is_away_proves_nothing(stage: KubeStage, impatient: None) -> None:
    stage.start()
    stage.api.stop_answering()

    def away() -> bool:
        try:
            stage.launcher.observe(NAME)
        except LauncherUnavailable:
            return True
        return False

    wait_for(away, bool)
    everything: list[Callable[[], object]] = [
        lambda: stage.launcher.nodes("plain"),
        lambda: stage.launcher.observe(NAME),
        lambda: stage.launcher.submit(request(OTHER)),
        lambda: stage.launcher.stop(NAME),
        lambda: stage.launcher.leftovers(set()),
    ]
    for call in everything:
        with pytest.raises(LauncherUnavailable, match=stage.api.url):
            call()
    stage.api.answer_again()
    wait_for(away, lambda gone: not gone)
    assert stage.launcher.observe(NAME).phase == "running"


def test_a_short_cut_is_not_worth_a_word(stage: KubeStage) -> None:
    stage.start()
    stage.api.fail(verb="watch", times=2, code=500)
    stage.api.cut()
    for _ in range(20):
        assert stage.launcher.observe(NAME).phase == "running"


def test_the_404_of_another_server_proves_nothing(stage: KubeStage) -> None:
    other = KubeRay(POOLS, house("elsewhere"), api=stage.api.url, timeout_s=1.0)
    with pytest.raises(LauncherUnavailable, match="403"):
        other.observe(NAME)
    other.close()
    stage.api.refusals.clear()


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_view, "FIRST_S", 1.0)
    launcher = KubeRay(POOLS, house(), api="http://127.0.0.1:1", timeout_s=1.0)
    with pytest.raises(LauncherUnavailable, match=r"127\.0\.0\.1:1 does not answer"):
        launcher.observe(NAME)
    launcher.close()


# Pools and neighbours.


def test_a_pool_without_a_queue_is_counted_and_a_queue_is_not(stage: KubeStage) -> None:
    assert stage.launcher.pool_of(None) == "plain"
    assert stage.launcher.nodes("plain") == [Node(cpus=64, gpus=8, free_cpus=64, free_gpus=8)] * 4
    assert stage.launcher.nodes("queued") is None
    with pytest.raises(PoolUnknown, match="there are: plain, queued"):
        stage.launcher.nodes("gone")
    with pytest.raises(PoolUnknown, match="no pool gone any more"):
        stage.launcher.submit(request(pool="gone"))


def test_the_rayjobs_of_another_service_are_left_alone(stage: KubeStage) -> None:
    neighbour = KubeRay(POOLS, house(bucket="another"), api=stage.api.url, timeout_s=3.0)
    neighbour.submit(request(OTHER))
    stage.launcher.submit(request())
    wait_for(lambda: stage.launcher.leftovers(set()), lambda names: names == [NAME])
    wait_for(lambda: neighbour.leftovers(set()), lambda names: names == [OTHER])
    neighbour.close()


def test_many_rayjobs_are_listed_in_pages(stage: KubeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.launchers.kube.PAGE", 3)
    names = [f"job-aaaaaaaa222{index}-1" for index in range(2, 8)]
    for name in names:
        stage.launcher.submit(request(name, pool="plain"))
    again = KubeRay(POOLS, house(), api=stage.api.url, timeout_s=3.0)
    wait_for(lambda: again.leftovers(set()), lambda found: found == names)
    again.close()


def test_the_role_forbids_everything_else(stage: KubeStage) -> None:
    base = f"{stage.api.url}/api/v1/namespaces/jobs"
    rayjobs = f"{stage.api.url}/apis/ray.io/v1/namespaces/jobs/rayjobs"
    asked = [
        ("GET", f"{base}/secrets/keys"),
        ("POST", f"{base}/pods/head/exec"),
        ("DELETE", f"{base}/pods/head"),
        ("PUT", f"{rayjobs}/{NAME}"),
        ("PATCH", f"{rayjobs}/{NAME}"),
        ("GET", f"{stage.api.url}/api/v1/namespaces/kube-system/pods"),
    ]
    for method, url in asked:
        assert httpx.request(method, url).status_code == 403, url
    stage.api.refusals.clear()


def test_the_server_refuses_what_was_changed_meanwhile(stage: KubeStage) -> None:
    stage.launcher.submit(request())
    url = f"{stage.api.url}/apis/ray.io/v1/namespaces/jobs/rayjobs/{NAME}"
    headers = {"Authorization": OPERATOR}
    read = httpx.get(url, headers=headers).json()
    stage.cluster.step()
    answer = httpx.put(url, headers=headers, content=json.dumps(read))
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
