"""Ships what this process prints, and what Ray prints here for its workers, to the job's logs.

The file descriptors themselves are taken, so that native code, other libraries and a crash's last words are caught
too; everything is still written where it went before.
"""

import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from resforge.metrics import LogLine
from resforge.storage import Stream
from trainer.streams import Shipper

# Ray prefixes a worker's line with its actor and process, coloured: (RayTrainWorker pid=123, ip=10.0.0.1) text
_WORKER = re.compile(r"^(?:\x1b\[\d+m)?\((?P<source>[^()]*\bpid=\d+[^()]*)\)(?:\x1b\[\d+m)? ?(?P<line>.*)$", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def shipped(shipper: Shipper, attempt: int) -> Iterator[None]:
    """Everything that is written to standard output and error within goes to the logs stream as well."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # into a pipe Python would hand on 8 KiB at a time
    kept = [os.dup(1), os.dup(2)]
    threads = []
    for number, original in zip((1, 2), kept, strict=True):
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        thread = threading.Thread(target=_copy, args=(reader, original, shipper, attempt), daemon=True)
        thread.start()
        threads.append(thread)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in zip((1, 2), kept, strict=True):
            os.dup2(original, number)  # closes our end of the pipe, and the reader sees the end
        for thread in threads:
            thread.join(5.0)


def _copy(reader: int, original: int, shipper: Shipper, attempt: int) -> None:
    with os.fdopen(reader, "rb") as lines:
        for raw in lines:
            os.write(original, raw)
            shipper.append(Stream.LOGS, parse_line(raw, attempt))


def parse_line(raw: bytes, attempt: int) -> LogLine:
    """A printed line with its source: the driver, or the worker that Ray names before it."""
    text = raw.decode(errors="replace").rstrip("\r\n")
    match = _WORKER.match(text)
    source, line = (match["source"], match["line"]) if match else ("driver", text)
    return LogLine(at=datetime.now(UTC), attempt=attempt, source=source, line=_COLOUR.sub("", line))
