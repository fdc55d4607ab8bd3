"""Reading Server-Sent Events (WHATWG HTML, section 9.2.6), as far as the API sends them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One event of a stream."""

    data: str
    event: str = "message"
    id: str | None = None


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The events in a stream of bytes that may be cut anywhere. One that is cut off by the end is dropped.

    Lines end in LF or CRLF. Only these part lines: a log line may hold U+2028 and its like, on which
    `str.splitlines` and httpx's `iter_lines` would break it.
    """
    data: list[str] = []
    event, identity = "message", None
    for line in _lines(chunks):
        if not line:
            if data:
                yield Message("\n".join(data), event, identity)
            data, event, identity = [], "message", None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id":
            identity = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8")
