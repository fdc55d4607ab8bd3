"""Reading request bodies: a limit that holds while they stream in, and JSON or YAML into one mapping."""

import json
import re
from email.message import Message as Headers
from typing import Any

import yaml
from starlette.datastructures import Headers as RequestHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resforge.spec import FieldProblem
from services.api.problems import TABLE, BodyTooLarge, InvalidSpec, MalformedBody, UnsupportedMediaType, respond

YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
ACCEPTED = "application/json and application/yaml"
DEEPEST = 32
TOO_DEEP = f"the body nests more than {DEEPEST} levels deep"

_JSON_TYPES = (str, int, float, bool, list, dict)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class BodyLimit:
    """ASGI middleware that refuses a body of more than `limit` bytes: by its Content-Length before it is read, else as
    soon as so many have come.

    FastAPI's own `max_body_size` is not used, since it answers in plain text where no route reads the body.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = BodyTooLarge(f"a body may have at most {self.limit:,} bytes")
        announced = RequestHeaders(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limit:
            answer = respond(TABLE[BodyTooLarge], instance=scope["path"], detail=str(refusal))
            await answer(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.limit:
                    raise refusal
            return message

        await self.app(scope, limited, send)


def parse_document(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Parse a body as what its Content-Type says; JSON where it says nothing.

    Raises:
        UnsupportedMediaType: it says neither JSON nor YAML.
        MalformedBody: the body is not that, or nests too deeply; the message says line and column.
        InvalidSpec: the body is something else than a mapping.
    """
    header = Headers()
    header["content-type"] = content_type or "application/json"
    kind, charset = header.get_content_type(), header.get_content_charset("utf-8")
    is_json = kind == "application/json" or kind.endswith("+json")
    if not is_json and kind not in YAML_TYPES:
        raise UnsupportedMediaType(f"accepted are {ACCEPTED}, not {kind}")
    if charset not in ("utf-8", "us-ascii"):
        raise UnsupportedMediaType(f"accepted is UTF-8, not {charset}")
    try:
        text = body.decode("utf-8")
        document = _json(text) if is_json else _yaml(text)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from error
    except RecursionError as error:
        raise MalformedBody(TOO_DEEP) from error
    _check_values(document)
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"a value of type {type(document).__name__}"
        message = f"expected an object with the fields of a job, found {found}"
        raise InvalidSpec([FieldProblem(pointer="", message=message)])
    return document


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except ValueError as error:  # Python converts numbers of up to 4300 digits
        raise MalformedBody("a number has more digits than are accepted") from error


def _yaml(text: str) -> Any:
    try:
        _check_structure(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        where = _at(error.problem_mark or error.context_mark)
        raise MalformedBody(f"{where}not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise MalformedBody(f"not YAML: {' '.join(str(error).split())}") from error
    # A date such as 2026-13-45, and whatever PyYAML raises on a value that does not fit its tag.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MalformedBody("not YAML: a value does not fit its type; put it into quotes to mean a text") from error


def _check_structure(text: str) -> None:
    """Make sure that a text may be loaded: libyaml builds it by recursion, and deep enough nesting ends the process.

    Raises:
        MalformedBody: it nests too deeply, or has aliases, of which a few nested ones stand for billions of nodes.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise MalformedBody(f"{_at(event.start_mark)}YAML aliases are not accepted")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST:
            raise MalformedBody(f"{_at(event.start_mark)}{TOO_DEEP}")


def _at(mark: Any) -> str:
    """A YAML mark, which counts from 0, as people count."""
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


def _check_values(document: Any) -> None:
    """Make sure that a document is one of JSON, without recursion. YAML has more types, and keys of any.

    Raises:
        MalformedBody: it nests too deeply, or holds what JSON or the database can't.
    """
    level: list[tuple[str, Any]] = [("", document)]
    for _ in range(DEEPEST):
        inner: list[tuple[str, Any]] = []
        for pointer, value in level:
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            _check_value(pointer, value)
            for key, item in items:
                if isinstance(value, dict):
                    _check_key(pointer, key)
                # Only containers need a pointer of their own, and a mebibyte may hold many other values.
                if isinstance(item, dict | list):
                    inner.append((f"{pointer}/{key}", item))
                else:
                    _check_value(f"{pointer}/", item, key)
        if not inner:
            return
        level = inner
    raise MalformedBody(TOO_DEEP)


def _check_key(pointer: str, key: object) -> None:
    if not isinstance(key, str):
        raise MalformedBody(f"{pointer or '/'}: the key {key} is no text; put it into quotes")
    _check_value(f"{pointer}/", key, "(a key)")


def _check_value(pointer: str, value: object, key: object = "") -> None:
    if value is not None and not isinstance(value, _JSON_TYPES):
        raise MalformedBody(f"{pointer}{key}: JSON has no {type(value).__name__}; put it into quotes to mean a text")
    if isinstance(value, str) and _UNSTORABLE.search(value):
        raise MalformedBody(f"{pointer}{key}: a text can't hold NUL or half of a surrogate pair")
