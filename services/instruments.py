"""What measures the control plane, made from the definitions in resforge/metrics.py."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

import resforge
from resforge.metrics import BUILD_INFO, DATABASE_SECONDS, S3_SECONDS, Metric


class Instruments:
    """A registry of its own, with what API and controller both measure."""

    def __init__(self, component: str) -> None:
        # It would add a series to each of ours, under names that stand nowhere.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.gauge(BUILD_INFO).labels(component, resforge.__version__).set(1)
        self._s3 = self.histogram(S3_SECONDS)
        self._database = self.histogram(DATABASE_SECONDS)

    def s3(self, operation: str, outcome: str, seconds: float) -> None:
        """For ObjectStore's `observe`."""
        self._s3.labels(operation, outcome).observe(seconds)

    def database(self, kind: str, outcome: str, seconds: float) -> None:
        """For JobStore's `observe`."""
        self._database.labels(kind, outcome).observe(seconds)

    def counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)
