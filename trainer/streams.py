"""Appending to a job's streams: lines become small, consecutively numbered objects, rolled by size and by time.

One thread writes them behind the training's back, so a slow or absent object store never holds a step up.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from resforge.s3 import ObjectStore, StorageError
from resforge.storage import AttemptPrefix, Stream

logger = logging.getLogger(__name__)

ROLL_BYTES = 64 * 1024
KEEP_BYTES = 8 * 1024 * 1024  # what may wait for a store that does not answer; the oldest lines go first


class Shipper:
    """Writes streams and overwritten documents of one attempt. Only one writer may append to a stream at a time.

    Parts are rolled every second at first and less often as the attempt grows older (a sixtieth of its age, half a
    minute at most), so that a day's stream is some thousands of objects and a fresh one is still seen at once.

    Args:
        every: called before each write, about once a second, to add what changes all the time, such as a heartbeat.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: AttemptPrefix,
        *,
        every: Callable[["Shipper"], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._every = every
        self._clock = clock
        self._started = clock()
        self._rolled = clock()
        self._lock = threading.Lock()  # over what waits to be written
        self._writing = threading.Lock()  # one part after the other
        self._lines: dict[Stream, list[bytes]] = {}
        self._size = 0
        self._documents: dict[str, bytes] = {}
        self._next_part: dict[Stream, int] = {}
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._thread.start()

    def append(self, stream: Stream, record: BaseModel | dict[str, Any]) -> None:
        """Add one record to the end of a stream."""
        text = record.model_dump_json() if isinstance(record, BaseModel) else json.dumps(record, default=str)
        line = text.encode()
        with self._lock:
            self._lines.setdefault(stream, []).append(line)
            self._size += len(line) + 1
            if self._size > ROLL_BYTES:
                self._wake.set()
            while self._size > KEEP_BYTES:
                longest = max(self._lines.values(), key=len)
                self._size -= len(longest.pop(0)) + 1

    def event(self, type: str, message: str, **data: Any) -> None:
        """Add to the events stream; the control plane copies it into the job's history."""
        self.append(
            Stream.EVENTS, {"at": datetime.now(UTC).isoformat(), "type": type, "message": message, "data": data}
        )

    def document(self, key: str, document: BaseModel) -> None:
        """Overwrite an object; of several values within a second only the last is written."""
        with self._lock:
            self._documents[key] = document.model_dump_json().encode()

    def flush(self) -> None:
        """Write what has come so far, and return when it is written.

        Raises:
            StorageError: it could not be; it is kept, and tried again later.
        """
        self._flush(everything=True)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is left and stop; gives up on a store that does not answer within `timeout_s` seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            try:
                if self._every:
                    self._every(self)
                self._flush(everything=closing)
            except StorageError as error:
                # Not through logging: the driver's log is shipped by this very thread.
                logger.debug("could not write to object storage, trying again: %s", error)
            if closing:
                return
            self._wake.wait(1.0)
            self._wake.clear()

    def _flush(self, *, everything: bool) -> None:
        with self._writing:
            self._write(everything=everything)

    def _write(self, *, everything: bool) -> None:
        with self._lock:
            documents, self._documents = self._documents, {}
            age = self._clock() - self._started
            due = self._clock() - self._rolled >= min(30.0, max(1.0, age / 60)) - 0.1
            full = self._size > ROLL_BYTES
            lines: dict[Stream, list[bytes]] = {}
            if due or full or everything:
                lines, self._lines, self._size = self._lines, {}, 0
                self._rolled = self._clock()
        try:
            for key, data in list(documents.items()):
                self._store.put(key, data, "application/json")
                del documents[key]
            for stream, records in list(lines.items()):
                part = self._next_part.get(stream) or self._first_part(stream)
                self._store.put(
                    self._prefix.stream_part(stream, part), b"\n".join(records) + b"\n", "application/jsonl"
                )
                self._next_part[stream] = part + 1
                del lines[stream]
        except StorageError:
            with self._lock:  # put back what was not written, before what has come since
                self._documents = {**documents, **self._documents}
                for stream, records in lines.items():
                    self._lines[stream] = records + self._lines.get(stream, [])
                self._size = sum(len(line) + 1 for queue in self._lines.values() for line in queue)
            raise

    def _first_part(self, stream: Stream) -> int:
        """Behind what a writer before this one left: a replaced worker goes on in the same stream."""
        parts = self._store.list_objects(self._prefix.stream(stream))
        return int(parts[-1].key.rsplit("/", 1)[1].removesuffix(".jsonl")) + 1 if parts else 1
