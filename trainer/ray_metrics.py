"""Metrics of a training, exported through Ray's agent, which a Prometheus scrapes on every node."""

from ray.util.metrics import Gauge

from resforge.metrics import TRAINER_METRICS, Metric


class Gauges:
    """Sets each metric's gauge, for one attempt of a job."""

    def __init__(self, *, job_id: str, attempt: int) -> None:
        self._gauges = {
            metric: Gauge(metric.name, description=metric.help, tag_keys=metric.labels) for metric in TRAINER_METRICS
        }
        self._tags = {"job_id": job_id, "attempt": str(attempt)}

    def __call__(self, values: dict[Metric, float]) -> None:
        for metric, value in values.items():
            self._gauges[metric].set(value, tags=self._tags)
