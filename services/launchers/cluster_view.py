"""A copy of some of a cluster's objects, kept by a watch: listed once, then told of every change."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from services.launchers.kube import Kind, Kube, KubeError

logger = logging.getLogger(__name__)

Object = Mapping[str, Any]

RESYNC_S = 600.0  # everything is listed anew so often, in case that a watch has left something out
PATIENCE_S = 10.0  # a copy that has been cut off for longer is not to be relied on
FIRST_S = 10.0  # how long to wait for the first list
BACKOFF_S = (0.2, 15.0)  # the first wait after a failure, and the longest
GONE = 410  # the API server has forgotten the version that a watch was to go on from


class View:
    """The objects of one kind that a selector matches. Safe to share between threads.

    Args:
        key: under what name an object is found, with others of the same key.
        on_gone: called by the watch's thread with each object that is there no more, as it was last seen.
    """

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        *,
        key: Callable[[Object], str],
        labels: str = "",
        on_gone: Callable[[str, Object], None] | None = None,
    ) -> None:
        self._kube, self._kind, self._labels = kube, kind, labels
        self._key = key
        self._on_gone = on_gone
        self._objects: dict[str, dict[str, Object]] = {}
        self._version = ""
        self._listed_at = 0.0
        self._error: KubeError | None = None
        self._cut_off_at: float | None = time.monotonic()
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.__name__}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. The thread ends when the server next says something."""
        self._stop.set()

    def check(self) -> None:
        """Make sure that the copy is up to date.

        Raises:
            KubeError: the API server has not been heard from for too long.
        """
        self._ready.wait(FIRST_S)
        with self._lock:
            cut_off, error = self._cut_off_at, self._error
        if not self._ready.is_set() or (cut_off is not None and time.monotonic() - cut_off > PATIENCE_S):
            raise error or KubeError(
                f"Kubernetes at {self._kube.server} does not answer: no list of {self._kind.__name__}s"
            )

    def find(self, key: str) -> list[Object]:
        """The objects of a key."""
        with self._lock:
            return list(self._objects.get(key, {}).values())

    def keys(self) -> list[str]:
        """Every key that has an object."""
        with self._lock:
            return list(self._objects)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if not self._version or time.monotonic() - self._listed_at > RESYNC_S:
                    self._list()
                self._follow()
                # A server that ends each watch at once is not to be asked without pause.
                failures = 0 if time.monotonic() - began > 1.0 else failures + 1
                pause = _backoff(failures - 1) if failures else 0.0
            except KubeError as error:
                if self._stop.is_set():
                    return  # the connection was closed under it
                failures += 1
                if error.code == GONE:
                    logger.info("the watch of %ss begins anew: %s", self._kind.__name__, error)
                else:
                    logger.warning("the watch of %ss was cut off: %s", self._kind.__name__, error)
                self._version = ""  # whatever was missed is in the next list
                pause = max(error.retry_after_s, _backoff(failures - 1))
                self._cut_off(error)
            except Exception as error:
                if self._stop.is_set():
                    return
                logger.exception("the watch of %ss failed", self._kind.__name__)
                failures += 1
                self._version = ""
                pause = _backoff(failures)
                self._cut_off(KubeError(f"the watch of {self._kind.__name__}s failed: {error!r}"))
            self._stop.wait(pause)

    def _list(self) -> None:
        version, items = self._kube.select(self._kind, labels=self._labels)
        fresh: dict[str, dict[str, Object]] = {}
        for item in items:
            fresh.setdefault(self._key(item), {})[_uid(item)] = item
        with self._lock:
            before, self._objects = self._objects, fresh
        self._version, self._listed_at = version, time.monotonic()
        self._in_touch()
        self._ready.set()
        for key, held in before.items():
            for uid, each in held.items():
                if self._on_gone is not None and uid not in fresh.get(key, {}):
                    self._on_gone(key, each)

    def _follow(self) -> None:
        for kind, item in self._kube.follow(self._kind, self._version, labels=self._labels):
            self._in_touch()
            if kind == "OPEN":
                continue
            self._version = item["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            key, gone = self._key(item), kind == "DELETED"
            with self._lock:
                held = self._objects.setdefault(key, {})
                if gone:
                    held.pop(_uid(item), None)
                else:
                    held[_uid(item)] = item
                if not held:
                    del self._objects[key]
            if gone and self._on_gone is not None:
                self._on_gone(key, item)
            if self._stop.is_set():
                return

    def _in_touch(self) -> None:
        with self._lock:
            self._cut_off_at, self._error = None, None

    def _cut_off(self, error: KubeError) -> None:
        with self._lock:
            self._error = error
            if self._cut_off_at is None:
                self._cut_off_at = time.monotonic()


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])


def _backoff(failures: int) -> float:
    """Rising waits, spread so that several watches do not come back together."""
    first, longest = BACKOFF_S
    return float(min(longest, first * 2 ** min(failures, 10)) * random.uniform(0.7, 1.0))
