"""A gate before a real S3 server: tests hold requests there for as long as they like, or have them refused."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.s3 import S3Server

HOLD_S = 120.0  # longer than any test waits


@dataclass
class Rule:
    """What happens to the writing of objects whose key contains `part`.

    Attributes:
        refused: answered with 503 instead of being held.
        arrived: the keys that it was applied to, in order.
    """

    part: str
    refused: bool
    arrived: list[str] = field(default_factory=list)
    opened: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False

    def release(self) -> None:
        """Let through what is held, and what comes."""
        self.opened.set()

    def drop(self) -> None:
        """Cut the connections of what is held: it never reaches the server."""
        self.dropped = True
        self.opened.set()


@dataclass
class Gate:
    """`s3` is the server as seen through the gate."""

    s3: S3Server
    rules: list[Rule] = field(default_factory=list)

    def hold(self, part: str) -> Rule:
        self.rules.append(Rule(part, refused=False))
        return self.rules[-1]

    def refuse(self, part: str) -> Rule:
        self.rules.append(Rule(part, refused=True))
        return self.rules[-1]


@contextmanager
def gate_before(server: S3Server) -> Iterator[Gate]:
    """Whatever is held still at the end is dropped."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            for rule in gate.rules:
                if rule.part not in self.path or rule.opened.is_set():
                    continue
                rule.arrived.append(self.path)
                if rule.refused:
                    self._answer(503, {}, b"")
                    return
                rule.opened.wait(HOLD_S)
                if rule.dropped:
                    self.close_connection = True
                    return
            self._pass(body)

        def do_POST(self) -> None:
            self._pass(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def do_GET(self) -> None:
            self._pass(b"")

        do_HEAD = do_DELETE = do_GET

        def _pass(self, body: bytes) -> None:
            server_side = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            # As they came: the signature covers them, the host among them.
            server_side.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server_side.putheader(name, value)
            server_side.endheaders(body)
            answer = server_side.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
            server_side.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = next(
                (value for name, value in headers.items() if name.lower() == "content-length"), str(len(body))
            )
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that were killed are no error."""

    listener = Server(("127.0.0.1", 0), Handler)
    gate = Gate(replace(server, port=listener.server_port))
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, name="gate", daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        for rule in gate.rules:
            rule.drop()
        listener.shutdown()
        listener.server_close()
        thread.join()
