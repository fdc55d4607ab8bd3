"""The API's own metrics for Prometheus. Names, help and labels are those of resforge/metrics.py."""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resforge.metrics import (
    CONTROLLER_TICK_AGE,
    HTTP_REQUESTS,
    HTTP_SECONDS,
    HTTP_STREAMS,
    JOBS,
    QUEUE_OLDEST,
    Metric,
)
from services.errors import ServiceError
from services.instruments import Instruments
from services.store.store import JobStore

logger = logging.getLogger(__name__)

# Clients choose methods and paths: what is none of ours shares one label, so that they can't make series without end.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ServiceMetrics(Instruments):
    """A registry of its own with everything that the API measures."""

    def __init__(self) -> None:
        super().__init__("api")
        self.requests = self.counter(HTTP_REQUESTS)
        self.seconds = self.histogram(HTTP_SECONDS)
        self.streams = self.gauge(HTTP_STREAMS)

    def watch(self, store: JobStore) -> None:
        """Add what the database knows, to be read at each scrape."""
        self.registry.register(_StoreCollector(store))


class _StoreCollector(Collector):
    """What the database knows, read at each scrape. When it does not answer, these metrics are absent."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterator[GaugeMetricFamily]:
        # Without it, registering would call collect().
        yield from map(_family, (JOBS, QUEUE_OLDEST, CONTROLLER_TICK_AGE))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            counts, oldest, tick = self._store.counts(), self._store.oldest_queued(), self._store.last_tick()
        except ServiceError as error:
            logger.warning("metrics: %s", error)
            return
        jobs = _family(JOBS)
        for state, count in counts.items():
            jobs.add_metric([state], count)
        yield jobs
        now = datetime.now(UTC)
        yield _family(QUEUE_OLDEST, (now - oldest).total_seconds() if oldest else 0.0)
        if tick is not None:
            yield _family(CONTROLLER_TICK_AGE, (now - tick).total_seconds())


def _family(metric: Metric, value: float | None = None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    if value is not None:
        family.add_metric([], value)
    return family


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
