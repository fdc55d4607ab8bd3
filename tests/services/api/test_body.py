"""Bodies: how they are parsed, what is said of those that can't be, and that large ones are refused as they come in."""

import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.api.body import DEEPEST, parse_document
from services.api.problems import InvalidSpec, MalformedBody, UnsupportedMediaType
from tests.services.api.harness import Api

MIB = 1 << 20

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(texts, values, max_size=4))
def test_json_and_yaml_of_a_document_parse_alike(document: dict[str, Any]) -> None:
    assert parse_document(json.dumps(document).encode(), "application/json") == document
    written = yaml.safe_dump(document, allow_unicode=True, default_flow_style=False)
    if "&id" not in written:  # PyYAML's own alias for an empty list that occurs twice
        assert parse_document(written.encode(), "application/yaml") == yaml.safe_load(written)


@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/yaml"]))
def test_any_bytes_are_a_document_or_refused(body: bytes, content_type: str) -> None:
    with suppress(MalformedBody, InvalidSpec):
        assert isinstance(parse_document(body, content_type), dict)


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("application/json", b'{\n "a": 1,\n "b" 2}', ["line 3, column 6", "JSON"]),
        ("application/json", b"", ["line 1, column 1", "JSON"]),
        ("application/json", b"{} {}", ["line 1, column 4", "JSON"]),
        ("application/yaml", b"a: 1\nb: [1, 2\nc: 3\n", ["line 3, column 2", "YAML"]),
        ("application/yaml", b"a: b: c", ["line 1, column 5", "YAML"]),
        ("application/yaml", b"a: \x01", ["YAML"]),
        ("application/yaml", b"a: 2026-13-45", ["YAML", "quotes"]),
        ("application/yaml", b"a: !!bool x", ["YAML", "quotes"]),
        ("application/yaml", b"a: !!python/object:os.system {}", ["line 1", "YAML"]),
        ("application/yaml", b"a: &x [1]\nb: *x\n", ["line 2, column 4", "aliases"]),
        ("application/yaml", b"a: {b: 2026-01-02}", ["/a/b", "date", "quotes"]),
        ("application/yaml", b"a: [!!set {x}]", ["/a/0", "set"]),
        ("application/yaml", b"a: {1: x, b: y}", ["/a", "key 1", "quotes"]),
        ("application/yaml", b'a: ["\\0"]', ["/a/0", "NUL"]),
        ("application/json", b'{"a": {"b": "\\u0000"}}', ["/a/b", "NUL"]),
        ("application/json", b'{"a\\ud800": 1}', ["surrogate"]),
        ("application/json", b'{"a": ' + b"1" * 5000 + b"}", ["digits"]),
        ("application/json", b'{"a": "\xff"}', ["UTF-8", "byte 7", "0xff"]),
        ("application/json", b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", ["levels deep"]),
        ("application/json", b"[" * MIB, ["levels deep"]),
        # libyaml builds nodes by recursion: without a guard before it, these end the process.
        ("application/yaml", b"a: " + b"[" * (MIB - 3), ["line 1, column 35", "levels deep"]),
        ("application/yaml", b"- " * (MIB // 2), ["levels deep"]),
        ("application/yaml", b"a: " + b"{a: " * (MIB // 4 - 1), ["levels deep"]),
    ],
)
def test_says_where_a_body_is_malformed(content_type: str, body: bytes, words: list[str]) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_document(body, content_type)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_what_nests_just_deep_enough_is_read() -> None:
    body = b'{"a": ' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}"
    assert parse_document(body, "application/json") == parse_document(body, "application/yaml")


@pytest.mark.parametrize(("body", "found"), [(b"[1]", "list"), (b"3", "int"), (b"null", "nothing"), (b'"x"', "str")])
def test_a_body_must_be_an_object(body: bytes, found: str) -> None:
    for content_type in ("application/json", "application/yaml"):
        with pytest.raises(InvalidSpec) as caught:
            parse_document(body, content_type)
        [problem] = caught.value.problems
        assert problem.pointer == ""
        assert found in problem.message


def test_content_types() -> None:
    for accepted in (None, "application/json", "application/json; charset=utf-8", "application/vnd.x+json"):
        assert parse_document(b'{"a": 1}', accepted) == {"a": 1}
    for accepted in ("application/yaml", "application/x-yaml", "text/yaml; charset=UTF-8"):
        assert parse_document(b"a: 1", accepted) == {"a": 1}
    for refused in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-16"):
        with pytest.raises(UnsupportedMediaType, match="accepted"):
            parse_document(b'{"a": 1}', refused)


def test_a_body_announced_as_too_large_is_refused_unread(api: Api) -> None:
    for path, key in (("/v1/jobs", api.key), ("/v1/jobs", "wrong"), ("/nowhere", "")):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {MIB + 1}\r\n\r\n"
        status, problem = exchange(api, [head.encode()])
        assert (status, problem["type"]) == (413, "/problems/body-too-large")
        assert "1,048,576" in problem["detail"]


def test_a_body_that_grows_too_large_is_refused_while_it_comes_in(api: Api) -> None:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    # One byte more than the limit, and no last chunk: the answer comes before the body has ended.
    status, problem = exchange(api, [head.encode(), *[chunk] * 16, b"1\r\n \r\n"])
    assert (status, problem["type"]) == (413, "/problems/body-too-large")


def test_a_body_of_just_the_limit_is_read(http: httpx.Client) -> None:
    document = b'{"recipe": "digits/resnet-20"'
    whole = document + b" " * (MIB - len(document) - 1) + b"}"
    assert len(whole) == MIB
    headers = {"Content-Type": "application/json"}
    assert http.post("/v1/jobs", content=whole, headers=headers).status_code == 202
    assert http.post("/v1/jobs", content=iter([whole]), headers=headers).status_code == 202
    assert http.post("/v1/jobs", content=iter([whole, b" "]), headers=headers).status_code == 413


def exchange(api: Api, pieces: list[bytes]) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are and read the answer; its status and its problem."""
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), 20) as connection:
        connection.settimeout(20)
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += receive(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        headers = dict(row.lower().split(b": ", 1) for row in head.split(b"\r\n")[1:])
        while len(body) < int(headers[b"content-length"]):
            body += receive(connection)
        assert headers[b"content-type"] == b"application/problem+json"
        return int(head.split()[1]), json.loads(body)


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the connection was closed before the answer was whole"
    return data
