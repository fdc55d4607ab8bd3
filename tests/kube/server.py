"""A small API server of Kubernetes for tests: real HTTP, lists in pages, watches in chunks, resource versions, 409s and
410s, schemas enforced on write and the controller's Role enforced on every request, and faults on demand.

It keeps objects in memory and starts nothing; tests/kube/cluster.py plays the operators and nodes behind it.
"""

import base64
import copy
import json
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.kube.schemas import CRDS, crd_schema, problems

Object = dict[str, Any]
ROLE = Path(__file__).with_name("role.yaml")
KINDS = {"rayjobs": "RayJob", "pods": "Pod", "events": "Event", "workloads": "Workload"}
APIS = {"rayjobs": "ray.io/v1", "pods": "v1", "events": "v1", "workloads": "kueue.x-k8s.io/v1beta2"}
OPERATOR = "Bearer operator"  # whoever sends this may do everything, as a cluster's own parts may


class Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Attributes:
        verb, resource: of which requests; empty for any.
        times: how many.
        code: answer with this status; 0: close the connection instead.
        after: do what was asked first, so that only the answer is lost.
        retry_after: the header of that name.
        events: for a watch: so many events are sent before it is cut in the middle of a line.
    """

    verb: str = ""
    resource: str = ""
    times: int = 1
    code: int = 0
    after: bool = False
    retry_after: int = 0
    events: int | None = None


@dataclass
class KubeApi:
    """One namespace of a cluster.

    Attributes:
        silent: kinds of which watches say nothing, though much happens.
        history: how many changes a watch may go back; older versions are 410 Gone.
        calls: how often each (verb, resource) was asked for.
        refusals: what the Role did not allow.
    """

    namespace: str = "jobs"
    history: int = 100_000
    silent: set[str] = field(default_factory=set)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        if CRDS:  # read now, which takes seconds, and not while somebody waits for an answer
            crd_schema("ray.io_rayjobs.yaml", "v1")
        self.objects: dict[str, dict[str, Object]] = {plural: {} for plural in KINDS}
        self.changed = threading.Condition()
        self.down = False
        self._version = 1000
        self._log: deque[tuple[int, str, str, Object]] = deque(maxlen=self.history)
        self._forgotten = 0
        self._rules = yaml.safe_load(ROLE.read_text())["rules"]
        api = self

        class Handler(_Handler):
            kube = api

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.stop_answering()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def stop_answering(self) -> None:
        """Close every connection, and each new one, until `answer_again`."""
        with self.changed:
            self.down = True
            self.changed.notify_all()
        self._server.cut()

    def answer_again(self) -> None:
        self.down = False

    def cut(self) -> None:
        """Close every connection; new ones are taken."""
        self._server.cut()

    def fail(self, **fault: Any) -> Fault:
        """Let the next requests of a kind go wrong."""
        made = Fault(**fault)
        self.faults.append(made)
        return made

    def forget(self) -> None:
        """Forget all history, as etcd's compaction does."""
        with self.changed:
            self._log.clear()
            self._version += 1  # so that every watch is behind
            self._forgotten = self._version
            self.changed.notify_all()

    # What the cluster's own parts do, without HTTP.

    def get(self, plural: str, name: str) -> Object | None:
        with self.changed:
            return copy.deepcopy(self.objects[plural].get(name))

    def peek(self, plural: str, name: str) -> Object | None:
        """The object itself, to be read only: it is replaced when it changes, and never changed in place."""
        return self.objects[plural].get(name)

    def exists(self, plural: str, name: str) -> bool:
        return name in self.objects[plural]

    def names(self, plural: str) -> list[str]:
        with self.changed:
            return list(self.objects[plural])

    def create(self, plural: str, item: Mapping[str, Any]) -> Object:
        made: Object = copy.deepcopy(dict(item))
        name = made.get("metadata", {}).get("name", "")
        _refuse_invalid(plural, made)
        with self.changed:
            if name in self.objects[plural]:
                raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
            made.setdefault("apiVersion", APIS[plural])
            made.setdefault("kind", KINDS[plural])
            made["metadata"] |= {
                "namespace": self.namespace,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": now(),
                "generation": 1,
            }
            self._changed("ADDED", plural, made)
            return copy.deepcopy(made)

    def replace(self, plural: str, item: Mapping[str, Any]) -> Object:
        """Overwrite an object; Refused with 409 if it has changed since it was read."""
        new: Object = copy.deepcopy(dict(item))
        name = new["metadata"]["name"]
        with self.changed:
            old = self.objects[plural].get(name)
            if old is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            if new["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                message = f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified'
                raise Refused(409, "Conflict", message)
            _refuse_invalid(plural, new, old)
            if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
                self._remove(plural, new)
            else:
                self._changed("MODIFIED", plural, new)
            return copy.deepcopy(new)

    def edit(self, plural: str, name: str, change: Callable[[Object], object]) -> None:
        """Read, change and overwrite an object; nothing if it is gone."""
        with self.changed:
            item = self.get(plural, name)
            if item is not None:
                change(item)
                self.replace(plural, item)

    def delete(self, plural: str, name: str, grace_s: float = 0.0) -> Object:
        """Ask for an object's removal. It stays while it has finalizers, and a pod while it has grace."""
        with self.changed:
            item = self.objects[plural].get(name)
            if item is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            item = copy.deepcopy(item)
            if not item["metadata"].get("finalizers") and not grace_s:
                self._remove(plural, item)
            elif not item["metadata"].get("deletionTimestamp"):
                item["metadata"]["deletionTimestamp"] = now(grace_s)
                self._changed("MODIFIED", plural, item)
            return item

    def remove(self, plural: str, name: str) -> None:
        """Let an object be gone."""
        with self.changed:
            item = self.objects[plural].get(name)
            if item is not None:
                self._remove(plural, copy.deepcopy(item))

    def _remove(self, plural: str, item: Object) -> None:
        self._changed("DELETED", plural, item)
        del self.objects[plural][item["metadata"]["name"]]

    def _changed(self, kind: str, plural: str, item: Object) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self.objects[plural][item["metadata"]["name"]] = item
        if len(self._log) == self.history:
            self._forgotten = self._log[0][0]
        self._log.append((self._version, kind, plural, item))  # items are replaced, never changed in place
        self.changed.notify_all()

    def history_of(self, attempt: str) -> list[tuple[str, str, Object]]:
        """Every change of an attempt's objects as (ADDED, MODIFIED or DELETED, resource, object), oldest first."""
        with self.changed:
            return [(kind, plural, item) for _, kind, plural, item in self._log if attempt in item["metadata"]["name"]]

    # What is asked over HTTP.

    def allowed(self, verb: str, group: str, resource: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self._rules
        )

    def fault(self, verb: str, resource: str) -> Fault | None:
        with self.changed:
            for item in self.faults:
                if item.times and item.verb in ("", verb) and item.resource in ("", resource):
                    item.times -= 1
                    return item
        return None

    def page(self, plural: str, labels: str, fields: str, limit: int, after: str) -> Object:
        with self.changed:
            found = sorted(
                name for name, item in self.objects[plural].items() if matches(item, labels, fields) and name > after
            )
            chosen = found[:limit] if limit else found
            more = base64.b64encode(chosen[-1].encode()).decode() if len(chosen) < len(found) else ""
            return {
                "kind": f"{KINDS[plural]}List",
                "apiVersion": APIS[plural],
                "metadata": {"resourceVersion": str(self._version), **({"continue": more} if more else {})},
                "items": [self.objects[plural][name] for name in chosen],
            }

    def events(self, plural: str, labels: str, version: int, until: float) -> Iterator[Object]:
        """The changes since a version as watch events, as they come; ends at `until` or when the server is down."""
        while time.monotonic() < until:
            with self.changed:
                if self.down:
                    return
                if version < self._forgotten:
                    status = status_of(410, "Expired", f"too old resource version: {version} ({self._forgotten})")
                    yield {"type": "ERROR", "object": status}
                    return
                news = self._since(version)
                if not news:
                    self.changed.wait(min(0.5, max(0.01, until - time.monotonic())))
                    continue
                version = news[-1][0]
            for _, kind, resource, item in news:
                if resource == plural and plural not in self.silent and matches(item, labels, ""):
                    yield {"type": kind, "object": item}
        bookmark = {"kind": KINDS[plural], "apiVersion": APIS[plural], "metadata": {"resourceVersion": str(version)}}
        yield {"type": "BOOKMARK", "object": bookmark}

    def _since(self, version: int) -> list[tuple[int, str, str, Object]]:
        news = []
        for entry in reversed(self._log):
            if entry[0] <= version:
                break
            news.append(entry)
        return news[::-1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(2)
            except OSError:
                continue

    def handle_error(self, *_: Any) -> None: ...  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    kube: KubeApi

    def log_message(self, *_: Any) -> None: ...

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.kube.down:
            self.close_connection = True
            return
        try:
            self._serve(body)
        except Refused as error:
            self._answer(error.code, status_of(error.code, error.reason, str(error)))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _serve(self, body: bytes) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        group, resource, name = self._place(url.path)
        verb = _verb(self.command, name, "watch" in query)
        self.kube.calls[verb, resource] += 1
        fault = self.kube.fault(verb, resource)
        if fault is not None and not fault.after and fault.events is None:
            self._break(fault)
            return
        if self.headers.get("Authorization") != OPERATOR and not self.kube.allowed(verb, group, resource):
            told = f'{resource} is forbidden: the service account cannot {verb} resource "{resource}" in "{group}"'
            self.kube.refusals.append(told)
            raise Refused(403, "Forbidden", told)
        if verb == "watch":
            self._watch(resource, query, fault)
            return
        answer = self._do(verb, resource, name, query, body)
        if fault is not None:
            self._break(fault)
        else:
            self._answer(201 if verb == "create" else 200, answer)

    def _place(self, path: str) -> tuple[str, str, str]:
        """The API group, resource and name of a path."""
        steps = path.strip("/").split("/")
        prefix = {"api": 2, "apis": 3}.get(steps[0], 0)
        rest = steps[prefix:]
        if len(rest) < 3 or rest[0] != "namespaces" or rest[1] != self.kube.namespace:
            raise Refused(403, "Forbidden", f"{path} is not in the namespace {self.kube.namespace}")
        group = "" if prefix == 2 else steps[1]
        version = "/".join(steps[1:prefix])
        resource = "/".join([rest[2], *rest[4:]])
        if APIS.get(rest[2]) not in (None, version):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return group, resource, rest[3] if len(rest) > 3 else ""

    def _do(self, verb: str, resource: str, name: str, query: Mapping[str, str], body: bytes) -> Object:
        kube = self.kube
        if resource not in KINDS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if verb == "list":
            after = base64.b64decode(query.get("continue", "")).decode()
            labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
            return kube.page(resource, labels, fields, int(query.get("limit", 0)), after)
        if verb == "get":
            found = kube.get(resource, name)
            if found is None:
                raise Refused(404, "NotFound", f'{resource} "{name}" not found')
            return found
        if verb == "delete":
            return kube.delete(resource, name)
        try:
            item = json.loads(body)
        except ValueError as error:
            raise Refused(400, "BadRequest", str(error)) from error
        return kube.create(resource, item) if verb == "create" else kube.replace(resource, item)

    def _watch(self, resource: str, query: Mapping[str, str], fault: Fault | None) -> None:
        until = time.monotonic() + float(query.get("timeoutSeconds", 60))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        left = None if fault is None else fault.events
        version = int(query.get("resourceVersion", 0))
        for event in self.kube.events(resource, query.get("labelSelector", ""), version, until):
            line = json.dumps(event).encode() + b"\n"
            if left == 0:
                self._chunk(line[: len(line) // 2])
                self.close_connection = True
                self.connection.shutdown(2)
                return
            left = None if left is None else left - 1
            self._chunk(line)
        if not self.kube.down:
            self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _break(self, fault: Fault) -> None:
        if not fault.code:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
        self._answer(fault.code, status_of(fault.code, "Fault", "a fault of the test"), headers)

    def _answer(self, code: int, body: Object, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def _refuse_invalid(plural: str, new: Object, old: Object | None = None) -> None:
    if found := problems(plural, new, old):
        name = new.get("metadata", {}).get("name", "")
        raise Refused(422, "Invalid", f'{KINDS[plural]} "{name}" is invalid: {"; ".join(found)}')


def _verb(method: str, name: str, watch: bool) -> str:
    if method == "GET":
        return "get" if name else "watch" if watch else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def matches(item: Mapping[str, Any], labels: str, fields: str) -> bool:
    """Whether an object has the labels, and the fields by their dotted paths."""
    own = item["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        key, _, value = term.partition("=")
        if own.get(key) != value:
            return False
    for term in filter(None, fields.split(",")):
        path, _, value = term.partition("=")
        found: Any = item
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def status_of(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def now(later_s: float = 0.0) -> str:
    return datetime.fromtimestamp(time.time() + later_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def kube_api(**options: Any) -> Iterator[KubeApi]:
    api = KubeApi(**options)
    try:
        yield api
    finally:
        api.close()
