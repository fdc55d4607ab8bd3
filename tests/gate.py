"""A gate before a real S3 server: tests hold writes there as long as they like, have them refused, and spoil reads."""

import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Fault:
    """What happens to one answer to a GET.

    Attributes:
        status: 200 for the server's own answer; any other is sent in its place, with `code` as S3 words errors.
        retry_s: the Retry-After of such an answer, if any.
        delay_s: how long the answer is kept back.
        cut: how much of the body is sent, in thousandths, before the connection is closed; None: all.
        reset: closed as by a server that was killed, not as at an answer's end.
        stall_s: how long the connection stays open and silent where the body is cut.
    """

    status: int = 200
    code: str = ""
    retry_s: int | None = None
    delay_s: float = 0.0
    cut: int | None = None
    reset: bool = False
    stall_s: float = 0.0


WHOLE = Fault()


@dataclass
class Spoiled:
    """What happens to the reading of objects whose path contains `part`: a fault for each GET, in order.

    Attributes:
        always: what happens once there are none left; None: nothing.
        seen: how many GETs came.
    """

    part: str
    faults: deque[Fault]
    always: Fault | None
    seen: int = 0


@dataclass
class Gate:
    """`s3` is the server as seen through the gate."""

    s3: S3Server
    rules: list[Rule] = field(default_factory=list)
    spoiled: list[Spoiled] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, part: str, faults: Sequence[Fault], *, always: Fault | None = None) -> Spoiled:
        with self.lock:
            self.spoiled.append(Spoiled(part, deque(faults), always))
            return self.spoiled[-1]

    def mend(self) -> None:
        """Spoil nothing any more."""
        with self.lock:
            self.spoiled.clear()

    def fault(self, path: str) -> Fault:
        """What happens to this GET."""
        with self.lock:
            for spoiled in self.spoiled:
                if spoiled.part in path:
                    spoiled.seen += 1
                    return spoiled.faults.popleft() if spoiled.faults else spoiled.always or WHOLE
        return WHOLE

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
            fault = gate.fault(self.path)
            time.sleep(fault.delay_s)
            if fault.status == 200:
                self._pass(b"", fault)
                return
            later = {} if fault.retry_s is None else {"Retry-After": str(fault.retry_s)}
            text = f"<Error><Code>{fault.code}</Code><Message>as the test wants</Message></Error>"
            self._answer(fault.status, {"Content-Type": "application/xml", **later}, text.encode(), fault)

        def do_HEAD(self) -> None:
            self._pass(b"")

        do_DELETE = do_HEAD

        def _pass(self, body: bytes, fault: Fault = WHOLE) -> None:
            server_side = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            # As they came: the signature covers them, the host among them.
            server_side.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    server_side.putheader(name, value)
            server_side.endheaders(body)
            answer = server_side.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read(), fault)
            server_side.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault = WHOLE) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = next(
                (value for name, value in headers.items() if name.lower() == "content-length"), str(len(body))
            )
            self.send_header("Content-Length", length)
            self.end_headers()
            if fault.cut is not None:
                self.close_connection = True
                body = body[: len(body) * fault.cut // 1000]
            self.wfile.write(body)
            self.wfile.flush()
            time.sleep(fault.stall_s)
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

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
