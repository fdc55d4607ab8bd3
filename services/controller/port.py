"""The controller's own port: /metrics for Prometheus, and /livez, which tells a loop that hangs from one that works."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from services.settings import Settings

# Longer than anything that one step of a tick may wait for: each call outside has seconds of patience.
HANGS_AFTER_S = 120.0


class MetricsPortTaken(Exception):
    """The metrics port can't be listened on."""


class Pulse:
    """Remembers when the controller's loop last did something; shared between threads.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = clock()

    def beat(self) -> None:
        self._beat = self._clock()

    @property
    def silent_s(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._beat


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes and probes are no news."""


def serve(registry: CollectorRegistry, pulse: Pulse, settings: Settings) -> None:
    """Serve both on the metrics port, if there is one, for as long as the process lives.

    Raises:
        MetricsPortTaken: the port can't be listened on.
    """
    if not settings.metrics_port:
        return
    metrics = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        silent = pulse.silent_s
        lives = silent < HANGS_AFTER_S
        start_response("200 OK" if lives else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [f"the loop last did something {silent:.1f} s ago\n".encode()]

    try:
        server = make_server(settings.host, settings.metrics_port, answer, server_class=_Server, handler_class=_Handler)
    except OSError as error:
        where = f"{settings.host}:{settings.metrics_port}"
        raise MetricsPortTaken(
            f"{where} can't be listened on: {error.strerror}; name a free port, or 0 for none"
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
