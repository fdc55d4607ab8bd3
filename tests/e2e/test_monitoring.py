"""What a real Prometheus has of the real stack while a job trains: every panel shows something, every alert can fire.

The stack trains on CPUs, where trainer/gpu.py reads nothing: the readings of two GPUs are made up, and go the trainer's
own way from there, through Ray's agent.
"""

import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from resforge import metrics
from resforge.client import Client
from services.launchers.base import LaunchRequest
from services.launchers.ray_jobs import RayJobs
from tests.deploy.promql import Query, compared, names, queries, rules
from tests.e2e.conftest import MainJob
from tests.e2e.following import SMALL, driver
from tests.embedded import EmbeddedStack
from tests.prometheus import PrometheusServer
from tests.services.local.waiting import until
from tests.system_packages import PROMETHEUS

# The first test to ask waits for the stack and for the job.
pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), PROMETHEUS.mark]

GPU_ONLY = {name for metric in metrics.GPU_METRICS for name in metrics.series_names(metric)}
SHOWN = list(queries())
ON_GPUS = "job-gpuprobe2345"


@pytest.fixture(scope="module")
def prometheus(scraping: PrometheusServer | None) -> PrometheusServer:
    """The server that scrapes the stack; whatever asks for it is skipped where none is installed."""
    PROMETHEUS.require()
    assert scraping is not None
    return scraping


@pytest.fixture(scope="module")
def after_a_failure(stack: EmbeddedStack, prometheus: PrometheusServer, main_job: MainJob) -> float:
    """A time at which Prometheus knows of the main job's end, and of a job that failed since its driver was killed."""
    with stack.client() as client:
        failed = 'resforge_jobs_ended_total{state="FAILED", reason="DriverLost"}'
        before = float(prometheus.query(failed)[0]["value"][1])
        job = client.submit({**SMALL, "retry": {"infrastructure": 0}})
        driver(stack, job.id).kill()
        assert client.wait(job.id, 120).state == "FAILED"
    until(
        lambda: (
            [s for s in prometheus.query(f"increase({failed}[1h])") if float(s["value"][1]) > 0]
            and float(prometheus.query(failed)[0]["value"][1]) > before
        ),
        what="the failure in Prometheus",
    )
    return time.time()


@pytest.fixture(scope="module")
def on_gpus(
    stack: EmbeddedStack, prometheus: PrometheusServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[float]:
    """A time at which Prometheus has what two workers on GPUs would tell of them, under the job `ON_GPUS`."""
    path = tmp_path_factory.mktemp("gpus") / "worker.py"
    path.write_text(
        textwrap.dedent(f"""
            import time
            import ray
            from resforge.metrics import GPU_MEMORY, GPU_MEMORY_USED, GPU_UTILISATION, GPU_METRICS
            from trainer.ray_metrics import Gauges

            ray.init(address="auto")
            for rank, values in enumerate([(0.9, 60e9, 80e9), (0.8, 61e9, 80e9)]):
                told = dict(zip((GPU_UTILISATION, GPU_MEMORY_USED, GPU_MEMORY), values, strict=True))
                assert told.keys() == set(GPU_METRICS)
                Gauges(job_id={ON_GPUS!r}, attempt="1", rank=str(rank))(told)
            time.sleep(600)
        """)
    )
    worker = RayJobs(
        stack.connection["ray_dashboard"],
        trainer_command=f"{sys.executable} {path}",
        token_path=stack.home.ray_token,
    )
    try:
        worker.submit(LaunchRequest(f"{ON_GPUS}-1", f"s3://resforge/other/{ON_GPUS}", 1))
        own = f'{{job_id="{ON_GPUS}"}}'
        series = [f"count({name}{own}) == 2" for name in sorted(GPU_ONLY)] + [f"resforge:job_gpu_utilisation:avg{own}"]
        until(lambda: all(map(prometheus.query, series)), within_s=60, what="the GPUs' metrics in Prometheus")
        yield time.time()
    finally:
        worker.stop(f"{ON_GPUS}-1")
        worker.close()


def test_everything_is_scraped(prometheus: PrometheusServer, main_job: MainJob) -> None:
    up = {sample["metric"]["job"]: sample["value"][1] for sample in prometheus.query("up")}
    assert up == {"resforge-api": "1", "resforge-controller": "1", "resforge-ray": "1"}


def test_every_metric_that_is_defined_was_scraped(
    prometheus: PrometheusServer, after_a_failure: float, on_gpus: float
) -> None:
    defined = {name for metric in metrics.METRICS for name in metrics.series_names(metric)}
    scraped = {name for name in prometheus.names() if name.startswith(("resforge_", "ray_resforge_"))}
    assert scraped == defined


@pytest.mark.parametrize("query", [query for query in SHOWN if not names(query.expr) & GPU_ONLY], ids=str)
def test_every_panel_shows_data(
    query: Query, prometheus: PrometheusServer, main_job: MainJob, after_a_failure: float
) -> None:
    assert main_job.during is not None
    expr = filled_in(query.expr, main_job.job.id)
    assert prometheus.query(expr, main_job.during) or prometheus.query(expr, after_a_failure), expr


@pytest.mark.parametrize("query", [query for query in SHOWN if names(query.expr) & GPU_ONLY], ids=str)
def test_panels_of_gpus_show_data(query: Query, prometheus: PrometheusServer, on_gpus: float) -> None:
    assert prometheus.query(filled_in(query.expr, ON_GPUS), on_gpus), query.expr


def test_a_person_finds_the_job_by_its_project(client: Client, prometheus: PrometheusServer, main_job: MainJob) -> None:
    job = main_job.job
    [info] = prometheus.query(f'ray_resforge_job_info{{job_id="{job.id}"}}', main_job.during)
    told = {label: info["metric"][label] for label in ("project", "model", "dataset", "attempt")}
    assert told == {"project": job.project, "model": "cifar/resnet-20", "dataset": "digits", "attempt": "1"}


def test_each_worker_tells_its_pace_and_where_its_time_went(prometheus: PrometheusServer, main_job: MainJob) -> None:
    own = f'{{job_id="{main_job.job.id}"}}'
    paces = prometheus.query(f"ray_resforge_worker_images_per_second{own}", main_job.during)
    assert {sample["metric"]["rank"] for sample in paces} == {"0", "1"}
    assert all(float(sample["value"][1]) > 0 for sample in paces)
    spent = prometheus.query(f'ray_resforge_worker_seconds{{job_id="{main_job.job.id}", rank="0"}}', main_job.during)
    seconds = {sample["metric"]["phase"]: float(sample["value"][1]) for sample in spent}
    assert set(seconds) == set(metrics.PHASES)
    assert all(seconds[phase] > 0 for phase in ("compute", "evaluation", "checkpoint"))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_can_be_evaluated(
    rule: dict[str, str], prometheus: PrometheusServer, main_job: MainJob, after_a_failure: float, on_gpus: float
) -> None:
    name = rule.get("alert") or rule["record"]
    until(lambda: prometheus.rule_health()[name][0] != "unknown", what=f"the evaluation of {name}")
    assert prometheus.rule_health()[name] == ("ok", "")
    prometheus.query(rule["expr"], main_job.during)
    assert names(rule["expr"]) <= prometheus.names()
    asked = [rule["record"]] if "record" in rule else compared(rule["expr"])
    assert asked
    for expr in asked:
        assert any(prometheus.query(expr, at) for at in (main_job.during, after_a_failure, on_gpus)), expr


def filled_in(expr: str, job_id: str) -> str:
    """The query as Grafana sends it, of the main job."""
    values = {"$__rate_interval": "1m", "$__range": "1h", "$job": job_id, "$attempt": ".*"}
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr
