"""Metrics of a training, exported through Ray's agent, which a Prometheus scrapes on every node."""

from ray.util.metrics import Gauge

from resforge.metrics import TRAINER_METRICS, Metric


class Gauges:
    """Sets each metric's gauge, for one worker of an attempt."""

    def __init__(self, **labels: str) -> None:
        self._gauges = {
            metric: Gauge(metric.name, description=metric.help, tag_keys=metric.labels) for metric in TRAINER_METRICS
        }
        self._labels = labels

    def __call__(self, values: dict[Metric, float], /, **labels: str) -> None:
        known = {**self._labels, **labels}
        for metric, value in values.items():
            self._gauges[metric].set(value, tags={label: known[label] for label in metric.labels})
