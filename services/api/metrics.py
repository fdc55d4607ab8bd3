"""The API's own metrics for Prometheus. Names, help and labels are those of resforge/metrics.py."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resforge.metrics import CONTROLLER_TICK_AGE, HTTP_REQUESTS, HTTP_SECONDS, HTTP_STREAMS, JOBS, Metric
from services.errors import ServiceError
from services.store.store import JobStore

logger = logging.getLogger(__name__)

# Clients choose methods and paths: what is none of ours shares one label, so that they can't make series without end.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceMetrics:
    """A registry of its own with everything that the API measures."""

    def __init__(self, store: JobStore) -> None:
        # It would add a series to each of ours, under names that stand nowhere.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(HTTP_REQUESTS.name, HTTP_REQUESTS.help, HTTP_REQUESTS.labels, registry=self.registry)
        self.seconds = Histogram(
            HTTP_SECONDS.name,
            HTTP_SECONDS.help,
            HTTP_SECONDS.labels,
            buckets=HTTP_SECONDS.buckets,
            registry=self.registry,
        )
        self.streams = Gauge(HTTP_STREAMS.name, HTTP_STREAMS.help, registry=self.registry)
        self.registry.register(_StoreCollector(store))


class _StoreCollector(Collector):
    """What the database knows, read at each scrape. When it does not answer, these metrics are absent."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterator[GaugeMetricFamily]:
        # Without it, registering would call collect().
        yield from (_family(JOBS), _family(CONTROLLER_TICK_AGE))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counts, tick = self._store.counts(), self._store.last_tick()
        except ServiceError as error:
            logger.warning("metrics: %s", error)
            return
        jobs = _family(JOBS)
        for state, count in counts.items():
            jobs.add_metric([state], count)
        yield jobs
        if tick is not None:
            age = _family(CONTROLLER_TICK_AGE)
            age.add_metric([], (datetime.now(UTC) - tick).total_seconds())
            yield age


def _family(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


class Measured:
    """ASGI middleware that counts requests and times them until their answer begins, by the route's template."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, counted = time.perf_counter(), False

        def count(status: int) -> None:
            nonlocal counted
            if counted:
                return
            counted = True
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(method, route).observe(time.perf_counter() - begun)

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, measured)
        except Exception:
            count(500)  # the answer is made further out
            raise
