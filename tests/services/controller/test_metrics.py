"""What the controller tells of itself: by a real scrape where it serves it, and by what a job's life adds up to."""

import re
import threading

import httpx
import pytest
from prometheus_client import generate_latest
from sqlalchemy import Engine

from resforge.jobs import Attempt, AttemptState, JobState, Reason
from resforge.metrics import CONTROLLER_METRICS, Progress
from resforge.spec import ScalingSpec
from services.controller import metrics as metrics_module
from services.controller.metrics import ControllerMetrics, first_step_after, watch_capacity
from services.controller.port import serve
from services.launchers.base import LauncherUnavailable, LaunchRefused, LaunchRequest, Node
from services.launchers.memory import MemoryLauncher
from services.store.records import Change
from services.store.store import JobStore
from tests.s3 import S3Server, free_port
from tests.services.controller.stage import Stage
from tests.services.controller.test_port import settings
from tests.services.controller.values import SPEC, after, progress, record
from tests.services.exposition import check_exposition
from tests.services.local.waiting import until

S, A = JobState, AttemptState


def sample(metrics: ControllerMetrics, series: str) -> float | None:
    """The value of a series; None where there is no such one."""
    text = generate_latest(metrics.registry).decode()
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.M)
    return None if found is None else float(found[1])


def seen(step: int, *, attempt: int = 1, at: float = 0) -> Progress:
    return progress(step, attempt).model_copy(update={"at": after(at)})


@pytest.mark.parametrize(
    ("before", "now", "seconds"),
    [
        (None, seen(10, at=42), 42),
        (seen(0, at=40), seen(1, at=42), 42),
        (None, seen(0, at=40), None),  # the workers stand, and have not stepped
        (seen(1, at=42), seen(2, at=43), None),  # told before
        (None, seen(10, attempt=2, at=42), None),
        (seen(7), seen(0, attempt=2, at=42), None),
        (None, None, None),
        (None, seen(1, at=-3), 0),  # a node's clock that is behind
    ],
)
def test_the_first_step_is_told_once(before: Progress | None, now: Progress | None, seconds: float | None) -> None:
    old = record(S.RUNNING, A.RUNNING)
    old = type(old)(old.job.model_copy(update={"progress": before}), old.version, old.dataset, old.attempt)
    assert first_step_after(old, Change(job={} if now is None else {"progress": now})) == seconds


def test_endings_are_counted_by_state_and_reason() -> None:
    metrics = ControllerMetrics()
    lost = 'resforge_attempts_ended_total{reason="DriverLost",state="LOST"}'
    failed = 'resforge_jobs_ended_total{reason="DriverLost",state="FAILED"}'
    done = 'resforge_jobs_ended_total{reason="none",state="SUCCEEDED"}'
    assert (sample(metrics, lost), sample(metrics, failed), sample(metrics, done)) == (0, 0, 0)
    running = record(S.RUNNING, A.RUNNING)
    ending = {"state": A.LOST, "reason": Reason.DRIVER_LOST}
    metrics.changed(running, Change(job={"state": S.RECOVERING, "reason": Reason.DRIVER_LOST}, attempt=ending))
    assert (sample(metrics, lost), sample(metrics, failed)) == (1, 0)
    metrics.changed(running, Change(job={"state": S.FAILED, "reason": Reason.DRIVER_LOST}, attempt=ending))
    metrics.changed(running, Change(job={"state": S.SUCCEEDED}, attempt={"state": A.SUCCEEDED}))
    assert (sample(metrics, lost), sample(metrics, failed), sample(metrics, done)) == (2, 1, 1)


def test_the_wait_in_the_queue_ends_with_the_first_attempts_admission() -> None:
    metrics = ControllerMetrics()
    attempt = Attempt(job="job1", number=1, state=A.PENDING, created_at=after(10))
    metrics.changed(record(S.QUEUED), Change(job={"state": S.STARTING}, new_attempt=attempt))
    assert sample(metrics, "resforge_job_queue_seconds_count") == 0  # Kueue may hold it yet
    for number, seconds in ((1, 90.0), (2, 1000.0)):
        held = record(S.STARTING, A.SUBMITTED, number=number, held=True)
        metrics.changed(held, Change(attempt={"admitted_at": after(seconds)}))
    assert sample(metrics, "resforge_job_queue_seconds_count") == 1
    assert sample(metrics, "resforge_job_queue_seconds_sum") == 90


def test_what_live_jobs_have_and_want_adds_up() -> None:
    metrics = ControllerMetrics()
    spec = SPEC.model_copy(update={"scaling": ScalingSpec(workers=4, gpus_per_worker=1, cpus_per_worker=8)})
    records = [
        record(S.RUNNING, A.RUNNING, spec=spec),
        record(S.STARTING, A.PENDING, spec=spec),
        record(S.QUEUED, spec=spec),
        record(S.RECOVERING, A.LOST, spec=spec),
    ]
    metrics.live([*records, record(S.STARTING, A.SUBMITTED, spec=spec, held=True)])  # in Kueue's queue
    for state, jobs in (("allocated", 2), ("wanted", 3)):
        assert sample(metrics, f'resforge_resources_{state}{{resource="gpu"}}') == jobs * 4
        assert sample(metrics, f'resforge_resources_{state}{{resource="cpu"}}') == jobs * 32
    metrics.live([])
    assert sample(metrics, 'resforge_resources_allocated{resource="gpu"}') == 0


def test_calls_of_the_launcher_are_told_by_their_outcome() -> None:
    metrics, launcher = ControllerMetrics(), MemoryLauncher()
    measured = metrics.measured(launcher)
    assert measured.nodes() == launcher.machines
    launcher.refused = "no"
    with pytest.raises(LaunchRefused):
        measured.submit(LaunchRequest("a-1", "s3://b/p/a", 1))
    launcher.unavailable = "gone"
    with pytest.raises(LauncherUnavailable):
        measured.observe("a-1")
    with pytest.raises(TypeError):
        measured.stop()  # type: ignore[call-arg]
    told = [("nodes", "ok"), ("submit", "refused"), ("observe", "unavailable"), ("stop", "error")]
    for operation, outcome in told:
        assert sample(metrics, f'resforge_launcher_seconds_count{{operation="{operation}",outcome="{outcome}"}}') == 1


def test_capacity_is_what_the_launcher_has_while_this_controller_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "CAPACITY_EVERY_S", 0.01)
    metrics, launcher, stop, leads = ControllerMetrics(), MemoryLauncher(), threading.Event(), threading.Event()
    launcher.machines = [
        Node(cpus=64, gpus=8, free_cpus=1, free_gpus=0),
        Node(cpus=32, gpus=0, free_cpus=0, free_gpus=0),
    ]
    gpus, cpus = (f'resforge_resources_capacity{{resource="{resource}"}}' for resource in ("gpu", "cpu"))
    watch_capacity(launcher.nodes, metrics, leads.is_set, stop)
    try:
        assert sample(metrics, gpus) is None
        leads.set()
        until(lambda: (sample(metrics, gpus), sample(metrics, cpus)) == (8, 96), what="the capacity")
        launcher.unavailable = "gone"
        until(lambda: sample(metrics, gpus) is None, what="what is not known to be gone")
        launcher.unavailable = None
        until(lambda: sample(metrics, gpus) == 8, what="the capacity")
        leads.clear()
        until(lambda: sample(metrics, gpus) is None, what="silence where another leads")
    finally:
        stop.set()


@pytest.mark.stack
def test_every_metric_of_the_controller_is_there_and_no_other(
    stage: Stage, s3_server: S3Server, engine_of_stage: Engine
) -> None:
    metrics, port = ControllerMetrics(), free_port()
    serve(metrics.registry, metrics.pulse, settings(metrics_port=port))
    store = JobStore(engine_of_stage, clock=stage.clock, observe=metrics.database)
    objects = s3_server.store(timeout_s=2, attempts=1, observe=metrics.s3)
    controller = stage.controller(store=store, objects=objects, metrics=metrics)
    job = stage.submit()
    driver = stage.running(controller, job)
    driver.progress(5)
    driver.succeed()
    stage.until(controller, job, S.SUCCEEDED)
    metrics.capacity(stage.launcher.nodes())
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    check_exposition(text, CONTROLLER_METRICS)
    for row in (
        "resforge_controller_leader 1.0",
        "resforge_job_queue_seconds_count 1.0",
        "resforge_job_first_step_seconds_count 1.0",
        'resforge_controller_actions_total{action="submit"} 1.0',
        'resforge_jobs_ended_total{reason="none",state="SUCCEEDED"} 1.0',
        'resforge_attempts_ended_total{reason="none",state="SUCCEEDED"} 1.0',
        'resforge_resources_capacity{resource="cpu"} 2.0',
        'resforge_controller_errors_total{where="tick"} 0.0',
    ):
        assert f"\n{row}\n" in text, row
    assert re.search(r'^resforge_s3_seconds_count\{operation="get",outcome="(ok|absent)"\} [1-9]', text, re.M)
    controller.close()
    assert sample(metrics, "resforge_controller_leader") == 0


@pytest.mark.stack
def test_what_goes_wrong_is_counted(stage: Stage) -> None:
    metrics = ControllerMetrics()
    controller = stage.controller(metrics=metrics)
    job = stage.submit()
    stage.running(controller, job)
    key = stage.prefix(job).attempt(1).heartbeat
    stage.objects.put(key, b"no document")  # tolerated, and no error of ours
    controller.tick()
    assert sample(metrics, 'resforge_controller_errors_total{where="look"}') == 0

    def broken(name: str) -> None:
        raise RuntimeError("a fault that nobody foresaw")

    stage.launcher.observe = broken  # type: ignore[assignment, method-assign]
    controller.tick()
    assert sample(metrics, 'resforge_controller_errors_total{where="look"}') == 1


@pytest.mark.stack
def test_only_the_controller_that_acts_tells_of_jobs(stage: Stage) -> None:
    metrics, rivals = ControllerMetrics(), ControllerMetrics()
    controller, rival = stage.controller(metrics=metrics), stage.controller(metrics=rivals)
    stage.submit()

    def told(metrics: ControllerMetrics) -> tuple[float | None, float | None]:
        wanted = sample(metrics, 'resforge_resources_wanted{resource="cpu"}')
        return sample(metrics, "resforge_controller_leader"), wanted

    assert (controller.tick(), rival.tick()) == (True, False)
    assert (told(metrics), told(rivals)) == ((1, 1), (0, None))
    stage.clock.turn(11)
    assert (rival.tick(), controller.tick()) == (True, False)
    assert told(metrics) == (0, None)
    assert told(rivals)[0] == 1
